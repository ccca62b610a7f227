/* SPDX-License-Identifier: Apache-2.0 */
/* sim/timeline.h: the measured steps as a Chrome trace file (chrome://tracing, Perfetto). */
#ifndef NKV_SIM_TIMELINE_H
#define NKV_SIM_TIMELINE_H

#include "sim/world.h"

/* returns: 0, or NKV_EIO naming the file. */
int sim_timeline_write(const struct sim_world *world, const char *path);

#endif
