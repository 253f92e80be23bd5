#include "cli/bench/stats.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

status series_add(struct series *series, double value)
{
    if (series->n == series->capacity) {
        size_t target = series->capacity ? series->capacity * 2 : 16;
        double *bigger = target <= SIZE_MAX / sizeof(*bigger)
                             ? realloc(series->values, target * sizeof(*bigger))
                             : NULL;
        if (!bigger) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for measurements");
        }
        series->values = bigger;
        series->capacity = target;
    }
    series->values[series->n++] = value;
    return STATUS_OK;
}

void series_free(struct series *series)
{
    free(series->values);
    *series = (struct series){0};
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

void series_sort(struct series *series)
{
    if (series->n > 1) {
        qsort(series->values, series->n, sizeof(*series->values), compare);
    }
}

void series_drop_extremes(struct series *series)
{
    series_sort(series);
    if (series->n < 3) {
        return;
    }
    for (size_t i = 0; i + 2 < series->n; i++) {
        series->values[i] = series->values[i + 1];
    }
    series->n -= 2;
}

double series_mean(const struct series *series)
{
    double sum = 0;

    for (size_t i = 0; i < series->n; i++) {
        sum += series->values[i];
    }
    return series->n ? sum / (double)series->n : 0;
}

double series_max(const struct series *series)
{
    double max = series->n ? series->values[0] : 0;

    for (size_t i = 1; i < series->n; i++) {
        max = fmax(max, series->values[i]);
    }
    return max;
}

static double squares(const struct series *series)
{
    double mean = series_mean(series);
    double sum = 0;

    for (size_t i = 0; i < series->n; i++) {
        sum += (series->values[i] - mean) * (series->values[i] - mean);
    }
    return sum;
}

double series_std(const struct series *series)
{
    return series->n ? sqrt(squares(series) / (double)series->n) : 0;
}

double series_percentile(const struct series *series, double percent)
{
    assert(percent >= 0 && percent <= 100);
    if (series->n == 0) {
        return 0;
    }
    double rank = percent / 100 * (double)(series->n - 1);
    size_t below = (size_t)rank;
    if (below + 1 >= series->n) {
        return series->values[series->n - 1];
    }
    double part = rank - (double)below;
    return series->values[below] + part * (series->values[below + 1] - series->values[below]);
}

double stats_t975(size_t degrees)
{
    static const double table[] = {12.706205, 4.302653, 3.182446, 2.776445, 2.570582,
                                   2.446912,  2.364624, 2.306004, 2.262157, 2.228139,
                                   2.200985,  2.178813, 2.160369, 2.144787, 2.131450,
                                   2.119905,  2.109816, 2.100922, 2.093024, 2.085963};
    const double z = 1.959964;

    assert(degrees >= 1);
    if (degrees <= sizeof(table) / sizeof(table[0])) {
        return table[degrees - 1];
    }
    /* The first terms of the expansion around the normal quantile: exact to 1e-5 from here on. */
    double v = (double)degrees;
    double z3 = z * z * z;
    double z5 = z3 * z * z;
    double z7 = z5 * z * z;
    return z + (z3 + z) / (4 * v) + (5 * z5 + 16 * z3 + 3 * z) / (96 * v * v) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * v * v * v);
}

double series_ci95(const struct series *series)
{
    if (series->n < 2) {
        return 0;
    }
    double n = (double)series->n;
    return stats_t975(series->n - 1) * sqrt(squares(series) / (n - 1) / n);
}
