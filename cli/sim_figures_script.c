/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The figures' gnuplot scripts. A script reads its CSV by column names, draws twice (SVG, PNG) and names files without
 * directories, so that DIR can be moved and its pictures drawn again.
 *
 * Bar charts share one layout: a bar per row of the CSV; bars of as many PNM devices stand together in a
 * cluster, clusters form groups (configurations). The places (array X, by row) and labels are computed here, what a bar
 * shows is the script's. Invariant: X has one place per row, NaN for rows that a figure leaves out, so that a point
 * which could not be simulated leaves a gap and shifts nothing.
 *
 * Colours are Okabe and Ito's and Tol's muted ones, which colour-blind readers tell apart. Rejected: gnuplot's
 * histogram style, which has no groups within groups, and values in the scripts, which would then differ from a CSV
 * that somebody edits.
 */
#include <ctype.h>
#include <string.h>

#include "cli.h"
#include "sim_figures.h"

typedef const struct nkv_sim_point *point_ptr;

/* ---- Names ---- */

/* "70B 128K" of llama-3.1-70b and 131072 tokens. */
static void put_work(point_ptr p, FILE *file)
{
    const char *dash = strrchr(p->model, '-');
    uint32_t n = p->context_tokens;

    for (const char *c = dash ? dash + 1 : p->model; *c; c++)
        fputc(toupper((unsigned char)*c), file);
    if (n % (1u << 20) == 0 || n % 1000000 == 0)
        fprintf(file, " %uM", n / 1000000);
    else
        fprintf(file, " %uK", n / 1024);
}

static void put_gpus(point_ptr p, const char *before, FILE *file)
{
    fprintf(file, "%s%u GPU%s", before, p->n_gpus, p->n_gpus == 1 ? "" : "s");
}

/* On two lines. */
static void put_config(point_ptr p, FILE *file)
{
    put_work(p, file);
    put_gpus(p, "\\n", file);
}

static void put_system(point_ptr p, FILE *file)
{
    fprintf(file, "%s\\n%s", sim_point_system(p),
            p->mode == NKV_MODE_RECALL ? "number of GPUs" : "1 GPU + PNM devices");
}

static void put_devices(point_ptr p, FILE *file)
{
    if (p->mode == NKV_MODE_RECALL)
        fputs("baseline", file);
    else
        fprintf(file, "%u", p->n_pnm);
}

static void put_gpus_or_devices(point_ptr p, FILE *file)
{
    fprintf(file, "%u", p->mode == NKV_MODE_RECALL ? p->n_gpus : p->n_pnm);
}

static void put_mode(point_ptr p, FILE *file)
{
    if (p->mode == NKV_MODE_RECALL)
        fputs("baseline", file);
    else
        fprintf(file, "%s %u", sim_point_system(p), p->n_pnm);
}

/* ---- The layout of bar charts ---- */

#define GROUP_GAP   1.6
#define CLUSTER_GAP 0.7

static bool same_config(point_ptr a, point_ptr b)
{
    return strcmp(a->model, b->model) == 0 && a->context_tokens == b->context_tokens && a->n_gpus == b->n_gpus &&
           a->rack == b->rack;
}

static bool same_devices(point_ptr a, point_ptr b)
{
    return same_config(a, b) && a->n_pnm == b->n_pnm && (a->mode == NKV_MODE_RECALL) == (b->mode == NKV_MODE_RECALL);
}

static bool same_system(point_ptr a, point_ptr b)
{
    return a->mode == b->mode && a->adaptive == b->adaptive;
}

static bool same_point(point_ptr a, point_ptr b)
{
    return a == b;
}

static bool is_any(point_ptr p)
{
    return p != NULL;
}

static bool is_pnm(point_ptr p)
{
    return p->mode != NKV_MODE_RECALL;
}

static bool is_fixed_share(point_ptr p)
{
    return !p->adaptive;
}

/* What a bar chart shows, and how its bars stand together. */
struct grouping {
    bool (*shows)(point_ptr p);
    bool (*same_group)(point_ptr a, point_ptr b);
    bool (*same_cluster)(point_ptr a, point_ptr b); /* within a group: stands together */
    bool (*same_tick)(point_ptr a, point_ptr b);    /* within a cluster: shares a label */
    void (*put_group)(point_ptr p, FILE *file);     /* NULL: no label */
    void (*put_tick)(point_ptr p, FILE *file);
};

/* Places the bars and tells gnuplot where: X by row. returns: the number of bars. */
static uint32_t put_places(const struct sim_rows *rows, const struct grouping *g, FILE *file)
{
    struct sim_bar *bars = rows->bars;
    uint32_t n = 0;

    fprintf(file, "array X[%u] = [", rows->n);
    for (uint32_t i = 0; i < rows->n; i++) {
        point_ptr p = rows->points[i];

        fputs(i ? ", " : "", file);
        if (!g->shows(p)) {
            fputs("NaN", file);
            continue;
        }
        bars[n] = (struct sim_bar){.point = p};
        if (n > 0)
            bars[n].x = bars[n - 1].x + 1 +
                        (!g->same_group(bars[n - 1].point, p)     ? GROUP_GAP
                         : !g->same_cluster(bars[n - 1].point, p) ? CLUSTER_GAP
                                                                  : 0);
        fprintf(file, "%g", bars[n++].x);
    }
    fputs("]\n", file);
    return n;
}

/* The first bar from i on that is not the same as bar i. */
static uint32_t run_end(const struct sim_bar *bars, uint32_t n, uint32_t i, bool (*same)(point_ptr a, point_ptr b))
{
    uint32_t end = i + 1;

    while (end < n && same(bars[i].point, bars[end].point))
        end++;
    return end;
}

static void put_ticks(const struct grouping *g, const struct sim_bar *bars, uint32_t n, FILE *file)
{
    fputs("set xtics (", file);
    for (uint32_t i = 0, end; i < n; i = end) {
        end = run_end(bars, n, i, g->same_tick);
        fputs(i ? ", \"" : "\"", file);
        g->put_tick(bars[i].point, file);
        fprintf(file, "\" %g", (bars[i].x + bars[end - 1].x) / 2);
    }
    fputs(")\n", file);
}

static void put_groups(const struct grouping *g, const struct sim_bar *bars, uint32_t n, FILE *file)
{
    for (uint32_t i = 0, end; g->put_group && i < n; i = end) {
        end = run_end(bars, n, i, g->same_group);
        fputs("set label \"", file);
        g->put_group(bars[i].point, file);
        fprintf(file, "\" at first %g, graph 0 center offset 0, group_offset\n", (bars[i].x + bars[end - 1].x) / 2);
        if (end < n)
            fprintf(file, "set arrow from first %g, graph 0 to first %g, graph 1 nohead lc rgb '#bbbbbb'\n",
                    (bars[end - 1].x + bars[end].x) / 2, (bars[end - 1].x + bars[end].x) / 2);
    }
}

static void put_layout(const struct sim_rows *rows, const struct grouping *g, FILE *file)
{
    uint32_t n = put_places(rows, g, file);

    put_ticks(g, rows->bars, n, file);
    put_groups(g, rows->bars, n, file);
    fprintf(file, "set xrange [-1.2:%g]\n", n ? rows->bars[n - 1].x + 1.2 : 1);
}

/* ---- What the figures draw ---- */

static const struct grouping by_devices = {is_pnm, same_config, same_devices, same_devices, put_config, put_devices};
static const struct grouping rack_by_devices = {is_any, same_config, same_devices, same_devices, NULL, put_devices};
static const struct grouping by_mode = {is_fixed_share, same_config, same_devices, same_point, put_config, put_mode};
static const struct grouping by_system = {is_any, same_system, same_point, same_point, put_system, put_gpus_or_devices};

static const char preamble[] =
    "reset\n"
    "set datafile separator ','\n"
    "set datafile columnheaders\n"
    "set style fill solid 1 noborder\n"
    "set tics nomirror out\n"
    "set border 3 lc rgb '#444444'\n"
    "set grid ytics lc rgb '#dddddd' lt 1\n"
    "row(n) = int(n) + 1\n"
    "array SYSTEM[4] = ['baseline', 'PNM-KV', 'PnG-KV', 'PnG-KV adaptive']\n"
    "array LINE[8] = [0x000000, 0xe69f00, 0x56b4e9, 0x009e73, 0xcc79a7, 0x0072b2, 0xd55e00, 0x777777]\n"
    "array POINT[8] = [7, 5, 9, 11, 6, 4, 8, 10]\n"
    "array COLOUR[4] = [0x777777, 0x0072b2, 0xe69f00, 0x009e73]\n"
    "place(s) = strcol('system') eq SYSTEM[s] ? X[row(column(0))] : NaN\n"
    "x(n) = X[row(column(0))]\n"
    "known(c, v) = strcol(c) eq '' ? v : column(c)\n"
    "short(v) = v == 0 ? '0' : v < 9.95 ? sprintf('%.2f', v) : v < 99.5 ? sprintf('%.1f', v) : sprintf('%.0f', v)\n"
    "text(c) = strcol(c) eq '' ? '' : short(column(c))\n";

static const char draw_recall[] =
    "    set multiplot layout 1,2 title heading font ',15' offset 0,-0.3 margins 0.07,0.98,0.13,0.86 spacing 0.09\n"
    "    set logscale x 2\n"
    "    set xrange [20*1024:1500*1024]\n"
    "    set xtics ('32K' 32768, '64K' 65536, '128K' 131072, '256K' 262144, '512K' 524288, '1M' 1048576)\n"
    "    set xlabel 'context [tokens]'\n"
    "    set yrange [0:*]\n"
    "    set offsets 0, 0, graph 0.1, 0\n"
    "    set key off\n"
    "    set ylabel 'recalled pages per layer and request'\n"
    "    plot data using 'context_tokens':'recalled_pages' with lines lw 2 lc rgb COLOUR[2], \\\n"
    "        '' using 'context_tokens':'recalled_pages':'recalled_pages_error' with yerrorbars pt 7 ps 1.2 lw 1.5 \\\n"
    "            lc rgb COLOUR[2], \\\n"
    "        '' using (column('context_tokens')):(known('recalled_pages', 0)):(text('recalled_pages')) \\\n"
    "            with labels right offset -0.8,0.7\n"
    "    set ylabel 'batch [requests]'\n"
    "    plot data using 'context_tokens':'batch' with linespoints lw 2 pt 5 ps 1.2 lc rgb COLOUR[3], \\\n"
    "        '' using (column('context_tokens')):(known('batch', 0)):(strcol('batch')) \\\n"
    "            with labels left offset 0.8,0.7\n"
    "    unset multiplot\n";

static const char draw_steady[] =
    "    set multiplot layout 1,2 title heading font ',15' offset 0,-0.3 margins 0.06,0.83,0.13,0.88 spacing 0.08\n"
    "    set logscale x 2\n"
    "    set xrange [0.85:9.4]\n"
    "    set xtics (1, 2, 4, 8)\n"
    "    set xlabel 'PNM devices'\n"
    "    set yrange [0:*]\n"
    "    set offsets 0, 0, graph 0.05, 0\n"
    "    set ylabel 'recalled pages per layer and request'\n"
    "    set key off\n"
    "    plot for [i=1:lines] data every ::FIRST[i]::LAST[i] using 'n_pnm':'recalled_pages' \\\n"
    "        with linespoints lw 2 pt POINT[i] ps 1.3 lc rgb LINE[i]\n"
    "    set ylabel 'GPU utilisation [%]'\n"
    "    set key at screen 0.995, screen 0.88 right top reverse Left samplen 2.5 spacing 1.6\n"
    "    plot for [i=1:lines] data every ::FIRST[i]::LAST[i] using 'n_pnm':(100 * column('gpu_utilisation')) \\\n"
    "        with linespoints lw 2 pt POINT[i] ps 1.3 lc rgb LINE[i] title NAME[i]\n"
    "    unset multiplot\n";

/* The last plot keeps room for the labels above the bars. Labels have a place where the value is unknown, too: gnuplot
 * 5.4 crashes when a plot has no label at all. */
static const char draw_throughput[] =
    "    set title heading font ',15'\n"
    "    set logscale y 2\n"
    "    set ylabel 'throughput / baseline, log scale'\n"
    "    y(n) = column('throughput_to_baseline')\n"
    "    top(n) = known('throughput_to_baseline', 1) < 1 ? 1 : known('throughput_to_baseline', 1)\n"
    "    plot for [s=2:4] data using (place(s)):(y(0)):(place(s) - 0.45):(place(s) + 0.45):(1):(y(0)) \\\n"
    "            with boxxyerror lc rgb COLOUR[s] title SYSTEM[s], \\\n"
    "        1 with lines lw 2 dt 2 lc rgb COLOUR[1] title 'baseline (recall to the GPUs) = 1', \\\n"
    "        data using (x(0)):(top(0)):(text('throughput_to_baseline')) \\\n"
    "            with labels rotate by 90 left offset 0,0.3 font ',9' notitle, \\\n"
    "        data using (x(0)):(1.8 * top(0)):('') with labels notitle\n";

static const char draw_energy[] =
    "    set title heading font ',15'\n"
    "    set ylabel \"energy per token / baseline\\n(above the bars: J per token)\"\n"
    "    set yrange [0:*]\n"
    "    y(n) = column('energy_to_baseline_paper')\n"
    "    gpu(n) = y(0) * column('energy_gpu_j_paper') / column('energy_j_paper')\n"
    "    plot for [s=2:4] data using (place(s)):(0):(place(s) - 0.45):(place(s) + 0.45):(0):(gpu(0)) \\\n"
    "            with boxxyerror lc rgb COLOUR[s] title SYSTEM[s], \\\n"
    "        for [s=2:4] data using (place(s)):(0):(place(s) - 0.45):(place(s) + 0.45):(gpu(0)):(y(0)) \\\n"
    "            with boxxyerror lc rgb COLOUR[s] fs solid 0.4 noborder notitle, \\\n"
    "        NaN with boxes lc rgb COLOUR[1] title 'full colour: GPUs', \\\n"
    "        NaN with boxes lc rgb COLOUR[1] fs solid 0.4 noborder title 'light: PNM devices and links', \\\n"
    "        1 with lines lw 2 dt 2 lc rgb COLOUR[1] title 'baseline = 1', \\\n"
    "        data using (x(0)):(known('energy_to_baseline_paper', 0)):(text('energy_j_paper')) \\\n"
    "            with labels rotate by 90 left offset 0,0.3 font ',9' notitle, \\\n"
    "        data using (x(0)):(1.1 * known('energy_to_baseline_paper', 0)):('') with labels notitle\n";

static const char draw_rack[] =
    "    set multiplot layout 1,2 title heading font ',15' offset 0,-0.3 margins 0.07,0.98,0.13,0.82 spacing 0.09\n"
    "    set yrange [0:*]\n"
    "    set offsets 0, 0, graph 0.08, 0\n"
    "    set xlabel 'PNM devices (16 in a node)'\n"
    "    set ylabel 'throughput [tokens/s]'\n"
    "    set key at screen 0.53, screen 0.91 center top horizontal reverse Left samplen 1.5 maxrows 1 width 1\n"
    "    plot for [s=1:4] data using (place(s)):(column('tokens_per_s')):(0.9) with boxes lc rgb COLOUR[s] \\\n"
    "            title SYSTEM[s], \\\n"
    "        data using (x(0)):(known('tokens_per_s', 0)):(text('tokens_per_s')) \\\n"
    "            with labels offset 0,0.6 font ',10' notitle\n"
    "    set key off\n"
    "    set ylabel 'energy per token [J], account \"paper\"'\n"
    "    plot for [s=1:4] data using (place(s)):(column('energy_j_paper')):(0.9) with boxes lc rgb COLOUR[s], \\\n"
    "        data using (x(0)):(known('energy_j_paper', 0)):(text('energy_j_paper')) \\\n"
    "            with labels offset 0,0.6 font ',10'\n"
    "    unset multiplot\n";

static const char draw_breakdown[] =
    "    set title heading font ',15'\n"
    "    set ylabel 'time of a step [ms]'\n"
    "    set yrange [0:*]\n"
    "    set xtics rotate by 90 right font ',9'\n"
    "    upto(k) = k == 0 ? 0 : (sum [i=1:k] column(COLUMN[i]))\n"
    "    plot for [k=1:|PART|] data using (x(0)):(0):(x(0) - 0.45):(x(0) + 0.45):(upto(k - 1)):(upto(k)) \\\n"
    "            with boxxyerror lc rgb PART[k] title WORD[k]\n";

static const char draw_cost[] =
    "    set title heading font ',15'\n"
    "    set ylabel \"tokens per dollar [millions]\\n(above the bars: against the baseline's 1 GPU)\"\n"
    "    set yrange [0:*]\n"
    "    set offsets 0, 0, graph 0.08, 0\n"
    "    set key off\n"
    "    y(n) = column('tokens_per_usd') / 1e6\n"
    "    plot for [s=1:4] data using (place(s)):(y(0)):(0.9) with boxes lc rgb COLOUR[s], \\\n"
    "        data using (x(0)):(known('tokens_per_usd', 0) / 1e6):(text('tokens_per_usd_to_baseline')) \\\n"
    "            with labels offset 0,0.6 font ',10'\n";

/* ---- What the scripts know about the rows ---- */

static void put_devices_layout(const struct sim_rows *rows, FILE *file)
{
    fputs("group_offset = -2.6\n"
          "set lmargin 14\n"
          "set bmargin 8\n"
          "set label 'PNM devices' at graph 0, graph 0 right offset -1.5,-1\n"
          "set key at screen 0.5, screen 0.02 center bottom horizontal reverse Left samplen 1.5 maxrows 1 width 1\n",
          file);
    put_layout(rows, &by_devices, file);
}

static void put_rack_layout(const struct sim_rows *rows, FILE *file)
{
    put_layout(rows, &rack_by_devices, file);
}

static void put_system_layout(const struct sim_rows *rows, FILE *file)
{
    fputs("group_offset = -2.6\nset bmargin 5.5\n", file);
    put_layout(rows, &by_system, file);
}

static void put_breakdown_layout(const struct sim_rows *rows, FILE *file)
{
    static const struct {
        const char *word, *colour;
    } parts[NKV_SIM_PART_COUNT] = {
        [NKV_SIM_FC] = {"FC", "332288"},
        [NKV_SIM_ALLREDUCE] = {"all-reduce", "88ccee"},
        [NKV_SIM_SCORE] = {"score", "44aa99"},
        [NKV_SIM_TOPK] = {"Top-K", "117733"},
        [NKV_SIM_ATTEND_PNM] = {"attention, PNM", "ddcc77"},
        [NKV_SIM_ATTEND_GPU] = {"attention, GPU", "cc6677"},
        [NKV_SIM_RECALL] = {"recall", "882255"},
        [NKV_SIM_LINK] = {"link", "aa4499"},
        [NKV_SIM_APPEND] = {"append", "999933"},
        [NKV_SIM_OTHER] = {"other", "bbbbbb"},
    };

    fprintf(file, "array PART[%d]\narray WORD[%d]\narray COLUMN[%d]\n", NKV_SIM_PART_COUNT, NKV_SIM_PART_COUNT,
            NKV_SIM_PART_COUNT);
    for (enum nkv_sim_part p = 0; p < NKV_SIM_PART_COUNT; p++)
        fprintf(file, "COLUMN[%d] = 'breakdown_ms_%s'; WORD[%d] = '%s'; PART[%d] = 0x%s\n", (int)p + 1,
                nkv_sim_part_name(p), (int)p + 1, parts[p].word, (int)p + 1, parts[p].colour);
    fputs("group_offset = -6.3\n"
          "set lmargin 10\n"
          "set bmargin 11.5\n"
          "set key at screen 0.5, screen 0.02 center bottom horizontal reverse Left samplen 1.5 maxrows 1\n",
          file);
    put_layout(rows, &by_mode, file);
}

/* The rows of each line. */
static void put_lines(const struct sim_rows *rows, FILE *file)
{
    uint32_t n = 0;

    fprintf(file, "array NAME[%u]\narray FIRST[%u]\narray LAST[%u]\n", rows->n, rows->n, rows->n);
    for (uint32_t i = 0; i < rows->n; i++) {
        if (i == 0 || !same_config(rows->points[i - 1], rows->points[i])) {
            n++;
            fprintf(file, "FIRST[%u] = %u; NAME[%u] = \"", n, i, n);
            put_work(rows->points[i], file);
            put_gpus(rows->points[i], ", ", file);
            fputs("\"\n", file);
        }
        fprintf(file, "LAST[%u] = %u\n", n, i);
    }
    fprintf(file, "lines = %u\n", n);
}

static void put_nothing(const struct sim_rows *rows, FILE *file)
{
    (void)rows;
    (void)file;
}

static const struct {
    uint32_t width, height;
    void (*put_rows)(const struct sim_rows *rows, FILE *file);
    const char *draw;
} scripts[SIM_FIG_COUNT] = {
    [SIM_FIG_RECALL] = {1200, 480, put_nothing, draw_recall},
    [SIM_FIG_STEADY] = {1300, 560, put_lines, draw_steady},
    [SIM_FIG_THROUGHPUT] = {1700, 620, put_devices_layout, draw_throughput},
    [SIM_FIG_ENERGY] = {1700, 620, put_devices_layout, draw_energy},
    [SIM_FIG_RACK] = {1300, 540, put_rack_layout, draw_rack},
    [SIM_FIG_BREAKDOWN] = {1700, 760, put_breakdown_layout, draw_breakdown},
    [SIM_FIG_COST] = {1100, 540, put_system_layout, draw_cost},
};

void sim_script_print(const struct sim_rows *rows, FILE *file)
{
    const char *name = sim_figure_name(rows->figure), *title = sim_figure_title(rows->figure);
    uint32_t width = scripts[rows->figure].width, height = scripts[rows->figure].height;

    fprintf(file, "# simulated by nearkv %s: %s. Draws %s.svg and %s.png from %s.csv: gnuplot fig%02u.gp\n",
            nkv_version(), title, name, name, name, sim_figure_number(rows->figure));
    fputs(preamble, file);
    fprintf(file, "data = '%s.csv'\nheading = '%s (simulated; figure %u of the paper)'\n", name, title,
            sim_figure_number(rows->figure));
    scripts[rows->figure].put_rows(rows, file);
    fprintf(file,
            "do for [kind in 'svg png'] {\n"
            "    eval 'set terminal '.(kind eq 'svg' ? 'svg' : 'pngcairo').\" size %u,%u font 'sans-serif,12' "
            "noenhanced background 'white'\"\n"
            "    set output '%s.'.kind\n",
            width, height, name);
    fputs(scripts[rows->figure].draw, file);
    fputs("}\nset output\n", file);
}
