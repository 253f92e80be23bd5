/*
 * limits.h - what this machine can do at most: the yardstick of the kernel and engine benchmarks.
 *
 * Figures are the best of several rounds on `threads` threads.  One thread is timed by its own
 * processor time, so that what a busy machine gives to others does not count; several by the
 * clock, as the kernel adds up their time too coarsely.
 */
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H

#include "kernels/device.h"

struct limits {
    double read; /* bytes a second, reading memory once, past the caches */
    double gemm; /* operations a second of the library's product of large matrices */
};

static const size_t limits_bytes = (size_t)1 << 30; /* of memory; past the caches */

/* `memory` (limits_bytes) holds numbers of `dtype`; the rest is allocated. */
status limits_measure(struct limits *out, const void *memory, enum dtype dtype, int threads);

/* The same of a GPU: one product of 8192 rows and columns; a copy within its
 * memory, of which what is read and what is written count. */
status limits_measure_gpu(struct limits *out, struct device *dev);

/* limits.read alone. */
double limits_read_rate(const void *memory, int threads);

/* Small values without zeros or denormals. */
void limits_fill(void *memory, size_t bytes, enum dtype dtype);

double limits_now(int threads);

/* Seconds in which the threads read these bytes once, a multiple of 1 MiB. */
double limits_read(const void *memory, size_t bytes, int threads);

#endif
