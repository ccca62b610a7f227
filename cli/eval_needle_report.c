/* SPDX-License-Identifier: Apache-2.0 */
/* The table and the JSON object of `nearkv eval needle`. */
#include "eval_needle.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"

void eval_print_head(const struct eval_needle *eval)
{
    const struct session_options *o = &eval->session_options;

    printf("%s, %s cache, pages of %u tokens, budget %u tokens, %u device%s, %s kernels\n", eval->session.info.name,
           nkv_dtype_name(o->kv), o->page_tokens, o->seq.budget_tokens, eval->session.n_devices,
           eval->session.n_devices == 1 ? "" : "s", nkv_kernels_name());
    fflush(stdout);
}

void eval_print_case(const struct eval_case *c)
{
    printf("\nkey %s at depth %.2f; text fed in %.1f s (%s)\n", c->key, c->depth, c->prefill_s,
           c->sparse ? "sparse" : "dense");
    printf("%-7s %-14s %-6s %10s %9s %14s %16s %9s\n", "mode", "answer", "", "TTFT", "TPOT", "tokens/step",
           "link bytes/token", "recalled");
    for (uint32_t i = 0; i < c->n_rows; i++) {
        const struct eval_row *r = &c->rows[i];

        printf("%-7s %-14.14s %-6s %8.2f s %6.2f ms %14.0f %16.0f %9llu\n", nkv_mode_name(r->mode), r->text,
               r->right ? "right" : "WRONG", r->ttft_ms / 1e3, r->tpot_ms, r->attended_tokens, r->link_bytes,
               (unsigned long long)r->recalled_pages);
    }
    fflush(stdout);
}

static json_t *row_json(const struct eval_case *c, const struct eval_row *r)
{
    return json_pack("{s:f, s:s, s:s, s:o, s:b, s:f, s:f, s:f, s:f, s:I}", "depth", c->depth, "key", c->key, "mode",
                     nkv_mode_name(r->mode), "answer", text_json(r->text, strlen(r->text)), "right", (int)r->right,
                     "ttft_ms", r->ttft_ms, "tpot_ms", r->tpot_ms, "attended_tokens_mean", r->attended_tokens,
                     "link_bytes_per_token", r->link_bytes, "recalled_pages", (json_int_t)r->recalled_pages);
}

int eval_print_json(const struct eval_needle *eval)
{
    const struct session_options *o = &eval->session_options;
    json_t *results = json_array(), *root;
    int n_right = 0, n = 0;
    double prefill_s = 0;

    for (uint32_t i = 0; i < eval->n_cases; i++) {
        const struct eval_case *c = &eval->cases[i];

        prefill_s += c->prefill_s;
        for (uint32_t r = 0; r < c->n_rows; r++, n++) {
            n_right += c->rows[r].right;
            json_array_append_new(results, row_json(c, &c->rows[r]));
        }
    }
    root =
        json_pack("{s:s, s:o, s:I, s:i, s:s, s:I, s:s, s:f, s:o, s:i, s:i}", "schema", "nearkv.eval.needle/1", "model",
                  text_json(eval->session.info.name, strlen(eval->session.info.name)), "ctx_tokens",
                  (json_int_t)(eval->ctx_tokens ? eval->ctx_tokens : eval->n_hay), "page_tokens", (int)o->page_tokens,
                  "kv", nkv_dtype_name(o->kv), "budget_tokens", (json_int_t)o->seq.budget_tokens, "prefill",
                  eval->n_cases && eval->cases[0].sparse ? "sparse" : "dense", "prefill_s", prefill_s, "results",
                  results, "n_right", n_right, "n_total", n);
    return text_print_json(root);
}
