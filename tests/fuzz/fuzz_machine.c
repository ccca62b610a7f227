/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a machine file, then as a model file, then (up to the first NUL) as an assignment to a machine: each is
 * refused with a status and a message, or gives numbers that lie in their ranges.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sim/machine.h"
#include "sim/model.h"

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void check_numbers(const struct nkv_sim_machine *machine)
{
    struct nkv_sim_number number;
    uint32_t n = 0;

    for (; nkv_sim_machine_number(machine, n, &number) == 0; n++)
        check(sim_key_check(n, number.value, "shown") == 0 && number.source[0] != 0);
    check(n == sim_n_keys);
}

static void check_status(int status)
{
    check(status == 0 || (status == NKV_EFORMAT && nkv_last_error()[0] != 0));
}

static void read_machine(const char *text, size_t bytes)
{
    struct nkv_sim_machine *machine = NULL, *copy = NULL;
    int status = sim_machine_read(text, bytes, "fuzz", &machine);

    check_status(status);
    check((status == 0) == (machine != NULL));
    if (status < 0)
        return;
    check(sim_machine_check(machine) == 0);
    check(nkv_sim_machine_copy(machine, &copy) == 0);
    check_numbers(copy);
    nkv_sim_machine_close(copy);
    nkv_sim_machine_close(machine);
}

static void read_model(const char *text, size_t bytes)
{
    struct nkv_sim_model model = {0};
    int status = sim_model_read(text, bytes, "fuzz", &model);

    check_status(status);
    check(status < 0 || (sim_model_check(&model) == 0 && nkv_sim_model_parameters(&model) > 0));
}

static void set(const char *text, size_t bytes)
{
    static struct nkv_sim_machine *machine;
    char assignment[256];

    if (!machine)
        check(nkv_sim_machine_open("paper-server", &machine) == 0);
    bytes = bytes < sizeof assignment ? bytes : sizeof assignment - 1;
    memcpy(assignment, text, bytes);
    assignment[bytes] = 0;
    if (nkv_sim_machine_set(machine, assignment) < 0)
        check(nkv_last_error()[0] != 0);
    check_numbers(machine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    read_machine((const char *)data, bytes);
    read_model((const char *)data, bytes);
    set((const char *)data, bytes);
    return 0;
}
