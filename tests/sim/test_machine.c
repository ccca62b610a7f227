/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every built-in machine loads and says where each number comes from; a file with one defect is refused with its line
 * and what would be right; setting, copying, and every allocation failing.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "sim/load.h"
#include "sim/machine.h"

static struct nkv_sim_machine *open_machine(const char *name)
{
    struct nkv_sim_machine *machine = NULL;

    if (nkv_sim_machine_open(name, &machine) < 0)
        fail_msg("%s: %s", name, nkv_last_error());
    return machine;
}

static int read_text(const char *text, size_t bytes, struct nkv_sim_machine **machine_out)
{
    char *copy = malloc(bytes ? bytes : 1); /* exactly its size, for AddressSanitizer */
    int status;

    assert_non_null(copy);
    memcpy(copy, text, bytes);
    status = sim_machine_read(copy, bytes, "m.yaml", machine_out);
    free(copy);
    return status;
}

/* ---- Built-in machines */

static void test_builtins(void **state)
{
    static const char *const expected[] = {"cpu-socket", "h100-server",  "h200-server",
                                           "paper-rack", "paper-server", "samsung-2025"};

    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct nkv_sim_machine *machine = open_machine(expected[i]);
        struct nkv_sim_number number;
        uint32_t n = 0;

        assert_string_equal(nkv_sim_machine_builtin(i), expected[i]);
        assert_string_equal(nkv_sim_machine_name(machine), expected[i]);
        assert_true(machine->about[0]);
        assert_int_equal(sim_machine_check(machine), 0);
        for (; nkv_sim_machine_number(machine, n, &number) == 0; n++) {
            assert_ptr_equal(number.key, sim_keys[n].name);
            assert_int_equal(sim_key_check(n, number.value, "shown"), 0);
            assert_true(strlen(number.source) > 5 && strcmp(number.source, "default") != 0);
        }
        assert_int_equal(n, sim_n_keys);
        nkv_sim_machine_close(machine);
    }
    assert_null(nkv_sim_machine_builtin(6));
    nkv_sim_machine_close(NULL);
}

/* The paper's server as the simulator sees it, and a number that carries each unit. */
static void test_paper_server(void **state)
{
    struct nkv_sim_machine *machine = open_machine("paper-server");
    const struct sim_values *v = &machine->values;
    struct nkv_sim_number number;

    (void)state;
    assert_true(v->gpu.memory_capacity == 80.0 * 1073741824);
    assert_true(v->gpu.memory_bandwidth == 2039e9);
    assert_true(v->gpu.compute_rate == 312e12);
    assert_true(v->gpu.price == 20000);
    assert_true(v->pnm.memory_capacity == 512.0 * 1073741824);
    assert_true(v->pnm.memory_bandwidth == 1.1e12);
    assert_true(v->pnm.card_power == 150);
    assert_true(fabs(v->pnm.memory_energy - 4e-12) < 1e-24);
    assert_true(fabs(v->pnm.access_latency - 65e-9) < 1e-18);
    assert_true(v->pnm.sort_rate == 4e9);
    assert_true(v->cost.electricity == 0.181);
    assert_true(v->cost.years == 3);
    assert_true(v->cost.utilisation == 1);
    assert_true(v->node.gpus_per_node == 8);
    assert_int_equal(nkv_sim_machine_number(machine, (uint32_t)sim_key_find("pnm.memory_bandwidth"), &number), 0);
    assert_string_equal(number.unit, "B/s");
    assert_true(number.value == 1.1e12);
    assert_non_null(strstr(number.source, "the paper"));
    assert_int_equal(nkv_sim_machine_number(machine, sim_n_keys, &number), NKV_ENOENT);
    nkv_sim_machine_close(machine);
}

/* What a file does not give comes from its base, with the base's source. */
static void test_base(void **state)
{
    struct nkv_sim_machine *paper = open_machine("paper-server"), *rack = open_machine("paper-rack");
    struct nkv_sim_machine *h200 = open_machine("h200-server"), *h100 = open_machine("h100-server");

    (void)state;
    for (uint32_t i = 0; i < sim_n_keys; i++) {
        bool own = strncmp(sim_keys[i].name, "node.gpus", 9) == 0 || strcmp(sim_keys[i].name, "node.pnm") == 0;

        assert_int_equal(strcmp(rack->sources[i], paper->sources[i]) != 0, own);
    }
    assert_true(rack->values.node.pnm_per_node == 16);
    assert_true(h200->values.gpu.compute_rate == h100->values.gpu.compute_rate);
    assert_true(h200->values.pnm.card_power == paper->values.pnm.card_power);
    assert_true(h200->values.gpu.memory_bandwidth == 4.8e12);
    nkv_sim_machine_close(h100);
    nkv_sim_machine_close(h200);
    nkv_sim_machine_close(rack);
    nkv_sim_machine_close(paper);
}

/* ---- Files with one defect */

static const struct sim_builtin *builtin(const char *name)
{
    for (uint32_t i = 0; i < sim_n_builtins; i++)
        if (strcmp(sim_builtins[i].name, name) == 0)
            return &sim_builtins[i];
    fail_msg("no %s", name);
    return NULL;
}

/* The text with the first `find` replaced; *line_out is the line of it. */
static char *replace(const struct sim_builtin *file, const char *find, const char *with, size_t *bytes_out,
                     uint32_t *line_out)
{
    char *text = calloc(1, file->bytes + strlen(with) + 1), *at;

    assert_non_null(text);
    memcpy(text, file->text, file->bytes);
    at = strstr(text, find);
    if (!at)
        fail_msg("the file has no '%s'", find);
    *line_out = 1;
    for (const char *c = text; c < at; c++)
        *line_out += *c == '\n';
    memmove(at + strlen(with), at + strlen(find), strlen(at + strlen(find)) + 1);
    memcpy(at, with, strlen(with));
    *bytes_out = strlen(text);
    return text;
}

/* Refused with "m.yaml:LINE: TEXT..."; line 0: no line. */
static void expect_refused(const char *text, size_t bytes, uint32_t line, const char *message)
{
    struct nkv_sim_machine *machine = NULL;
    char start[256];
    int status = read_text(text, bytes, &machine);

    if (line > 0)
        snprintf(start, sizeof start, "m.yaml:%u: %s", line, message);
    else
        snprintf(start, sizeof start, "m.yaml: %s", message);
    if (strncmp(nkv_last_error(), start, strlen(start)) != 0)
        fail_msg("expected '%s', got '%s'", start, nkv_last_error());
    assert_int_equal(status, NKV_EFORMAT);
    assert_null(machine);
}

struct defect {
    const char *find, *with;
    const char *message;
};

static const struct defect defects[] = {
    /* numbers */
    {"2039, unit: GB/s", "2039000, unit: TB/s",
     "gpu.memory_bandwidth is 2039000 TB/s: it must be from 1 GB/s to 1 PB/s"},
    {"2039, unit", "-2039, unit", "gpu.memory_bandwidth is -2039 GB/s: it must be from 1 GB/s to 1 PB/s"},
    {"2039, unit", ".nan, unit", "gpu.memory_bandwidth: '.nan GB/s' is not a number"},
    {"2039, unit", "nan, unit", "gpu.memory_bandwidth: 'nan GB/s' is not a number"},
    {"2039, unit", "inf, unit", "gpu.memory_bandwidth: 'inf GB/s' is not a number"},
    {"2039, unit", "1e999, unit", "gpu.memory_bandwidth: '1e999 GB/s' is not a number"},
    {"2039, unit", "0x7f7, unit", "gpu.memory_bandwidth: '0x7f7 GB/s' has an unknown unit: use B/s, KB/s"},
    {"2039, unit", "2.0.39, unit", "gpu.memory_bandwidth: '2.0.39 GB/s' is not a number"},
    {"2039, unit", "many, unit", "gpu.memory_bandwidth: 'many GB/s' is not a number"},
    {"2039, unit: GB/s", "2039, unit: GB",
     "gpu.memory_bandwidth: '2039 GB' has an unknown unit: use B/s, KB/s, MB/s, GB/s, TB/s, PB/s, KiB/s, MiB/s, "
     "GiB/s, TiB/s"},
    {"2039, unit: GB/s", "2039, unit: gb/s", "gpu.memory_bandwidth: '2039 gb/s' has an unknown unit: use B/s"},
    {"2039, unit: GB/s", "2039", "gpu.memory_bandwidth has no unit: its base unit is B/s"},
    {"2039, unit: GB/s", "2039, unit: ", "gpu.memory_bandwidth has no unit: its base unit is B/s"},
    {"0.88, source", "0.94, unit: GB, source", "gpu.memory_usable: '0.94 GB' has an unknown unit: use no unit, %"},
    {"0.88, source", "94, source", "gpu.memory_usable is 94: it must be from 0.1 to 1"},
    {"value: 2039, ", "", "gpu.memory_bandwidth has no value"},
    {"value: 2039", "value: ", "gpu.memory_bandwidth has no value"},
    {"2039, unit", "20390000000000000000000000000000000000000000000000000000000000, unit",
     "gpu.memory_bandwidth: '203900000000000000000000000000...' is too long for a number"},
    {"65, unit: ns", "65, unit: s", "pnm.access_latency is 65 s: it must be from 0 s to 100 us"},
    {"4.0, unit: pJ/bit", "4.5, unit: J/bit", "pnm.memory_energy is 4.5 J/bit: it must be from 0 J/bit to 1 nJ/bit"},
    {"100, unit: \"%\"", "100", "cost.utilisation is 100: it must be from 0.01 to 1"},
    /* sources */
    {", source: \"the paper: 32 VPUs x 128 multipliers x 2 at 1 GHz, FP16\"", "",
     "pnm.compute_rate has no source: every number says where it comes from"},
    {"\"the paper: 32 VPUs x 128 multipliers x 2 at 1 GHz, FP16\"", "\"  \"", "pnm.compute_rate has no source"},
    {"\"the paper: 32 VPUs x 128 multipliers x 2 at 1 GHz, FP16\"", "", "pnm.compute_rate has no source"},
    {"the paper: 32 VPUs",
     "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
     "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
     "pnm.compute_rate.source is 257 bytes long: at most 199 are allowed"},
    /* keys */
    {"  memory_bandwidth: {value: 2039", "  memory_bandwith: {value: 2039",
     "unknown key 'gpu.memory_bandwith': the nearest is memory_bandwidth"},
    {"  exp_rate", "  exp-rate", "unknown key 'pnm.exp-rate': the nearest is exp_rate"},
    {"link:", "links:", "unknown key 'links': the keys here are name, about, base, gpu, pnm, link, node, cost"},
    {"source: \"calibrated: the paper's batch", "sources: \"calibrated: the paper's batch",
     "unknown key 'gpu.memory_usable.sources': the keys here are value, unit, source"},
    {"  compute_rate: {value: 312", "  memory_bandwidth: {value: 312", "gpu.memory_bandwidth is given twice"},
    {"node:", "gpu:", "gpu is given twice"},
    {"value: 2039, unit", "unit: GB/s, unit", "gpu.memory_bandwidth.unit is given twice"},
    {"about: one", "name: one", "name is given twice"},
    {"name: paper-server", "name: ", "name is missing: a machine has one"},
    {"name: paper-server", "name: 0123456789012345678901234567890123456789012345678901234567890123",
     "name is 64 bytes long: at most 63 are allowed"},
    {"about: one", "base: paper\nabout: one", "no built-in machine 'paper': there are cpu-socket"},
    /* contradictions */
    {"busy_power: {value: 400", "busy_power: {value: 476",
     "gpu.busy_power is 476 W: it must not be more than gpu.peak_power, which is 400 W"},
    {"idle_power: {value: 60", "idle_power: {value: 500",
     "gpu.idle_power is 500 W: it must not be more than gpu.busy_power, which is 400 W"},
    {"efficiency_64: {value: 0.673", "efficiency_64: {value: 0.95",
     "pnm.efficiency_64 is 0.95: it must not be more than pnm.efficiency_sequential, which is 0.927"},
    {"controller_power: {value: 90", "controller_power: {value: 190",
     "pnm.controller_power is 190 W: it must not be more than pnm.card_power, which is 150 W"},
    {"shared_recall: {value: 1", "shared_recall: {value: 0.5", "link.shared_recall is 0.5: it must be a whole number"},
    /* shapes */
    {"{value: 2039, unit: GB/s,", "2039 #", "gpu.memory_bandwidth: Expecting MAPPING, got event: SCALAR"},
    {"{value: 2039", "{value: {value: 2039}", "gpu.memory_bandwidth.value: Expecting STRING, got event: MAPPING"},
    {"{value: 2039", "{value: {value: {a: 2039}}", "mappings are nested too deep"},
    {"{value: 2039", "{value: [2039]", "lists are not allowed"},
    {"{value: 2039", "{value: &a 2039", "anchors are not allowed"},
    {"{value: 2039", "&a {value: 2039", "anchors are not allowed"},
    {"{value: 2039", "{value: *a", "aliases are not allowed"},
    {"{value: 2039", "{<<: 2039", "unknown key 'gpu.memory_bandwidth.<<': the keys here are value, unit, source"},
    {"  memory_bandwidth: {value: 2039", "  {a: b}: {value: 2039", "a key must be a word"},
    {"{value: 2039", "{value: \"2039\\0\"", "a NUL character"},
    {"{value: 2039", "{value: 2039\xff", "invalid leading UTF-8 octet"},
    {"{value: 2039", "{value: 2039\x01", "control characters are not allowed"},
    {"{value: 2039", "}value: 2039", "did not find expected node content"},
    {"  compute_rate: {value: 312", "\tcompute_rate: {value: 312", "found character that cannot start any token"},
    {"link:", "---\nlink:", "a second document: a file holds one"},
};

static void test_defects(void **state)
{
    const struct sim_builtin *file = builtin("paper-server");

    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        const struct defect *d = &defects[i];
        size_t bytes;
        uint32_t line;
        char *text = replace(file, d->find, d->with, &bytes, &line);

        expect_refused(text, bytes, line, d->message);
        free(text);
    }
}

static void expect_text_refused(const char *text, uint32_t line, const char *message)
{
    expect_refused(text, strlen(text), line, message);
}

/* Texts that are no machine at all. */
static void test_no_machine(void **state)
{
    char *nested = malloc(100000);
    static const char zeros[64];

    (void)state;
    expect_text_refused("", 1, "the file is empty");
    expect_text_refused("# nothing\n", 1, "the file is empty");
    expect_text_refused("---\n", 2, "the file is empty");
    expect_text_refused("paper-server\n", 1, "the file must be a mapping: KEY: VALUE");
    expect_text_refused("- a\n", 1, "lists are not allowed");
    expect_text_refused("name: a\nname\n", 3, "could not find expected ':'");
    expect_text_refused("name: x\n", 0, "gpu.memory_capacity is missing (HBM of one GPU)");
    expect_text_refused("name: x\ngpu: {}\n", 2, "gpu.memory_capacity is missing (HBM of one GPU)");
    expect_text_refused("name: x\ngpu:\n", 2, "gpu: Expecting MAPPING, got event: SCALAR");
    expect_text_refused("about: x\nbase: paper-server\n", 0, "name is missing: a machine has one");
    expect_text_refused("name: x\nbase: x\n", 2, "no built-in machine 'x'");
    expect_text_refused("\xff\xfe\x6e", 1, "invalid leading UTF-8 octet");
    expect_text_refused("name: a\nx: b\nx: c\n", 2, "unknown key 'x'");
    expect_text_refused("name: a\nabout: b\nname: c\nname: d\n", 4, "name is given twice");
    expect_refused("name: a\0\n", 9, 1, "control characters are not allowed");
    expect_refused(zeros, sizeof zeros, 1, "control characters are not allowed");
    assert_non_null(nested);
    memset(nested, '{', 100000);
    expect_refused(nested, 100000, 1, "a key must be a word");
    memset(nested, '[', 100000);
    expect_refused(nested, 100000, 1, "lists are not allowed");
    free(nested);
}

/* An override that contradicts a number of the base: the line is the override's, or none where it has none. */
static void test_contradicts_base(void **state)
{
    (void)state;
    expect_text_refused("name: x\nbase: paper-server\npnm:\n  idle_power: {value: 200, unit: W, source: s}\n", 4,
                        "pnm.idle_power is 200 W: it must not be more than pnm.card_power, which is 150 W");
    expect_text_refused("name: x\nbase: paper-server\npnm:\n  card_power: {value: 20, unit: W, source: s}\n", 3,
                        "pnm.controller_power is 90 W: it must not be more than pnm.card_power, which is 20 W");
}

/* A number that is not there: the line of its section. */
static void test_missing(void **state)
{
    size_t bytes;
    uint32_t line, gpu_line = 7;
    char *text = replace(builtin("paper-server"), "  price: {value: 20000", "  # price", &bytes, &line);

    (void)state;
    expect_refused(text, bytes, gpu_line, "gpu.price is missing (of one GPU)");
    free(text);
}

static void test_defaults(void **state)
{
    size_t bytes;
    uint32_t line;
    char *text = replace(builtin("paper-server"), "  efficiency_64: ", "  # ", &bytes, &line);
    struct nkv_sim_machine *machine = NULL;
    int key = sim_key_find("pnm.efficiency_64");

    (void)state;
    assert_int_equal(read_text(text, bytes, &machine), 0);
    assert_true(machine->values.pnm.efficiency_64 == 0.673);
    assert_string_equal(machine->sources[key], "default");
    nkv_sim_machine_close(machine);
    free(text);
}

/* ---- Paths */

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

static void test_paths(void **state)
{
    const struct sim_builtin *file = builtin("cpu-socket");
    struct nkv_sim_machine *machine = NULL;
    char path[] = "/tmp/nkv-machine-XXXXXX", *large = calloc(1, SIM_FILE_BYTES + 1);
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0 && large);
    close(fd);
    write_file(path, file->text, file->bytes);
    machine = open_machine(path);
    assert_string_equal(nkv_sim_machine_name(machine), "cpu-socket");
    nkv_sim_machine_close(machine);
    machine = NULL;
    write_file(path, large, SIM_FILE_BYTES + 1);
    assert_int_equal(nkv_sim_machine_open(path, &machine), NKV_EFORMAT);
    assert_non_null(strstr(nkv_last_error(), "larger than 1 MiB"));
    unlink(path);
    free(large);
    assert_int_equal(nkv_sim_machine_open(path, &machine), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "the built-in machines are cpu-socket, h100-server, h200-server, "
                                             "paper-rack, paper-server, samsung-2025"));
    assert_int_equal(nkv_sim_machine_open("/tmp", &machine), NKV_EIO);
    assert_int_equal(nkv_sim_machine_open(NULL, &machine), NKV_EINVAL);
    assert_null(machine);
}

/* ---- Keys, set, copy */

static void test_keys(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < sim_n_keys; i++)
        assert_int_equal(sim_key_find(sim_keys[i].name), i);
    assert_int_equal(sim_key_find("memory_bandwidth"), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "near are gpu.memory_bandwidth, pnm.memory_bandwidth and"));
    assert_int_equal(sim_key_find("pnm.sort_rat"), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "near are pnm.sort_rate,"));
    assert_int_equal(sim_key_find(""), NKV_ENOENT);
    assert_int_equal(sim_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(sim_edit_distance("", "abc"), 3);
    assert_int_equal(sim_edit_distance("abc", ""), 3);
}

static void test_set(void **state)
{
    static const char *const refused[] = {"gpu.price",       "=3",           "",
                                          "gpu.price=",      "gpu.price=x",  "gpu.price=3 GB",
                                          "gpu.price=1e8",   "gpu.price=-1", "gpu.peak_power=nan",
                                          "gpu.peak_power=0"};
    struct nkv_sim_machine *machine = open_machine("paper-server"), *copy = NULL;
    int key = sim_key_find("gpu.memory_bandwidth");

    (void)state;
    assert_int_equal(nkv_sim_machine_copy(machine, &copy), 0);
    assert_int_equal(nkv_sim_machine_set(copy, "gpu.memory_bandwidth=2 TB/s"), 0);
    assert_true(copy->values.gpu.memory_bandwidth == 2e12);
    assert_true(machine->values.gpu.memory_bandwidth == 2039e9);
    assert_string_equal(copy->sources[key], "set to 2 TB/s");
    assert_int_equal(nkv_sim_machine_set(copy, "gpu.memory_bandwidth=3e12"), 0);
    assert_true(copy->values.gpu.memory_bandwidth == 3e12);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(nkv_sim_machine_set(copy, refused[i]), NKV_EINVAL);
    assert_int_equal(nkv_sim_machine_set(copy, NULL), NKV_EINVAL);
    assert_int_equal(nkv_sim_machine_set(copy, "gpu.prize=3"), NKV_ENOENT);
    assert_non_null(strstr(nkv_last_error(), "gpu.price"));
    assert_true(copy->values.gpu.price == machine->values.gpu.price);
    /* one at a time they may contradict; the check is for when all are set */
    assert_int_equal(nkv_sim_machine_set(copy, "gpu.busy_power=500 W"), 0);
    assert_int_equal(sim_machine_check(copy), NKV_EINVAL);
    assert_int_equal(nkv_sim_machine_set(copy, "gpu.peak_power=0.7 kW"), 0);
    assert_int_equal(sim_machine_check(copy), 0);
    nkv_sim_machine_close(copy);
    nkv_sim_machine_close(machine);
}

/* ---- Efficiency */

static void expect_efficiency(const struct sim_values *values, double access_bytes, double write_share, double expected)
{
    double efficiency = sim_pnm_efficiency(values, access_bytes, write_share);

    if (!(fabs(efficiency - expected) < 1e-12))
        fail_msg("%g bytes, %g writes: %.15g, not %.15g", access_bytes, write_share, efficiency, expected);
}

static void test_efficiency(void **state)
{
    struct nkv_sim_machine *machine = open_machine("paper-server");
    const struct sim_values *v = &machine->values;

    (void)state;
    expect_efficiency(v, 32, 0, 0.394);
    expect_efficiency(v, 64, 0, 0.673);
    expect_efficiency(v, 128, 0, (0.673 + 0.902) / 2);
    expect_efficiency(v, 256, 0, 0.902);
    expect_efficiency(v, 512, 0, 0.899);
    expect_efficiency(v, 4096, 0, 0.902);
    expect_efficiency(v, 1e6, 0, 0.902);
    expect_efficiency(v, 1, 0, 0.394);
    expect_efficiency(v, INFINITY, 0, 0.927);
    expect_efficiency(v, INFINITY, 0.05, (0.927 + 0.892) / 2);
    expect_efficiency(v, INFINITY, 0.1, 0.892);
    expect_efficiency(v, INFINITY, 0.3, (0.892 + 0.751) / 2);
    expect_efficiency(v, INFINITY, 0.5, 0.751);
    expect_efficiency(v, INFINITY, 1, 0.751);
    expect_efficiency(v, 64, 0.5, 0.673 * 0.751 / 0.927);
    nkv_sim_machine_close(machine);
}

/* ---- Allocations: any one may fail, libcyaml's among them; then nothing leaks and the message says so. */

static void test_allocations(void **state)
{
    uint64_t n = 0;
    int status;

    (void)state;
    do {
        struct nkv_sim_machine *machine = NULL, *copy = NULL;

        nkv_mem_fail_at(++n);
        status = nkv_sim_machine_open("h100-server", &machine);
        if (status == 0)
            status = nkv_sim_machine_copy(machine, &copy);
        nkv_mem_fail_at(0);
        assert_true(status == 0 || status == NKV_ENOMEM);
        assert_int_equal(status == 0, copy != NULL);
        if (status < 0)
            assert_non_null(strstr(nkv_last_error(), "out of memory"));
        nkv_sim_machine_close(copy);
        nkv_sim_machine_close(machine);
    } while (status < 0);
    assert_true(n > 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_builtins),    cmocka_unit_test(test_paper_server),
        cmocka_unit_test(test_base),        cmocka_unit_test(test_defects),
        cmocka_unit_test(test_no_machine),  cmocka_unit_test(test_contradicts_base),
        cmocka_unit_test(test_missing),     cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_paths),       cmocka_unit_test(test_keys),
        cmocka_unit_test(test_set),         cmocka_unit_test(test_efficiency),
        cmocka_unit_test(test_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
