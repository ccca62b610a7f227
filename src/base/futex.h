/* SPDX-License-Identifier: Apache-2.0 */
/* base/futex.h: to sleep on a word of memory until another thread of this process changes it (Linux), and to spin
 * politely. */
#ifndef NKV_BASE_FUTEX_H
#define NKV_BASE_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Sleeps while *word == value; may return early. */
void nkv_futex_wait(_Atomic uint32_t *word, uint32_t value);
/* Wakes all that sleep on word. */
void nkv_futex_wake(_Atomic uint32_t *word);

/* The same for a word that several processes map. wait: for at most timeout_ns. */
void nkv_futex_wait_shared(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void nkv_futex_wake_shared(_Atomic uint32_t *word);

/*
 * Spins while *word - base < distance (modulo 2^32), for at most spin_ns, and yields now and then, as the one it waits
 * for may want the same core. returns: whether it still is.
 */
bool nkv_spin_below(_Atomic uint32_t *word, uint32_t base, uint32_t distance, uint64_t spin_ns);

/* What a spinning loop does between two looks. */
static inline void nkv_spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

#endif
