/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits for lost devices in small turns, so that Ctrl-C is heard. What failed tells only that it failed: whether a
 * device was lost is for the library to say, which knows it by the number of devices that came back; an error that the
 * device itself reported ends the run as without --reconnect.
 */
#include "reconnect.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "progress.h"

#define TURN_MS 200u

static bool has_process(const struct session *session)
{
    for (uint32_t i = 0; i < session->options.n_specs; i++)
        if (strncmp(session->options.specs[i], "unix:", 5) == 0)
            return true;
    return false;
}

bool reconnect_may_help(struct session *session, int status)
{
    if (status == NKV_EDEVICE && session->options.reconnect_s == 0 && !session->told_reconnect &&
        has_process(session)) {
        session->told_reconnect = true;
        (void)cli_fail("a device failed: nearkv run --reconnect waits for a device process that was lost, and goes on");
    }
    return session->options.reconnect_s > 0 && status == NKV_EDEVICE;
}

bool reconnect_devices(struct session *session)
{
    uint64_t begin_ns = progress_now_ns(), limit_ns = session->options.reconnect_s * (uint64_t)1000000000u;
    bool said = false;
    int n;

    while ((n = nkv_context_recover(session->context, 0)) == NKV_EDEVICE) {
        if (!said)
            (void)cli_fail("%s; waiting for it for at most %u s", nkv_last_error(), session->options.reconnect_s);
        said = true;
        if (progress_interrupted() || progress_now_ns() - begin_ns > limit_ns) {
            (void)cli_fail("it did not come back");
            session->options.reconnect_s = 0; /* once is enough */
            session->told_reconnect = true;
            return false;
        }
        progress_sleep_ms(TURN_MS);
    }
    if (n < 0)
        (void)cli_fail("%s", nkv_last_error());
    if (n > 0)
        fprintf(stderr, "nearkv: the lost device is there again after %.1f s\n",
                (double)(progress_now_ns() - begin_ns) * 1e-9);
    return n > 0;
}

bool reconnect_seq(struct nkv_seq *seq)
{
    if (nkv_seq_truncate(seq, nkv_seq_length(seq)) >= 0)
        return true;
    (void)cli_fail("cannot go on from token %u: %s", nkv_seq_length(seq), nkv_last_error());
    return false;
}
