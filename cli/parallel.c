/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a run of several processes. All of them read the same command line, so all find the same faults in it;
 * only rank 0 tells. A fault that another process has alone (a file that is not on its machine) is told by that one,
 * after all have agreed that there is one.
 *
 * Once ranks do different things they cannot agree any more: a failure of rank 0 then ends the job by force, and what a
 * process that dies leaves to be done is mpirun's. Letting the others time out was rejected: a long prefill looks like
 * a dead rank.
 */
#define _GNU_SOURCE
#include "parallel.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli.h"
#include "progress.h"

/* CPUs for each compute rank: all that the launcher bound this one to, or its share of the machine's. The PNM ranks use
 * the same CPUs: they work while the compute ranks wait. */
static uint32_t default_threads(const struct parallel *p)
{
    uint32_t cpus = cli_cpus(), n_local, share;
    struct nkv_mpi_info info;

    if (cpus < (uint32_t)sysconf(_SC_NPROCESSORS_ONLN))
        return cpus;
    nkv_mpi_info(p->mpi, &info);
    n_local = p->comm->size * info.n_local / info.size;
    share = cpus / (n_local ? n_local : 1);
    return share ? share : 1;
}

/* Before anybody asks how many CPUs there are, and before threads start. */
static void unbind(const struct parallel *p, uint32_t n_threads)
{
    if ((n_threads && n_threads <= cli_cpus()) || !nkv_mpi_unbind(p->mpi) || p->rank > 0)
        return;
    fprintf(
        stderr,
        "nearkv: mpirun bound each process to one core for want of orders: their threads use all %u CPUs now (to keep "
        "a binding ask for it: --bind-to core)\n",
        cli_cpus());
}

void parallel_tell_binding(uint32_t n_threads)
{
    uint32_t rank, size, cpus = cli_cpus(), all = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);

    if (nkv_mpi_launched(&rank, &size) && rank == 0 && n_threads > cpus && cpus < all)
        fprintf(
            stderr,
            "nearkv: %u threads share %u of %u CPUs, to which the launcher bound each process: mpirun --bind-to none "
            "leaves them all\n",
            n_threads, cpus, all);
}

bool parallel_launched(void)
{
    uint32_t rank, size;

    return nkv_mpi_launched(&rank, &size);
}

int parallel_begin(struct parallel *p)
{
    *p = (struct parallel){.size = 1};
    if (!nkv_mpi_launched(&p->rank, &p->size)) {
        p->rank = 0;
        p->size = 1;
        return CLI_OK;
    }
    if (nkv_mpi_open(&p->mpi) < 0)
        return cli_fail("%s", nkv_last_error());
    if (p->rank == 0)
        return CLI_OK;
    cli_hold_messages();
    opterr = 0;
    if (!freopen("/dev/null", "w", stdout))
        return cli_fail("cannot open /dev/null");
    return CLI_OK;
}

int parallel_option(const char *flag, const char *arg, uint32_t *n_out)
{
    return cli_u32(flag, arg, 1, SESSION_MAX_DEVICES, n_out);
}

/* returns: what all agree on; who has the failure, tells it. */
static int agree(struct parallel *p, int rc)
{
    int32_t value = rc;
    uint32_t rank = 0;

    if (!p->mpi)
        return rc;
    if (nkv_mpi_agree(p->mpi, rc, &value, &rank) < 0)
        return cli_fail("%s", nkv_last_error());
    if (value != CLI_OK && rank == p->rank && rank > 0)
        cli_tell_message(rank);
    return value;
}

static int check(const struct parallel *p, const struct session_options *session)
{
    uint32_t n_tp = p->options.n_tp ? p->options.n_tp : 1, n_pnm = p->options.n_pnm;

    if (!p->options.n_tp && !n_pnm)
        return p->mpi ? cli_usage("%u processes were started: say what they are for with --tp N and --pnm-ranks N, %u "
                                  "together",
                                  p->size, p->size)
                      : CLI_OK;
    if (n_pnm && (session->n_devices || session->n_specs))
        return cli_usage("--pnm-ranks %u: the PNM ranks are the devices: leave out --devices and --device", n_pnm);
    if (!p->mpi && n_tp + n_pnm == 1)
        return CLI_OK;
    if (!nkv_mpi_available())
        return cli_usage(
            "--tp, --pnm-ranks: this nearkv was built without MPI: install OpenMPI (Debian: libopenmpi-dev, "
            "openmpi-bin) and build it again");
    if (n_tp + n_pnm != p->size)
        return cli_usage("--tp %u --pnm-ranks %u are %u processes, not %u: start it with mpirun -n %u", n_tp, n_pnm,
                         n_tp + n_pnm, p->size, n_tp + n_pnm);
    return CLI_OK;
}

int parallel_roles(struct parallel *p, int rc, struct session_options *session)
{
    uint32_t n_tp = p->options.n_tp ? p->options.n_tp : 1;

    if (rc == CLI_OK)
        rc = check(p, session);
    rc = agree(p, rc);
    if (rc != CLI_OK || !p->mpi)
        return rc;
    unbind(p, session->n_threads);
    parallel_tell_binding(session->n_threads);
    if (nkv_mpi_comm(p->mpi, n_tp, &p->comm) < 0)
        return cli_fail("%s", nkv_last_error());
    session->comm = p->comm;
    for (uint32_t i = 0; i < p->options.n_pnm; i++) {
        snprintf(p->specs[i], sizeof p->specs[i], "mpi:%u", n_tp + i);
        session->specs[session->n_specs++] = p->specs[i];
    }
    if (!session->n_threads && p->comm)
        session->n_threads = default_threads(p);
    return CLI_OK;
}

int parallel_shard(struct parallel *p, int rc, struct nkv_model *model)
{
    if (rc == CLI_OK && p->comm && nkv_model_shard(model, p->comm) < 0)
        rc = cli_usage("--tp %u: %s", p->comm->size, nkv_last_error());
    rc = agree(p, rc);
    p->busy = p->mpi && rc == CLI_OK;
    return rc;
}

/* A failure that the others cannot know of. */
static int give_up(struct parallel *p)
{
    cli_tell_message(p->rank);
    nkv_mpi_abort(p->mpi, CLI_FAILED);
    return CLI_FAILED;
}

int parallel_serve(struct parallel *p)
{
    int rc = parallel_shard(p, CLI_OK, NULL);

    if (rc != CLI_OK || nkv_mpi_serve(p->mpi) == 0)
        return rc;
    (void)cli_fail("%s", nkv_last_error());
    return give_up(p);
}

int parallel_follow(struct parallel *p, struct nkv_decoder *decoder)
{
    if (decoder && nkv_decoder_follow(decoder) == 0)
        return CLI_OK;
    (void)cli_fail("%s", nkv_last_error());
    return give_up(p);
}

/* Elements of four bytes, per token and layer. */
static double per_token_layer(const struct nkv_mpi_traffic *t, uint64_t bytes)
{
    return t->token_layers ? (double)bytes / 4 / (double)t->token_layers : 0;
}

static json_int_t number(uint64_t n)
{
    return (json_int_t)n;
}

json_t *parallel_json(const struct parallel *p)
{
    struct nkv_mpi_traffic t;

    nkv_mpi_traffic(p->mpi, &t);
    return json_pack(
        "{s:I, s:I, s:{s:I, s:I, s:I, s:I}, s:{s:I, s:I, s:I, s:I, s:I}, s:I, s:I, s:{s:f, s:f}, "
        "s:{s:I, s:I, s:I, s:I}}",
        "tp", number(p->comm->size), "pnm_ranks", number(p->options.n_pnm), "down", "messages", number(t.n_down),
        "qkv_bytes", number(t.qkv_bytes), "list_bytes", number(t.list_down_bytes), "page_bytes",
        number(t.page_down_bytes), "up", "messages", number(t.n_up), "output_bytes", number(t.output_bytes),
        "scale_bytes", number(t.scale_bytes), "list_bytes", number(t.list_up_bytes), "page_bytes",
        number(t.page_up_bytes), "control_bytes", number(t.control_bytes), "token_layers", number(t.token_layers),
        "per_token_layer", "down_elements", per_token_layer(&t, t.qkv_bytes), "up_elements",
        per_token_layer(&t, t.output_bytes), "compute", "sums", number(t.n_sums), "sum_bytes", number(t.sum_bytes),
        "exchanges", number(t.n_exchanges), "exchange_bytes", number(t.exchange_bytes));
}

int parallel_end(struct parallel *p, int rc)
{
    if (!p->mpi)
        return rc;
    fflush(stdout);
    if (rc == CLI_FAILED && p->busy)
        nkv_mpi_abort(p->mpi, CLI_FAILED);
    if (p->busy && p->rank == 0) {
        if (p->comm->size > 1)
            (void)nkv_follow_end(p->comm);
        (void)nkv_mpi_release(p->mpi, p->comm->size);
    }
    rc = agree(p, rc);
    nkv_mpi_close(p->mpi);
    return rc;
}

/* Until the benchmark looks at Ctrl-C itself. */
static int run_bench(int argc, char **argv, int (*bench)(int argc, char **argv))
{
    progress_end_on_interrupt();
    return bench(argc, argv);
}

int parallel_bench(int argc, char **argv, int (*bench)(int argc, char **argv))
{
    struct parallel p;
    int rc = parallel_begin(&p);

    if (!p.mpi)
        return rc == CLI_OK ? run_bench(argc, argv, bench) : rc;
    if (rc == CLI_OK && nkv_mpi_comm(p.mpi, 1, &p.comm) < 0)
        rc = cli_fail("%s", nkv_last_error());
    p.busy = rc == CLI_OK;
    if (rc == CLI_OK)
        unbind(&p, 0);
    if (rc == CLI_OK && p.rank == 0)
        rc = run_bench(argc, argv, bench);
    else if (rc == CLI_OK && nkv_mpi_serve(p.mpi) < 0) {
        (void)cli_fail("%s", nkv_last_error());
        rc = give_up(&p);
    }
    return parallel_end(&p, rc);
}
