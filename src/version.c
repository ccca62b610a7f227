/* SPDX-License-Identifier: Apache-2.0 */
/* The library's version; also the one source of the shared library, whose other objects come from the layers. */
#include <nearkv/nearkv.h>

const char *nkv_version(void)
{
    return NKV_VERSION;
}
