/* SPDX-License-Identifier: Apache-2.0 */
/* eval_needle.h: between what asks (eval_needle.c) and what prints the table (eval_needle_report.c). */
#ifndef NKV_CLI_EVAL_NEEDLE_H
#define NKV_CLI_EVAL_NEEDLE_H

#include "generate.h"
#include "text.h"

#define EVAL_MAX_DEPTHS 32u
#define EVAL_MAX_TEXTS  16u

/* One answer of one mode. */
struct eval_row {
    enum nkv_mode mode;
    char text[64];
    bool right;
    double ttft_ms, tpot_ms;
    double attended_tokens; /* per decode step and layer */
    double link_bytes;      /* per token */
    uint64_t recalled_pages;
};

/* One key at one depth. */
struct eval_case {
    double depth;
    char key[8];
    double prefill_s;
    bool sparse;
    struct eval_row rows[NKV_MODE_COUNT];
    uint32_t n_rows;
};

struct eval_needle {
    struct session_options session_options;
    struct session session;
    const char *file;
    const char *texts[EVAL_MAX_TEXTS];
    uint32_t n_texts;
    uint32_t ctx_tokens; /* haystack, key and question together; 0: all of FILE */
    enum nkv_mode modes[NKV_MODE_COUNT];
    uint32_t n_modes;
    double depths[EVAL_MAX_DEPTHS];
    uint32_t n_depths;
    uint64_t seed;
    bool json;

    int32_t *hay;
    size_t n_hay;
    struct eval_case cases[EVAL_MAX_DEPTHS];
    uint32_t n_cases;
};

void eval_print_head(const struct eval_needle *eval);
void eval_print_case(const struct eval_case *c);
int eval_print_json(const struct eval_needle *eval);

#endif
