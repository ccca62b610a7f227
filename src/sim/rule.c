/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Budget rules: "4096", "context/4", "0.3*context", "2*context^0.8". A rule is a product of numbers and powers of the
 * context, which is all that published budgets need; an expression language was left out.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <nearkv/sim.h>

#include "base/status.h"

static int refuse(const char *rule)
{
    FAIL(NKV_EINVAL, "budget '%.63s': write a number of tokens, or a rule like context/4, 0.3*context or 2*context^0.8",
         rule);
}

/* A number or a power of the context. */
static int take_factor(const char *rule, const char **at, double context, double *factor_out)
{
    const char *word = "context";
    char *end;

    if (strncmp(*at, word, strlen(word)) != 0) {
        if (!strchr("0123456789.", **at) || **at == '\0')
            return refuse(rule);
        *factor_out = strtod(*at, &end);
        *at = end;
        return 0;
    }
    *at += strlen(word);
    *factor_out = context;
    if (**at == '^') {
        double power = strtod(*at + 1, &end);

        if (end == *at + 1)
            return refuse(rule);
        *at = end;
        *factor_out = pow(context, power);
    }
    return 0;
}

int nkv_sim_budget(const char *rule, uint32_t context_tokens, uint32_t *budget_out)
{
    const char *at = rule;
    double budget = 0, factor = 0;

    TRY(take_factor(rule, &at, context_tokens, &budget));
    while (*at == '*' || *at == '/') {
        bool divide = *at++ == '/';

        TRY(take_factor(rule, &at, context_tokens, &factor));
        budget = divide ? budget / factor : budget * factor;
    }
    if (*at != '\0')
        return refuse(rule);
    if (!(budget >= 1))
        FAIL(NKV_EINVAL, "budget '%.63s' is %g tokens at a context of %u: it must be at least 1", rule, budget,
             context_tokens);
    *budget_out = budget > context_tokens ? context_tokens : (uint32_t)budget;
    return 0;
}
