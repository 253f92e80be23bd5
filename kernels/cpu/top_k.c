/*
 * top_k.c - the k largest scores by radix select: three histograms of 11, 11 and 10 bits find the
 * k-th key, one more pass writes the positions in ascending order.  Linear, exact, no sorting.
 */
#include "kernels/cpu/cpu.h"

enum { RADIX_BITS = 11, RADIX_BINS = 1 << RADIX_BITS };

/* -0 equals +0. */
static inline uint32_t rank_key(float score)
{
    return op_key(score + 0.0f);
}

/* Keys that agree with `prefix` above shift + bits, counted by their next `bits` bits. */
static void count_keys(uint32_t bins[RADIX_BINS], const float *score, int n, uint32_t prefix,
                       int shift, int bits)
{
    const uint32_t mask = (1u << bits) - 1u;
    const int above = shift + bits;

    memset(bins, 0, RADIX_BINS * sizeof(*bins));
    if (above == 32) {
        /* Neighbours often share a bin after pooling: two tables, so that one does not wait. */
        uint32_t odd[RADIX_BINS] = {0};

        for (int i = 0; i + 1 < n; i += 2) {
            bins[rank_key(score[i]) >> shift]++;
            odd[rank_key(score[i + 1]) >> shift]++;
        }
        if (n % 2) {
            bins[rank_key(score[n - 1]) >> shift]++;
        }
        for (int b = 0; b < RADIX_BINS; b++) {
            bins[b] += odd[b];
        }
        return;
    }
    for (int i = 0; i < n; i++) {
        uint32_t key = rank_key(score[i]);

        if (key >> above == prefix >> above) {
            bins[(key >> shift) & mask]++;
        }
    }
}

/* The key of the k-th largest score, k >= 1, and how many scores equal to it are taken. */
static uint32_t find_key(const float *score, int n, int k, int *equal)
{
    static const int shifts[] = {21, 10, 0};
    static const int bits[] = {11, 11, 10};
    uint32_t bins[RADIX_BINS];
    uint32_t key = 0, left = (uint32_t)k;

    for (int pass = 0; pass < 3; pass++) {
        uint32_t b = (1u << bits[pass]) - 1u;

        count_keys(bins, score, n, key, shifts[pass], bits[pass]);
        while (bins[b] < left) {
            left -= bins[b];
            b--;
        }
        key |= b << shifts[pass];
    }
    *equal = (int)left;
    return key;
}

status cpu_top_k(struct device *dev, int32_t *index, const float *score, int n, int k)
{
    int equal = 0, taken = 0;

    (void)dev;
    if (k == 0) {
        return STATUS_OK;
    }
    uint32_t least = find_key(score, n, k, &equal);

    for (int i = 0; i < n && taken < k; i++) {
        uint32_t key = rank_key(score[i]);
        int tie = key == least && equal > 0;

        /* written always, kept only when it counts: no branch to mispredict */
        index[taken] = i;
        equal -= tie;
        taken += key > least || tie;
    }
    return STATUS_OK;
}
