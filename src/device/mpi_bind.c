/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OpenMPI's mpirun binds each of one or two processes to a core when nobody tells it how, which is right for programs
 * of one thread and makes ours share that core. So a process frees itself, where three things hold: the launcher says
 * that it bound it; none of the parameters that bind is set (MPI_T tells their values, wherever they come from: the
 * command line, the environment, a parameter file of the user or of the site); and the CPUs are those of one core. It
 * then has the CPUs of its parent, the launcher, so that what limits that one (taskset, a cgroup) still holds.
 *
 * Where any of it is different the binding stays: somebody chose it, or cannot be told from one who did (OpenMPI 5 and
 * other launchers do not say). Leaving it to users to give --bind-to none was rejected: nothing but the time of a step
 * tells those who do not know.
 */
#define _GNU_SOURCE
#include <hwloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/mpi_job.h"

/* Longer than any value of a parameter of OpenMPI's. */
#define VALUE_BYTES 4096

/* returns: whether a parameter has a value that is neither 0 nor empty. */
static bool is_set(const char *name)
{
    char value[VALUE_BYTES] = {0};
    int index, count, first, verbosity, bind, scope;
    MPI_T_cvar_handle handle;
    MPI_Datatype type;
    bool fits;

    if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS ||
        MPI_T_cvar_get_info(index, NULL, NULL, &verbosity, &type, NULL, NULL, NULL, &bind, &scope) != MPI_SUCCESS ||
        MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) != MPI_SUCCESS)
        return false;
    fits = type == MPI_CHAR ? count <= VALUE_BYTES : count == 1;
    if (fits)
        fits = MPI_T_cvar_read(handle, value) == MPI_SUCCESS;
    (void)MPI_T_cvar_handle_free(&handle);
    memcpy(&first, value, sizeof first);
    return fits && (type == MPI_CHAR ? value[0] != '\0' : first != 0);
}

static bool was_told(void)
{
    static const char *const names[] = {
        "hwloc_base_binding_policy", "hwloc_base_bind_to_core",   "hwloc_base_bind_to_socket", "hwloc_base_cpu_list",
        "rmaps_base_bycore",         "rmaps_base_mapping_policy", "rmaps_base_cpus_per_rank",  "orte_rankfile",
    };
    bool told = false;
    int provided;

    if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names && !told; i++)
        told = is_set(names[i]);
    (void)MPI_T_finalize();
    return told;
}

static bool is_one_core(hwloc_topology_t topology, hwloc_const_cpuset_t cpus)
{
    hwloc_obj_t covering = hwloc_get_obj_covering_cpuset(topology, cpus);

    return covering && covering->depth >= hwloc_get_type_or_below_depth(topology, HWLOC_OBJ_CORE);
}

static bool widen(hwloc_topology_t topology, hwloc_cpuset_t own, hwloc_cpuset_t parents)
{
    return hwloc_get_cpubind(topology, own, HWLOC_CPUBIND_PROCESS) == 0 && is_one_core(topology, own) &&
           hwloc_get_proc_cpubind(topology, getppid(), parents, HWLOC_CPUBIND_PROCESS) == 0 &&
           hwloc_bitmap_isincluded(own, parents) && !hwloc_bitmap_isequal(own, parents) &&
           hwloc_set_cpubind(topology, parents, HWLOC_CPUBIND_PROCESS) == 0;
}

bool nkv_mpi_unbind(const struct nkv_mpi *mpi)
{
    const char *bound = getenv("OMPI_MCA_orte_bound_at_launch");
    hwloc_cpuset_t own, parents;
    hwloc_topology_t topology;
    bool freed = false;

    (void)mpi; /* MPI is there */
    if (!bound || strcmp(bound, "1") != 0 || was_told() || hwloc_topology_init(&topology) != 0)
        return false;
    own = hwloc_bitmap_alloc();
    parents = hwloc_bitmap_alloc();
    if (own && parents && hwloc_topology_load(topology) == 0)
        freed = widen(topology, own, parents);
    hwloc_bitmap_free(own);
    hwloc_bitmap_free(parents);
    hwloc_topology_destroy(topology);
    return freed;
}
