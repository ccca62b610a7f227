/* SPDX-License-Identifier: Apache-2.0 */
/* reconnect.h: going on after a device process was lost (--reconnect). */
#ifndef NKV_CLI_RECONNECT_H
#define NKV_CLI_RECONNECT_H

#include "session.h"

/* Whether a failure with this status may be one that waiting helps; without --reconnect says once that there is it. */
bool reconnect_may_help(struct session *session, int status);
/*
 * Waits for lost devices, for at most --reconnect's seconds, and says so on stderr. returns: whether any was lost and
 * all are there again.
 */
bool reconnect_devices(struct session *session);
/* Makes a sequence that failed usable again, from its committed tokens on. returns: whether it is. */
bool reconnect_seq(struct nkv_seq *seq);

#endif
