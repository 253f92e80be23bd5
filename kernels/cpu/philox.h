/*
 * philox.h - Gumbel noise by token, from the counter-based generator Philox4x32-10 (Salmon,
 * Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011).
 *
 * key     = (low half of seed, high half of seed)
 * counter = (id / 2, step, sample, 0)
 * words   = Philox4x32-10(counter, key); an even id takes words 0 and 1, an odd one words 2 and 3
 * bits    = (second word * 2^32 + first word) / 2^12, rounded down: 52 bits
 * u       = (bits + 1/2) * 2^-52, exactly, so 0 < u < 1
 * G       = -log(-log(u)) in double precision
 *
 * This is the published definition of a draw: the same seed gives the same tokens on every
 * backend and for every split of the vocabulary.
 */
#ifndef KERNELS_CPU_PHILOX_H
#define KERNELS_CPU_PHILOX_H

#include <stdint.h>

static inline void philox_round(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    uint64_t a = (uint64_t)0xd2511f53u * c[0];
    uint64_t b = (uint64_t)0xcd9e8d57u * c[2];
    uint32_t c1 = c[1], c3 = c[3];

    c[0] = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c[3] = (uint32_t)a;
}

/* c: the counter, then the four words. */
static inline void philox4x32(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int i = 0; i < 10; i++) {
        philox_round(c, k0, k1);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

/* The 52 bits of tokens id and id + 1, id even. */
static inline void philox_noise_bits(uint64_t bits[2], uint64_t seed, uint32_t sample,
                                     uint32_t step, uint32_t id)
{
    uint32_t c[4] = {id / 2, step, sample, 0};

    philox4x32(c, seed);
    bits[0] = ((uint64_t)c[1] << 32 | c[0]) >> 12;
    bits[1] = ((uint64_t)c[3] << 32 | c[2]) >> 12;
}

#endif
