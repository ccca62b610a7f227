/* SPDX-License-Identifier: Apache-2.0 */
/* Placeholder to be replaced by the figures. */
#include "cli.h"
#include "sim.h"

int sim_figures_write(const struct nkv_sim_paper *paper, const char *dir)
{
    (void)paper;
    (void)dir;
    return CLI_OK;
}
