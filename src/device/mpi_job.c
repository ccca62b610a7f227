/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job: joining and leaving it. The end of a process is the launcher's to notice:
 * mpirun sees its child end, ends the others and says which it was. Watching each other was rejected: a rank that
 * computes for a minute looks like one that is dead.
 *
 * There is one job per process because MPI can be initialised once; hence the one variable below.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "device/mpi_job.h"
#include "device/mpi_wire.h"

static struct nkv_mpi *current;

struct nkv_mpi *nkv_mpi_current(void)
{
    return current;
}

int nkv_mpi_check(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;

    if (code == MPI_SUCCESS)
        return 0;
    MPI_Error_string(code, text, &length);
    FAIL(NKV_EDEVICE, "%s: MPI says: %s", what, text);
}

/* ---- The job ---- */

static bool read_number(const char *name, uint32_t *number_out)
{
    const char *text = getenv(name);
    char *end;
    unsigned long number = text ? strtoul(text, &end, 10) : 0;

    if (!text || end == text || *end || number > UINT32_MAX)
        return false;
    *number_out = (uint32_t)number;
    return true;
}

bool nkv_mpi_available(void)
{
    return true;
}

bool nkv_mpi_launched(uint32_t *rank_out, uint32_t *size_out)
{
    static const char *const names[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, {"PMI_RANK", "PMI_SIZE"}};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (read_number(names[i][0], rank_out) && read_number(names[i][1], size_out) && *size_out > 1)
            return true;
    return false;
}

static int join(struct nkv_mpi *mpi)
{
    int provided, rank, size, n_local;
    MPI_Comm local;

    TRY(nkv_mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "joining the MPI job"));
    TRY(nkv_mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &mpi->world), "joining the MPI job"));
    MPI_Comm_set_errhandler(mpi->world, MPI_ERRORS_RETURN);
    MPI_Comm_rank(mpi->world, &rank);
    MPI_Comm_size(mpi->world, &size);
    TRY(nkv_mpi_check(MPI_Comm_split_type(mpi->world, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local),
                      "joining the MPI job"));
    MPI_Comm_size(local, &n_local);
    mpi->rank = (uint32_t)rank;
    mpi->size = (uint32_t)size;
    mpi->n_local = (uint32_t)n_local;
    TRY(nkv_alloc(mpi->size, sizeof *mpi->is_open, &mpi->is_open));
    TRY(nkv_mpi_bells_open(mpi, local, mpi->n_local));
    MPI_Comm_free(&local);
    return 0;
}

int nkv_mpi_open(struct nkv_mpi **mpi_out)
{
    struct nkv_mpi *mpi;
    int initialised = 0, status;

    MPI_Initialized(&initialised);
    if (initialised)
        FAIL(NKV_ESTATE, "this process has joined an MPI job already");
    TRY(nkv_alloc(1, sizeof *mpi, &mpi));
    status = join(mpi);
    if (status < 0) {
        nkv_free(mpi->is_open);
        nkv_free(mpi->bells);
        nkv_free(mpi);
        return status;
    }
    (void)prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    current = mpi;
    *mpi_out = mpi;
    return 0;
}

void nkv_mpi_info(const struct nkv_mpi *mpi, struct nkv_mpi_info *info_out)
{
    *info_out = (struct nkv_mpi_info){mpi->rank, mpi->size, mpi->n_local};
}

int nkv_mpi_agree(struct nkv_mpi *mpi, int32_t value, int32_t *value_out, uint32_t *rank_out)
{
    struct {
        int value, rank;
    } own = {value, (int)mpi->rank}, all = {0};
    MPI_Request request;

    TRY(nkv_mpi_check(MPI_Iallreduce(&own, &all, 1, MPI_2INT, MPI_MAXLOC, mpi->world, &request), "agreeing"));
    TRY(nkv_mpi_finish(mpi, &request, mpi->size, sizeof own, "agreeing"));
    *value_out = all.value;
    *rank_out = (uint32_t)all.rank;
    return 0;
}

int nkv_mpi_release(struct nkv_mpi *mpi, uint32_t first)
{
    struct nkv_mpi_head head = nkv_mpi_head(NKV_MPI_STOP);

    for (uint32_t rank = first; rank < mpi->size; rank++) {
        MPI_Request request;

        TRY(nkv_mpi_check(MPI_Isend(&head, sizeof head, MPI_BYTE, (int)rank, NKV_MPI_TAG_DOWN, mpi->world, &request),
                          "releasing"));
        nkv_mpi_ring(mpi, rank);
        TRY(nkv_mpi_wait(mpi, &request, "releasing"));
    }
    return 0;
}

void nkv_mpi_traffic(const struct nkv_mpi *mpi, struct nkv_mpi_traffic *traffic_out)
{
    *traffic_out = mpi->traffic;
}

void nkv_mpi_abort(struct nkv_mpi *mpi, int exit_status)
{
    MPI_Abort(mpi->world, exit_status);
}

/* Nobody leaves before all are done: MPI_Finalize alone would poll, and the launcher takes the first that ends with a
 * status for a failure of the whole. */
void nkv_mpi_close(struct nkv_mpi *mpi)
{
    MPI_Request request;

    if (!mpi)
        return;
    if (nkv_mpi_check(MPI_Ibarrier(mpi->world, &request), "leaving the MPI job") == 0)
        (void)nkv_mpi_finish(mpi, &request, mpi->size, 0, "leaving the MPI job");
    nkv_mpi_bells_close(mpi);
    nkv_mpi_comm_close(mpi->comm);
    MPI_Comm_free(&mpi->world);
    MPI_Finalize();
    current = NULL;
    nkv_free(mpi->is_open);
    nkv_free(mpi);
}
