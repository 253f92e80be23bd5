/*
 * bench_comm.c - what an all-reduce between ranks of one host costs, by length.
 *
 * Short vectors are what a decode step sends (twice a layer), long ones what a prefill chunk
 * sends.  Beside each time is the rate at which the vector passed and, as the machine's limit,
 * the time in which one core copies as many bytes.
 *
 *   winnow-bench-comm [ranks]      default: 2
 */
#include "tests/worker/helpers_group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 5, LONGEST = 1 << 21 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double copy_us(float *to, const float *from, size_t n, int times)
{
    double begin = now();

    for (int i = 0; i < times; i++) {
        memcpy(to, from, n * sizeof(*to));
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    return (now() - begin) * 1e6 / times;
}

static status reduce_by_length(struct comm *comm, void *context)
{
    float *x = calloc(LONGEST, sizeof(*x));
    float *y = calloc(LONGEST, sizeof(*y));
    status st = STATUS_OK;

    (void)context;
    for (size_t n = 1; n <= LONGEST && !st; n *= 8) {
        int times = n < 65536 ? 300 : 10;
        double best = 1e30;
        for (int round = 0; round < ROUNDS && !st; round++) {
            double begin = now();
            for (int i = 0; i < times && !st; i++) {
                st = comm_all_reduce(comm, x, n);
            }
            double us = (now() - begin) * 1e6 / times;
            best = us < best ? us : best;
        }
        if (comm_rank(comm) == 0) {
            printf("%9zu floats  %10.1f us  %7.2f GB/s  (a copy: %.1f us)\n", n, best,
                   (double)(n * sizeof(*x)) / best * 1e-3, copy_us(y, x, n, times));
        }
    }
    free(x);
    free(y);
    return st;
}

int main(int argc, char **argv)
{
    group_run(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 2, reduce_by_length, NULL);
    return 0;
}
