/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "fault:op=attend,n=3:DEVICE": the n-th command of that op (op=any: of all) fails with NKV_EDEVICE and does not run;
 * later ones run as usual. In its place a COMPUTE of no work goes down, so that the failure arrives in its turn, at the
 * time when the device would have come to it.
 */
#include "base/mem.h"
#include "device/backend.h"
#include "device/wrap.h"

struct fault {
    struct nkv_wrap wrap; /* first */
    uint32_t op;          /* 0: any */
    uint64_t n, seen;
    uint64_t victim; /* number of the command that fails, once it was submitted */
    bool struck;
};

static struct fault *fault_of(struct nkv_device *device)
{
    return (struct fault *)(void *)device;
}

static int fault_submit(struct nkv_device *device, const struct nkv_cmd *cmds, uint32_t n)
{
    struct fault *fault = fault_of(device);
    uint64_t seen = fault->seen, victim = fault->victim;
    bool struck = fault->struck;

    TRY(nkv_wrap_stage(&fault->wrap, cmds, n));
    for (uint32_t i = 0; i < n; i++) {
        if ((fault->op && cmds[i].op != fault->op) || ++seen != fault->n)
            continue;
        fault->wrap.staged[i] = (struct nkv_cmd){.op = NKV_OP_COMPUTE, .user_data = fault->wrap.staged[i].user_data};
        victim = fault->wrap.n_commands + i;
        struck = true;
    }
    TRY(nkv_wrap_submit_staged(&fault->wrap, n));
    fault->seen = seen;
    fault->victim = victim;
    fault->struck = struck;
    return 0;
}

static int fault_reap(struct nkv_device *device, struct nkv_cqe *cqes_out, uint32_t max_n, uint32_t min_n)
{
    struct fault *fault = fault_of(device);
    int n = fault->wrap.inner->ops->reap(fault->wrap.inner, cqes_out, max_n, min_n);
    uint32_t last =
        NKV_WRAP_ENTRIES; /* the victim's tag, when nothing failed after it: the message is the last one's */

    for (int i = 0; i < n; i++) {
        uint32_t tag;

        TRY(nkv_wrap_finish(&fault->wrap, &cqes_out[i], &tag));
        if (cqes_out[i].res < 0)
            last = NKV_WRAP_ENTRIES;
        if (!fault->struck || fault->wrap.numbers[tag] != fault->victim)
            continue;
        cqes_out[i].res = NKV_EDEVICE;
        last = tag;
    }
    if (last < NKV_WRAP_ENTRIES)
        (void)nkv_fail(NKV_EDEVICE, "injected fault: %s, command %llu of this device",
                       nkv_op_name(fault->wrap.pending[last].op), (unsigned long long)fault->victim);
    return n;
}

static void fault_close(struct nkv_device *device)
{
    struct fault *fault = fault_of(device);

    nkv_device_close(fault->wrap.inner);
    nkv_free(fault);
}

static const struct nkv_device_ops fault_ops = {
    .abi = NKV_DEVICE_ABI,
    .backend = "fault",
    .caps = nkv_wrap_caps,
    .map = nkv_wrap_map,
    .submit = fault_submit,
    .reap = fault_reap,
    .stat = nkv_wrap_stat,
    .close = fault_close,
    .copy = nkv_wrap_copy,
};

static int parse(const char *args, uint32_t *op_out, uint64_t *n_out)
{
    struct nkv_option option;
    uint32_t op = 0;
    uint64_t n = 1;
    int more;

    while ((more = nkv_option_next(&args, &option)) > 0) {
        if (nkv_option_is(&option, "op")) {
            op = nkv_op_parse(option.value, option.value_length);
            if (op == 0 && !(option.value_length == 3 && __builtin_memcmp(option.value, "any", 3) == 0))
                FAIL(NKV_EINVAL, "fault: unknown op '%.*s': use any, append, select, attend, read, write, ...",
                     (int)option.value_length, option.value);
        } else if (nkv_option_is(&option, "n")) {
            TRY(nkv_option_number(&option, false, UINT64_MAX, &n));
        } else {
            return nkv_option_unknown(&option, "op, n");
        }
    }
    TRY(more);
    if (n == 0)
        FAIL(NKV_EINVAL, "fault: n counts from 1");
    *op_out = op;
    *n_out = n;
    return 0;
}

int nkv_fault_open(const char *args, const struct nkv_device_config *config, struct nkv_device *inner,
                   struct nkv_device **device_out)
{
    struct fault *fault;
    uint32_t op = 0;
    uint64_t n = 1;

    (void)config;
    TRY(parse(args, &op, &n));
    TRY(nkv_alloc(1, sizeof *fault, &fault));
    nkv_wrap_init(&fault->wrap, &fault_ops, inner);
    fault->op = op;
    fault->n = n;
    *device_out = &fault->wrap.device;
    return 0;
}
