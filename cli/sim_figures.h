/* SPDX-License-Identifier: Apache-2.0 */
/* sim_figures.h: the figures of sim paper, as rows of data and as gnuplot scripts that draw those rows. */
#ifndef NKV_CLI_SIM_FIGURES_H
#define NKV_CLI_SIM_FIGURES_H

#include <nearkv/sim.h>
#include <stdio.h>

enum sim_figure {
    SIM_FIG_RECALL,
    SIM_FIG_STEADY,
    SIM_FIG_THROUGHPUT,
    SIM_FIG_ENERGY,
    SIM_FIG_RACK,
    SIM_FIG_BREAKDOWN,
    SIM_FIG_COST,
    SIM_FIG_COUNT
};

/* A bar of a bar chart, and where it stands. */
struct sim_bar {
    const struct nkv_sim_point *point;
    double x;
};

/* What a figure shows: points of the paper, in the order of its CSV's rows. */
struct sim_rows {
    const struct nkv_sim_paper *paper;
    enum sim_figure figure;
    uint32_t n;
    const struct nkv_sim_point **points;
    struct sim_bar *bars; /* [n]: room for the script's layout */
};

/* 10 and "fig10_throughput" */
uint32_t sim_figure_number(enum sim_figure figure);
const char *sim_figure_name(enum sim_figure figure);
/* "throughput" in words, for titles and comments */
const char *sim_figure_title(enum sim_figure figure);

/* returns: CLI_OK, or CLI_FAILED after a message (memory). */
int sim_rows_open(const struct nkv_sim_paper *paper, enum sim_figure figure, struct sim_rows *rows_out);
void sim_rows_close(struct sim_rows *rows);
/* Whether any of the rows has something to draw: not, if what the figure shows could not be simulated. */
bool sim_rows_drawable(const struct sim_rows *rows);

/* The CSV files: of a figure, of all points with every field of their reports, of the claims. */
void sim_rows_print(const struct sim_rows *rows, FILE *file);
void sim_points_print(const struct nkv_sim_paper *paper, FILE *file);
void sim_claims_print(const struct nkv_sim_paper *paper, FILE *file);

/* The script that draws NAME.svg and NAME.png from NAME.csv, all in its own directory. */
void sim_script_print(const struct sim_rows *rows, FILE *file);

/* How figures call a point's mode: "baseline", "PNM-KV", "PnG-KV", "PnG-KV adaptive". */
const char *sim_point_system(const struct nkv_sim_point *point);

#endif
