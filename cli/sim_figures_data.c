/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The figures' data. Every file is one row per simulated point: first what the point is, then columns picked from one
 * table that covers the whole report, so that a column has the same name and meaning in every file. A figure is a
 * filter of points, an order and a bit in that table.
 *
 * Invariant: every row has as many columns as the header; of a point that could not be simulated, and of a ratio to
 * such a point, they are empty and `status` says why. The first line is a comment: these numbers are simulated, and
 * what they assume.
 *
 * Rejected: one column per mode (a row per configuration). It plots more easily, but the columns then differ from
 * figure to figure, and a spreadsheet can pivot rows into columns, not the other way.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "sim.h"
#include "sim_figures.h"
#include "text.h"

typedef const struct nkv_sim_point *point_ptr;
typedef const struct nkv_sim_paper *paper_ptr;

/* ---- The figures ---- */

static bool same_work(point_ptr a, point_ptr b)
{
    return strcmp(a->model, b->model) == 0 && a->context_tokens == b->context_tokens && a->rack == b->rack;
}

/* Whether the sweep over PNM devices has this point's configuration. */
static bool is_swept(paper_ptr paper, point_ptr point)
{
    for (uint32_t i = 0; i < paper->n_points; i++) {
        point_ptr p = &paper->points[i];

        if (same_work(p, point) && p->n_gpus == point->n_gpus && p->mode == NKV_MODE_PNM)
            return true;
    }
    return false;
}

static bool is_small(point_ptr p)
{
    return !p->rack && strcmp(p->model, "llama-3.1-8b") == 0;
}

static bool in_recall(paper_ptr paper, point_ptr p)
{
    (void)paper;
    return is_small(p) && p->n_gpus == 1 && p->mode == NKV_MODE_RECALL;
}

static bool in_steady(paper_ptr paper, point_ptr p)
{
    (void)paper;
    return !p->rack && p->mode == NKV_MODE_PNG && !p->adaptive;
}

static bool in_server(paper_ptr paper, point_ptr p)
{
    return !p->rack && is_swept(paper, p);
}

static bool in_rack(paper_ptr paper, point_ptr p)
{
    (void)paper;
    return p->rack;
}

static bool in_cost(paper_ptr paper, point_ptr p)
{
    (void)paper;
    return is_small(p) && p->context_tokens == 131072 && (p->mode == NKV_MODE_RECALL || p->n_gpus == 1);
}

static uint32_t by_context(point_ptr p)
{
    return p->context_tokens;
}

/* One system after the other, each from few devices to many. */
static uint32_t by_system(point_ptr p)
{
    return (p->adaptive ? 1u : 0u) << 24 | (uint32_t)p->mode << 16 | p->n_gpus << 8 | p->n_pnm;
}

static const struct {
    uint32_t number;
    const char *name, *title;
    bool (*shows)(paper_ptr paper, point_ptr point);
    uint32_t (*order)(point_ptr point); /* NULL: the paper's */
} figures[SIM_FIG_COUNT] = {
    [SIM_FIG_RECALL] = {3, "fig03_recall_batch", "Recalls and batch against the context, baseline, 8B, 1 GPU",
                        in_recall, by_context},
    [SIM_FIG_STEADY] = {8, "fig08_steady", "Steady-Select against the number of PNM devices", in_steady, NULL},
    [SIM_FIG_THROUGHPUT] = {10, "fig10_throughput", "Throughput in one server", in_server, NULL},
    [SIM_FIG_ENERGY] = {11, "fig11_energy", "Energy per token in one server, account \"paper\"", in_server, NULL},
    [SIM_FIG_RACK] = {12, "fig12_rack", "Rack: throughput and energy of 405B, 1M tokens, 16 GPUs", in_rack, NULL},
    [SIM_FIG_BREAKDOWN] = {13, "fig13_breakdown", "Where the time of a step goes, by system and number of PNM devices",
                           NULL, NULL},
    [SIM_FIG_COST] = {14, "fig14_cost", "Cost efficiency, 8B 128K", in_cost, by_system},
};

uint32_t sim_figure_number(enum sim_figure figure)
{
    return figures[figure].number;
}

const char *sim_figure_name(enum sim_figure figure)
{
    return figures[figure].name;
}

const char *sim_figure_title(enum sim_figure figure)
{
    return figures[figure].title;
}

const char *sim_point_system(point_ptr point)
{
    if (point->adaptive)
        return "PnG-KV adaptive";
    return point->mode == NKV_MODE_RECALL ? "baseline" : point->mode == NKV_MODE_PNM ? "PNM-KV" : "PnG-KV";
}

/* ---- Rows ---- */

/* Inserts the point behind those that come before it or are equal. */
static void insert(struct sim_rows *rows, point_ptr point)
{
    uint32_t (*order)(point_ptr) = figures[rows->figure].order;
    uint32_t at = rows->n++;

    for (; order && at > 0 && order(rows->points[at - 1]) > order(point); at--)
        rows->points[at] = rows->points[at - 1];
    rows->points[at] = point;
}

int sim_rows_open(paper_ptr paper, enum sim_figure figure, struct sim_rows *rows_out)
{
    struct sim_rows rows = {.paper = paper, .figure = figure};

    rows.points = calloc(paper->n_points, sizeof *rows.points);
    rows.bars = calloc(paper->n_points, sizeof *rows.bars);
    if (!rows.points || !rows.bars) {
        sim_rows_close(&rows);
        return cli_fail("out of memory for %u rows", paper->n_points);
    }
    for (uint32_t i = 0; i < paper->n_points; i++)
        if (figures[figure].shows ? figures[figure].shows(paper, &paper->points[i])
                                  : is_swept(paper, &paper->points[i]))
            insert(&rows, &paper->points[i]);
    *rows_out = rows;
    return CLI_OK;
}

void sim_rows_close(struct sim_rows *rows)
{
    free(rows->points);
    free(rows->bars);
    *rows = (struct sim_rows){0};
}

/* ---- Ratios ---- */

/* The baseline of the same work with the point's GPUs (n_gpus 0: with the fewest), or NULL. */
static const struct nkv_sim_report *baseline(paper_ptr paper, point_ptr point, uint32_t n_gpus)
{
    point_ptr found = NULL;

    for (uint32_t i = 0; i < paper->n_points; i++) {
        point_ptr p = &paper->points[i];

        if (same_work(p, point) && p->mode == NKV_MODE_RECALL && (n_gpus == 0 || p->n_gpus == n_gpus) &&
            (!found || p->n_gpus < found->n_gpus))
            found = p;
    }
    return found && found->status == 0 ? &found->report : NULL;
}

static double throughput_ratio(paper_ptr paper, point_ptr point)
{
    const struct nkv_sim_report *base = baseline(paper, point, point->n_gpus);

    return base ? point->report.tokens_per_s / base->tokens_per_s : NAN;
}

static double energy_ratio(paper_ptr paper, point_ptr point)
{
    const struct nkv_sim_report *base = baseline(paper, point, point->n_gpus);

    return base ? point->report.energy_j[NKV_SIM_PAPER] / base->energy_j[NKV_SIM_PAPER] : NAN;
}

static double cost_ratio(paper_ptr paper, point_ptr point)
{
    const struct nkv_sim_report *base = baseline(paper, point, 0);

    return base ? point->report.tokens_per_usd / base->tokens_per_usd : NAN;
}

bool sim_rows_drawable(const struct sim_rows *rows)
{
    bool relative = rows->figure == SIM_FIG_THROUGHPUT || rows->figure == SIM_FIG_ENERGY; /* to a baseline, not drawn */

    for (uint32_t i = 0; i < rows->n; i++) {
        point_ptr p = rows->points[i];

        if (p->status == 0 &&
            (!relative || (p->mode != NKV_MODE_RECALL && baseline(rows->paper, p, p->n_gpus) != NULL)))
            return true;
    }
    return false;
}

/* ---- Columns ---- */

enum kind { COUNT, NUMBER, PARTS, ACCOUNTS, RATIO };

#define RECALL     (1u << SIM_FIG_RECALL)
#define STEADY     (1u << SIM_FIG_STEADY)
#define THROUGHPUT (1u << SIM_FIG_THROUGHPUT)
#define ENERGY     (1u << SIM_FIG_ENERGY)
#define RACK       (1u << SIM_FIG_RACK)
#define BREAKDOWN  (1u << SIM_FIG_BREAKDOWN)
#define COST       (1u << SIM_FIG_COST)
#define POINTS     (1u << SIM_FIG_COUNT) /* every field, no ratio */

/* clang-format off */
#define FIELD(kind, field, figures) {#field, kind, offsetof(struct nkv_sim_report, field), NULL, POINTS | (figures)}
/* clang-format on */

static const struct column {
    const char *name;
    enum kind kind;
    size_t offset;
    double (*ratio)(paper_ptr paper, point_ptr point);
    unsigned figures;
} columns[] = {
    FIELD(COUNT, batch, ~0u),
    FIELD(COUNT, n_fit, 0),
    FIELD(COUNT, tp, 0),
    FIELD(COUNT, budget_tokens, RECALL | STEADY),
    FIELD(COUNT, steady_tokens, STEADY | THROUGHPUT | RACK),
    FIELD(NUMBER, tokens_per_s, ~STEADY),
    {"throughput_to_baseline", RATIO, 0, throughput_ratio, THROUGHPUT | RACK},
    FIELD(NUMBER, step_ms, ~0u),
    FIELD(PARTS, breakdown_ms, BREAKDOWN),
    FIELD(PARTS, busy_ms, 0),
    FIELD(NUMBER, gpu_utilisation, STEADY | BREAKDOWN),
    FIELD(NUMBER, pnm_utilisation, STEADY | BREAKDOWN),
    {"energy_to_baseline_paper", RATIO, 0, energy_ratio, ENERGY | RACK},
    FIELD(ACCOUNTS, energy_j, ENERGY | RACK),
    FIELD(ACCOUNTS, energy_gpu_j, ENERGY),
    FIELD(ACCOUNTS, energy_pnm_j, ENERGY),
    FIELD(ACCOUNTS, attention_j, ENERGY),
    FIELD(ACCOUNTS, fc_j, ENERGY),
    FIELD(NUMBER, usd_per_hour, COST),
    FIELD(NUMBER, tokens_per_usd, COST),
    {"tokens_per_usd_to_baseline", RATIO, 0, cost_ratio, COST},
    FIELD(NUMBER, usd_per_mtoken, COST),
    FIELD(NUMBER, full_usd_per_hour, COST),
    FIELD(NUMBER, full_tokens_per_usd, COST),
    FIELD(NUMBER, full_usd_per_mtoken, COST),
    FIELD(NUMBER, recalled_pages, RECALL | STEADY),
    FIELD(NUMBER, recalled_pages_error, RECALL | STEADY),
    FIELD(COUNT, n_samples, RECALL | STEADY),
    FIELD(NUMBER, steady_hit, STEADY),
    FIELD(NUMBER, link_bytes_per_token, RECALL),
    FIELD(NUMBER, recall_bytes_per_token, RECALL | STEADY),
    FIELD(NUMBER, pnm_bytes_per_token, 0),
    FIELD(NUMBER, pnm_flops_per_token, 0),
    FIELD(NUMBER, gpu_bytes_per_token, 0),
    FIELD(NUMBER, gpu_flops_per_token, 0),
    FIELD(NUMBER, kv_capacity_used, 0),
    FIELD(NUMBER, attended_bytes_per_token, 0),
    FIELD(NUMBER, gpu_attended_bytes_per_token, 0),
    FIELD(COUNT, mapping, 0), /* its number */
    FIELD(COUNT, n_whole, 0),
    FIELD(COUNT, n_spread, 0),
    FIELD(COUNT, mapping_group, 0),
    FIELD(NUMBER, layer_transfers, 0),
    FIELD(NUMBER, layer_sorts, 0),
    FIELD(NUMBER, layer_reduce_messages, 0),
    FIELD(NUMBER, layer_list_messages, 0),
    FIELD(NUMBER, layer_select_bytes, 0),
    FIELD(NUMBER, layer_select_ms, 0),
};

#define N_COLUMNS (sizeof columns / sizeof *columns)

static bool has(const struct column *c, unsigned figure)
{
    return c->figures & figure && !(figure == POINTS && c->kind == RATIO);
}

static uint32_t n_items(const struct column *c)
{
    return c->kind == PARTS ? NKV_SIM_PART_COUNT : c->kind == ACCOUNTS ? NKV_SIM_ACCOUNT_COUNT : 1;
}

static const char *item_name(const struct column *c, uint32_t item)
{
    return c->kind == PARTS ? nkv_sim_part_name((enum nkv_sim_part)item)
                            : nkv_sim_account_name((enum nkv_sim_account)item);
}

static double item_value(const struct column *c, paper_ptr paper, point_ptr point, uint32_t item)
{
    const char *at = (const char *)&point->report + c->offset;

    if (point->status < 0)
        return NAN;
    if (c->kind == RATIO)
        return c->ratio(paper, point);
    return c->kind == COUNT ? (double)*(const uint32_t *)(const void *)at : ((const double *)(const void *)at)[item];
}

/* ---- Files ---- */

static void put_number(FILE *file, double value)
{
    if (isfinite(value))
        fprintf(file, ",%.9g", value);
    else
        fputc(',', file);
}

static void put_comment(paper_ptr paper, const char *what, FILE *file)
{
    fprintf(file, "# simulated by nearkv %s: %s;", nkv_version(), what);
    for (uint32_t i = 0; i < paper->n_assumptions; i++)
        fprintf(file, " %s=%s%s", paper->assumptions[i].name, paper->assumptions[i].chosen,
                i + 1 < paper->n_assumptions ? "," : "\n");
}

static void put_header(unsigned figure, FILE *file)
{
    fputs("machine,model,context_tokens,n_gpus,n_pnm,mode,adaptive,system,status", file);
    for (size_t i = 0; i < N_COLUMNS; i++) {
        const struct column *c = &columns[i];

        if (!has(c, figure))
            continue;
        for (uint32_t item = 0; item < n_items(c); item++)
            if (n_items(c) == 1)
                fprintf(file, ",%s", c->name);
            else
                fprintf(file, ",%s_%s", c->name, item_name(c, item));
    }
    fputc('\n', file);
}

static void put_point(paper_ptr paper, point_ptr p, unsigned figure, FILE *file)
{
    fprintf(file, "%s,%s,%u,%u,%u,%s,%d,%s,", p->rack ? "rack" : "server", p->model, p->context_tokens, p->n_gpus,
            p->n_pnm, nkv_mode_name(p->mode), p->adaptive, sim_point_system(p));
    text_put_csv(file, p->status < 0 ? p->error : "ok");
    for (size_t i = 0; i < N_COLUMNS; i++)
        for (uint32_t item = 0; has(&columns[i], figure) && item < n_items(&columns[i]); item++)
            put_number(file, item_value(&columns[i], paper, p, item));
    fputc('\n', file);
}

void sim_rows_print(const struct sim_rows *rows, FILE *file)
{
    put_comment(rows->paper, figures[rows->figure].title, file);
    put_header(1u << rows->figure, file);
    for (uint32_t i = 0; i < rows->n; i++)
        put_point(rows->paper, rows->points[i], 1u << rows->figure, file);
}

void sim_points_print(paper_ptr paper, FILE *file)
{
    put_comment(paper, "every point, n_pnm of mode recall are plain memory cards", file);
    put_header(POINTS, file);
    for (uint32_t i = 0; i < paper->n_points; i++)
        put_point(paper, &paper->points[i], POINTS, file);
}

/* What moves the claim most, where the tornado table was asked for. */
static void put_mover(paper_ptr paper, const struct nkv_sim_claim *claim, FILE *file)
{
    if (isnan(claim->mover_low) || claim->mover_low == claim->mover_high) {
        fputs(",,,,,", file);
        return;
    }
    fprintf(file, ",%s,", paper->assumptions[claim->mover].name);
    text_put_csv(file, paper->assumptions[claim->mover].low);
    fputc(',', file);
    text_put_csv(file, paper->assumptions[claim->mover].high);
    put_number(file, claim->mover_low);
    put_number(file, claim->mover_high);
}

void sim_claims_print(paper_ptr paper, FILE *file)
{
    put_comment(paper, "claims of the paper, statements are 1 where they hold", file);
    fputs("id,text,numeric,paper,ours,ratio,verdict,mover,mover_low,mover_high,ours_at_low,ours_at_high,note\n", file);
    for (uint32_t i = 0; i < paper->n_claims; i++) {
        const struct nkv_sim_claim *c = &paper->claims[i];

        fprintf(file, "%s,", c->id);
        text_put_csv(file, c->text);
        fprintf(file, ",%d", c->numeric);
        put_number(file, c->paper);
        put_number(file, c->ours);
        put_number(file, c->numeric ? c->ours / c->paper : NAN);
        fprintf(file, ",%s", sim_verdict_name(c->verdict));
        put_mover(paper, c, file);
        fputc(',', file);
        text_put_csv(file, c->note);
        fputc('\n', file);
    }
}
