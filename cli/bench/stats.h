/*
 * stats.h - a growing series of numbers and what is said about it.
 *
 * Percentiles are those of numpy.percentile's default: linear between the two nearest ranks.
 */
#ifndef CLI_BENCH_STATS_H
#define CLI_BENCH_STATS_H

#include "common/status.h"

#include <stdbool.h>

struct series {
    double *values; /* malloc'd */
    size_t n, capacity;
};

status series_add(struct series *series, double value);
void series_free(struct series *series);
void series_sort(struct series *series);
/* Without its smallest and its largest value; fewer than three stay as they are.  Sorts. */
void series_drop_extremes(struct series *series);

/* All are 0 for an empty series. */
double series_mean(const struct series *series);
double series_max(const struct series *series);
double series_std(const struct series *series); /* of the population, as numpy.std */
/* 0 <= percent <= 100; the series is sorted. */
double series_percentile(const struct series *series, double percent);
/* Half the width of the 95 % interval of the mean, by Student's t; 0 for fewer than two. */
double series_ci95(const struct series *series);

/* The 0.975 quantile of Student's t with so many degrees of freedom, at least 1. */
double stats_t975(size_t degrees);

#endif
