/* SPDX-License-Identifier: Apache-2.0 */
typedef int nkv_layer_has_no_code_yet;
