/*
 * helpers_act.h - tensors of activations for tests of operations.
 *
 * A tensor exists twice: as float32 for the definition, and in the device's dtype.  The float32
 * values are exact in that dtype, so that a difference is the operation's.
 */
#ifndef TESTS_KERNELS_HELPERS_ACT_H
#define TESTS_KERNELS_HELPERS_ACT_H

#include "kernels/op.h"

struct act {
    size_t n;
    float *f32;
    void *act; /* the same values in the device's dtype */
};

/* A device and what to expect of it: of the CPU an instruction set, of the emulated GPU an order in
 * which warps run (tests/cuda_host/variants.c). */
struct variant {
    const char *isa;
    enum dtype dtype;
};
extern const struct variant variants[];
extern const int n_variants;

/* The device of a variant; the best lower one where this machine lacks the set.  The emulated GPU
 * has no threads: their number changes the order of its warps. */
struct device *act_device(const struct variant *variant, int threads);

struct act act_zeros(enum dtype dtype, size_t n);
/* Normal values of standard deviation `scale`; the same for the same seed. */
struct act act_random(enum dtype dtype, size_t n, float scale, uint64_t *seed);
/* Copies what an operation wrote to x->act into x->f32. */
void act_read(enum dtype dtype, struct act *x);
void act_free(struct act *x);

/* w, by rows, as op_pack() lays it out, or w itself where the device packs none. */
struct matrix act_packed(struct device *dev, const struct matrix *w);
void act_packed_free(const struct matrix *w);

uint64_t test_random(uint64_t *seed);
/* 0..n - 1 */
int test_below(uint64_t *seed, int n);

/* The largest difference, relative to max(|expected|, floor). */
double act_worst(const float *got, const double *expected, size_t n, double floor);

#endif
