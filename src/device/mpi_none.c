/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Built without MPI: every call is there and says so, so that programs link and tell their users what is missing. CMake
 * takes this file in place of the other mpi*.c. A library without these symbols was rejected: each of its users would
 * have to know how it was built.
 */
#include <nearkv/parallel.h>

#include "base/status.h"
#include "device/backend.h"

#define REMEDY "this nearkv was built without MPI: install OpenMPI (libopenmpi-dev, openmpi-bin) and build it again"

bool nkv_mpi_available(void)
{
    return false;
}

bool nkv_mpi_launched(uint32_t *rank_out, uint32_t *size_out)
{
    (void)rank_out, (void)size_out;
    return false;
}

int nkv_mpi_open(struct nkv_mpi **mpi_out)
{
    (void)mpi_out;
    FAIL(NKV_ENOTSUP, REMEDY);
}

void nkv_mpi_info(const struct nkv_mpi *mpi, struct nkv_mpi_info *info_out)
{
    (void)mpi;
    *info_out = (struct nkv_mpi_info){.size = 1, .n_local = 1};
}

bool nkv_mpi_unbind(const struct nkv_mpi *mpi)
{
    (void)mpi;
    return false;
}

int nkv_mpi_agree(struct nkv_mpi *mpi, int32_t value, int32_t *value_out, uint32_t *rank_out)
{
    (void)mpi, (void)value, (void)value_out, (void)rank_out;
    FAIL(NKV_ENOTSUP, REMEDY);
}

int nkv_mpi_comm(struct nkv_mpi *mpi, uint32_t n, struct nkv_comm **comm_out)
{
    (void)mpi, (void)n, (void)comm_out;
    FAIL(NKV_ENOTSUP, REMEDY);
}

int nkv_mpi_serve(struct nkv_mpi *mpi)
{
    (void)mpi;
    FAIL(NKV_ENOTSUP, REMEDY);
}

int nkv_mpi_release(struct nkv_mpi *mpi, uint32_t first)
{
    (void)mpi, (void)first;
    FAIL(NKV_ENOTSUP, REMEDY);
}

void nkv_mpi_close(struct nkv_mpi *mpi)
{
    (void)mpi;
}

void nkv_mpi_abort(struct nkv_mpi *mpi, int exit_status)
{
    (void)mpi, (void)exit_status;
}

void nkv_mpi_traffic(const struct nkv_mpi *mpi, struct nkv_mpi_traffic *traffic_out)
{
    (void)mpi;
    *traffic_out = (struct nkv_mpi_traffic){0};
}

int nkv_mpi_device_open(const char *args, const struct nkv_device_config *config, struct nkv_device **device_out)
{
    (void)config, (void)device_out;
    FAIL(NKV_ENOTSUP, "device mpi:%.32s: " REMEDY, args);
}
