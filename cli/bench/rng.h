/*
 * rng.h - seeded random numbers, the same on every machine.
 *
 * A stream is named by a seed and a key, so that what belongs to request 7 does not depend on how
 * much request 6 drew.  xoshiro256**, seeded through splitmix64 (Blackman and Vigna).
 */
#ifndef CLI_BENCH_RNG_H
#define CLI_BENCH_RNG_H

#include <stdint.h>

struct rng {
    uint64_t state[4];
};

void rng_init(struct rng *rng, uint64_t seed, uint64_t key);
uint64_t rng_next(struct rng *rng);
/* 0 <= x < n, each alike; n >= 1. */
uint32_t rng_below(struct rng *rng, uint32_t n);
double rng_unit(struct rng *rng); /* 0 < x < 1 */
double rng_normal(struct rng *rng);
/* The gamma distribution of this shape > 0, scale 1; shape 1 is the exponential one. */
double rng_gamma(struct rng *rng, double shape);

#endif
