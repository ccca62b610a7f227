/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers with units. A unit is looked up in one table of every spelling per dimension; the message of a wrong one is
 * that table's part, so the two cannot disagree. Bytes have decimal (KB) and binary (KiB) prefixes, all else decimal.
 *
 * Decimals are read here and not by strtod, which follows the process's locale ("1,1") and also takes hexadecimal
 * numbers, "inf" and "nan". Up to 15 digits and powers to 1e22, both exact in a double, are rounded once, as strtod.
 */
#include "sim/machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"

struct unit_name {
    enum sim_unit unit;
    const char *name;
    double factor; /* of the base unit */
};

/* Per dimension ascending, decimal prefixes before binary ones. */
static const struct unit_name unit_names[] = {
    {UNIT_BYTES, "B", 1},
    {UNIT_BYTES, "KB", 1e3},
    {UNIT_BYTES, "MB", 1e6},
    {UNIT_BYTES, "GB", 1e9},
    {UNIT_BYTES, "TB", 1e12},
    {UNIT_BYTES, "PB", 1e15},
    {UNIT_BYTES, "KiB", 1024.0},
    {UNIT_BYTES, "MiB", 1048576.0},
    {UNIT_BYTES, "GiB", 1073741824.0},
    {UNIT_BYTES, "TiB", 1099511627776.0},
    {UNIT_BYTES_PER_S, "B/s", 1},
    {UNIT_BYTES_PER_S, "KB/s", 1e3},
    {UNIT_BYTES_PER_S, "MB/s", 1e6},
    {UNIT_BYTES_PER_S, "GB/s", 1e9},
    {UNIT_BYTES_PER_S, "TB/s", 1e12},
    {UNIT_BYTES_PER_S, "PB/s", 1e15},
    {UNIT_BYTES_PER_S, "KiB/s", 1024.0},
    {UNIT_BYTES_PER_S, "MiB/s", 1048576.0},
    {UNIT_BYTES_PER_S, "GiB/s", 1073741824.0},
    {UNIT_BYTES_PER_S, "TiB/s", 1099511627776.0},
    {UNIT_FLOPS, "FLOP/s", 1},
    {UNIT_FLOPS, "KFLOP/s", 1e3},
    {UNIT_FLOPS, "MFLOP/s", 1e6},
    {UNIT_FLOPS, "GFLOP/s", 1e9},
    {UNIT_FLOPS, "TFLOP/s", 1e12},
    {UNIT_FLOPS, "PFLOP/s", 1e15},
    {UNIT_S, "ns", 1e-9},
    {UNIT_S, "us", 1e-6},
    {UNIT_S, "ms", 1e-3},
    {UNIT_S, "s", 1},
    {UNIT_PER_S, "1/s", 1},
    {UNIT_PER_S, "K/s", 1e3},
    {UNIT_PER_S, "M/s", 1e6},
    {UNIT_PER_S, "G/s", 1e9},
    {UNIT_PER_S, "T/s", 1e12},
    {UNIT_PER_S, "P/s", 1e15},
    {UNIT_W, "W", 1},
    {UNIT_W, "kW", 1e3},
    {UNIT_J_PER_BIT, "pJ/bit", 1e-12},
    {UNIT_J_PER_BIT, "nJ/bit", 1e-9},
    {UNIT_J_PER_BIT, "J/bit", 1},
    {UNIT_J_PER_FLOP, "pJ/FLOP", 1e-12},
    {UNIT_J_PER_FLOP, "nJ/FLOP", 1e-9},
    {UNIT_J_PER_FLOP, "J/FLOP", 1},
    {UNIT_USD, "$", 1},
    {UNIT_USD_PER_KWH, "$/kWh", 1},
    {UNIT_YEARS, "years", 1},
    {UNIT_ONE, "", 1},
    {UNIT_ONE, "%", 0.01},
};

#define N_UNIT_NAMES (sizeof unit_names / sizeof *unit_names)

const char *sim_unit_base(enum sim_unit unit)
{
    for (uint32_t i = 0; i < N_UNIT_NAMES; i++)
        if (unit_names[i].unit == unit && unit_names[i].factor == 1)
            return unit_names[i].name;
    return "";
}

void sim_number_show(double value, enum sim_unit unit, char *text, size_t bytes)
{
    const struct unit_name *best = NULL;

    for (const struct unit_name *u = unit_names; u < unit_names + N_UNIT_NAMES; u++) {
        if (u->unit != unit || strstr(u->name, "iB") || *u->name == '%')
            continue;
        if (value == 0 ? u->factor == 1 : !best || u->factor <= fabs(value) * (1 + 1e-9))
            best = u;
    }
    snprintf(text, bytes, "%.6g%s%s", value / best->factor, *best->name ? " " : "", best->name);
}

static void list_units(enum sim_unit unit, char *list, size_t bytes)
{
    size_t used = 0;

    for (uint32_t i = 0; i < N_UNIT_NAMES && used < bytes; i++)
        if (unit_names[i].unit == unit)
            used += (size_t)snprintf(list + used, bytes - used, "%s%s", used ? ", " : "",
                                     *unit_names[i].name ? unit_names[i].name : "no unit");
}

/* Digits and one point; returns how many digits. *exponent falls by one per digit after the point. */
static uint32_t read_digits(const char **at, double *mantissa, int *exponent)
{
    uint32_t n = 0;
    bool fraction = false;

    for (;; (*at)++) {
        if (**at == '.' && !fraction) {
            fraction = true;
        } else if (**at >= '0' && **at <= '9') {
            if (*mantissa < 1e17)
                *mantissa = *mantissa * 10 + (**at - '0');
            else if (*exponent < 9999)
                (*exponent)++;
            if (fraction && *exponent > -9999)
                (*exponent)--;
            n++;
        } else {
            return n;
        }
    }
}

static bool read_exponent(const char **at, int *exponent)
{
    int sign = 1, value = 0;

    if (**at != 'e' && **at != 'E')
        return true;
    (*at)++;
    if (**at == '-' || **at == '+')
        sign = *(*at)++ == '-' ? -1 : 1;
    if (**at < '0' || **at > '9')
        return false;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        value = value < 9999 ? value * 10 + (**at - '0') : value;
    *exponent += sign * value;
    return true;
}

static bool read_decimal(const char **at, double *value_out)
{
    double sign = 1, mantissa = 0;
    int exponent = 0;

    if (**at == '-' || **at == '+')
        sign = *(*at)++ == '-' ? -1 : 1;
    if (read_digits(at, &mantissa, &exponent) == 0 || !read_exponent(at, &exponent))
        return false;
    *value_out = sign * (exponent < 0 ? mantissa / pow(10, -exponent) : mantissa * pow(10, exponent));
    return isfinite(*value_out);
}

int sim_number_parse(const char *text, enum sim_unit unit, double *value_out)
{
    char list[160];
    const char *at = text + strspn(text, " ");
    double value = 0;
    size_t bytes;

    if (!read_decimal(&at, &value) || (*at && *at != ' ' && strspn(at, ".0123456789+-")))
        FAIL(NKV_EINVAL, "'%.60s' is not a number", text);
    at += strspn(at, " ");
    for (bytes = strlen(at); bytes > 0 && at[bytes - 1] == ' '; bytes--)
        continue;
    for (uint32_t i = 0; i < N_UNIT_NAMES; i++) {
        const struct unit_name *u = &unit_names[i];

        if (u->unit == unit &&
            (bytes == 0 ? u->factor == 1 : strlen(u->name) == bytes && !memcmp(u->name, at, bytes))) {
            *value_out = value * u->factor;
            return 0;
        }
    }
    list_units(unit, list, sizeof list);
    FAIL(NKV_EINVAL, "'%.60s' has an unknown unit: use %s", text, list);
}
