/* SPDX-License-Identifier: Apache-2.0 */
#include <nearkv/nearkv.h>
#include <stdio.h>

int main(void)
{
    puts("nearkv " NKV_VERSION);
    return 0;
}
