/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nearkv/parallel.h: one model over several processes. Compute processes hold shards of the dense layers (tensor
 * parallel) and talk through a struct nkv_comm; PNM processes are devices ("mpi:RANK", nkv_device_open), each the home
 * of whole sequences (data parallel). The calls nkv_mpi_* are there in every build; one without MPI answers
 * NKV_ENOTSUP.
 *
 *   every process    nkv_mpi_open(&mpi); nkv_mpi_comm(mpi, n_compute, &comm);
 *   rank 0           a context over devices "mpi:RANK", a decoder with comm; at the end nkv_follow_end(comm) and
 *                    nkv_mpi_release(mpi, n_compute)
 *   compute ranks    a model, nkv_model_shard(model, comm), a decoder without a context, nkv_decoder_follow(decoder)
 *   PNM ranks        nkv_mpi_serve(mpi)
 *   every process    nkv_mpi_close(mpi)
 */
#ifndef NEARKV_PARALLEL_H
#define NEARKV_PARALLEL_H

#include <nearkv/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct nkv_comm;

/*
 * What the dense layers need of a group of processes. Every member makes the same calls in the same order; each call
 * blocks. Rank 0 is the root. returns: 0; NKV_EDEVICE: a process is gone.
 */
struct nkv_comm_ops {
    /* Room for calls of at most so many bytes per process, so that they allocate nothing. */
    int (*reserve)(struct nkv_comm *comm, uint64_t bytes);
    /* Rank 0's bytes to all. */
    int (*broadcast)(struct nkv_comm *comm, void *data, uint64_t bytes);
    /* Every rank's bytes, in the order of ranks, to rank 0's all_out [size][bytes]. */
    int (*gather)(struct nkv_comm *comm, const void *part, uint64_t bytes, void *all_out);
    /* The reverse. */
    int (*scatter)(struct nkv_comm *comm, const void *all, uint64_t bytes, void *part_out);
    /* x becomes the sum of all ranks' x on each of them, added in the order of ranks: the same bits everywhere and in
     * every run. */
    int (*sum)(struct nkv_comm *comm, float *x, uint64_t n);
};
struct nkv_comm {
    const struct nkv_comm_ops *ops;
    uint32_t rank, size;
};

/* ---- MPI ---- */

struct nkv_mpi;

/* Whether the library was built with MPI. */
NKV_API bool nkv_mpi_available(void);
/* Whether this process was started as one of several by an MPI launcher, and which. Does not initialise MPI. */
NKV_API bool nkv_mpi_launched(uint32_t *rank_out, uint32_t *size_out);
/*
 * Joins the job; once per process. All later calls, and those of devices "mpi:RANK", come from this thread, whose
 * timers are made precise (Linux' timer slack). returns: 0; NKV_ENOTSUP: built without MPI; NKV_ESTATE; NKV_EDEVICE.
 */
NKV_API int nkv_mpi_open(struct nkv_mpi **mpi_out);

struct nkv_mpi_info {
    uint32_t rank, size;
    uint32_t n_local; /* processes of the job on this machine */
};
NKV_API void nkv_mpi_info(const struct nkv_mpi *mpi, struct nkv_mpi_info *info_out);
/*
 * Frees this process from a core that nobody chose for it: OpenMPI's mpirun, told nothing, binds each of few processes
 * to one, which all threads of a process would share. It may then run wherever mpirun may. A binding that was asked for
 * (--bind-to, --map-by, a rank file, a parameter file), that is wider than a core or not OpenMPI 4's stays. Call it
 * before threads are started, which inherit it. returns: whether it was freed.
 */
NKV_API bool nkv_mpi_unbind(const struct nkv_mpi *mpi);
/* The highest value of all processes, and the lowest rank that gave it. Every process calls. blocks. */
NKV_API int nkv_mpi_agree(struct nkv_mpi *mpi, int32_t value, int32_t *value_out, uint32_t *rank_out);
/* The group of the ranks below n. Every process calls; the others get NULL. Valid until nkv_mpi_close. blocks. */
NKV_API int nkv_mpi_comm(struct nkv_mpi *mpi, uint32_t n, struct nkv_comm **comm_out);
/*
 * Is a PNM device until rank 0 releases it: rank 0 opens it as "mpi:RANK", one client at a time. Memory is taken when
 * it is opened, as much as its config says. blocks. returns: 0; NKV_EDEVICE; NKV_ENOMEM.
 */
NKV_API int nkv_mpi_serve(struct nkv_mpi *mpi);
/* Rank 0: lets the PNM ranks, first and above, return from nkv_mpi_serve. Close their devices before. */
NKV_API int nkv_mpi_release(struct nkv_mpi *mpi, uint32_t first);
/* Leaves the job; every process calls. blocks. */
NKV_API void nkv_mpi_close(struct nkv_mpi *mpi);
/* Ends every process of the job, this one too, at once: for failures after which they cannot agree any more. Does not
 * return. */
NKV_API void nkv_mpi_abort(struct nkv_mpi *mpi, int exit_status);

/*
 * What this process has exchanged since nkv_mpi_open. With devices, by what it was: q, k, v go down, the partials'
 * outputs o come up; neither depends on the length of the context.
 */
struct nkv_mpi_traffic {
    uint64_t token_layers;                   /* tokens appended, once per layer */
    uint64_t n_down, n_up;                   /* messages with commands, with completions */
    uint64_t qkv_bytes, output_bytes;        /* f32 */
    uint64_t scale_bytes;                    /* m and l of the partials, up */
    uint64_t list_down_bytes, list_up_bytes; /* page lists and scores */
    uint64_t page_down_bytes, page_up_bytes; /* pages and digests */
    uint64_t control_bytes;                  /* commands, completions and what frames them, both ways */
    /* Between compute processes, of this one: calls, and bytes that it sent or received. */
    uint64_t n_sums, n_exchanges, sum_bytes, exchange_bytes;
};
NKV_API void nkv_mpi_traffic(const struct nkv_mpi *mpi, struct nkv_mpi_traffic *traffic_out);

#ifdef __cplusplus
}
#endif
#endif
