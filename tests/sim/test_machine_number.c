/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers with every unit, texts that are none, and numbers as people read them. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "sim/machine.h"

struct number {
    const char *text;
    enum sim_unit unit;
    double value;
};

static void test_units(void **state)
{
    static const struct number numbers[] = {
        {"1", UNIT_BYTES, 1},
        {"2 B", UNIT_BYTES, 2},
        {"3KB", UNIT_BYTES, 3e3},
        {"80 GB", UNIT_BYTES, 80e9},
        {"1.5 PB", UNIT_BYTES, 1.5e15},
        {"1 KiB", UNIT_BYTES, 1024},
        {"512 GiB", UNIT_BYTES, 549755813888.0},
        {"4 TiB", UNIT_BYTES, 4398046511104.0},
        {"2.039 TB/s", UNIT_BYTES_PER_S, 2.039e12},
        {"1 MiB/s", UNIT_BYTES_PER_S, 1048576},
        {"312 TFLOP/s", UNIT_FLOPS, 312e12},
        {"1 PFLOP/s", UNIT_FLOPS, 1e15},
        {"5 KFLOP/s", UNIT_FLOPS, 5e3},
        {"2 s", UNIT_S, 2},
        {"2 ms", UNIT_S, 2e-3},
        {"12 us", UNIT_S, 12e-6},
        {"65 ns", UNIT_S, 65e-9},
        {"64 G/s", UNIT_PER_S, 64e9},
        {"7 1/s", UNIT_PER_S, 7},
        {"1 T/s", UNIT_PER_S, 1e12},
        {"400 W", UNIT_W, 400},
        {"10.2 kW", UNIT_W, 10200},
        {"4.5 pJ/bit", UNIT_J_PER_BIT, 4.5e-12},
        {"1 nJ/bit", UNIT_J_PER_BIT, 1e-9},
        {"1 J/bit", UNIT_J_PER_BIT, 1},
        {"0.5 pJ/FLOP", UNIT_J_PER_FLOP, 0.5e-12},
        {"20000 $", UNIT_USD, 20000},
        {"0.181 $/kWh", UNIT_USD_PER_KWH, 0.181},
        {"3 years", UNIT_YEARS, 3},
        {"90 %", UNIT_ONE, 0.9},
        {"90%", UNIT_ONE, 0.9},
        {"0.9", UNIT_ONE, 0.9},
        {" +1.25e-3  ", UNIT_ONE, 1.25e-3},
        {"-4E2", UNIT_ONE, -400},
        {".5", UNIT_ONE, 0.5},
        {"5.", UNIT_ONE, 5},
        {"0.1234567890123456789012345", UNIT_ONE, 0.1234567890123456789},
        {"123456789012345678901234567890", UNIT_ONE, 123456789012345678901234567890.0},
        {"1e-99999999999999999999", UNIT_ONE, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const struct number *n = &numbers[i];
        double value = NAN;

        if (sim_number_parse(n->text, n->unit, &value) < 0)
            fail_msg("%s: %s", n->text, nkv_last_error());
        if (!(fabs(value - n->value) <= 4e-16 * fabs(n->value)))
            fail_msg("%s is %.17g, not %.17g", n->text, value, n->value);
    }
}

static void test_bad_numbers(void **state)
{
    static const struct number numbers[] = {
        {"", UNIT_ONE, 0},           {"x", UNIT_ONE, 0},        {".", UNIT_ONE, 0},
        {"-", UNIT_ONE, 0},          {"1e", UNIT_ONE, 0},       {"1e+", UNIT_ONE, 0},
        {"1,5", UNIT_ONE, 0},        {"1 1", UNIT_ONE, 0},      {"1e400", UNIT_ONE, 0},
        {"infinity", UNIT_ONE, 0},   {"1 GB/s", UNIT_BYTES, 0}, {"1 GB", UNIT_BYTES_PER_S, 0},
        {"1 TFLOPS", UNIT_FLOPS, 0}, {"1 S", UNIT_S, 0},        {"1 %", UNIT_S, 0},
        {"1 W GB", UNIT_W, 0},       {"$ 1", UNIT_USD, 0},      {"1 pJ/bit", UNIT_J_PER_FLOP, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        double value = -1;

        if (sim_number_parse(numbers[i].text, numbers[i].unit, &value) != NKV_EINVAL)
            fail_msg("'%s' was taken", numbers[i].text);
        assert_true(value == -1);
        assert_non_null(strstr(nkv_last_error(), numbers[i].text));
    }
}

static void test_show(void **state)
{
    static const struct number shown[] = {
        {"2.039 TB/s", UNIT_BYTES_PER_S, 2.039e12},
        {"1 GB", UNIT_BYTES, 1e9},
        {"12 us", UNIT_S, 12e-6},
        {"1.5 s", UNIT_S, 1.5},
        {"0 s", UNIT_S, 0},
        {"0.9", UNIT_ONE, 0.9},
        {"4.5 pJ/bit", UNIT_J_PER_BIT, 4.5e-12},
        {"-2 kW", UNIT_W, -2000},
        {"1000 PFLOP/s", UNIT_FLOPS, 1e18},
        {"0.5 ns", UNIT_S, 0.5e-9},
        {"3 years", UNIT_YEARS, 3},
        {"999 B", UNIT_BYTES, 999},
    };

    (void)state;
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        char text[32];

        sim_number_show(shown[i].value, shown[i].unit, text, sizeof text);
        assert_string_equal(text, shown[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_show),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
