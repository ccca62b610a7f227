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

/* Decimal digits with at most one point. */
static int take_number(const char *rule, const char **at, double *number_out)
{
    size_t length = strspn(*at, "0123456789.");
    char digits[32], *end;

    if (length == 0 || length >= sizeof digits)
        return refuse(rule);
    memcpy(digits, *at, length);
    digits[length] = '\0';
    *number_out = strtod(digits, &end);
    if (*end != '\0')
        return refuse(rule);
    *at += length;
    return 0;
}

/* A number or a power of the context. */
static int take_factor(const char *rule, const char **at, double context, double *factor_out)
{
    const char *word = "context";
    double power = 1;

    if (strncmp(*at, word, strlen(word)) != 0)
        return take_number(rule, at, factor_out);
    *at += strlen(word);
    if (**at == '^') {
        ++*at;
        TRY(take_number(rule, at, &power));
    }
    *factor_out = pow(context, power);
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
    if (!(budget >= 1 && isfinite(budget)))
        FAIL(NKV_EINVAL, "budget '%.63s' is %g tokens at a context of %u: it must be a number of at least 1", rule,
             budget, context_tokens);
    *budget_out = budget > context_tokens ? context_tokens : (uint32_t)budget;
    return 0;
}
