/*
 * arrival.h - when the requests of an open-loop run are due.
 *
 * Gaps follow a gamma distribution of shape `burstiness` around 1 / rate: 1 is a Poisson process,
 * less comes in bursts, more is even.  The rate may ramp from one value to another over the
 * requests.  Without a ramp the times are stretched so that the last is due at exactly n / rate, as
 * in `vllm bench serve`.
 */
#ifndef CLI_BENCH_ARRIVAL_H
#define CLI_BENCH_ARRIVAL_H

#include "common/status.h"

#include <stdint.h>

enum arrival_ramp { ARRIVAL_STEADY, ARRIVAL_LINEAR, ARRIVAL_EXPONENTIAL };

struct arrival {
    double rate; /* requests a second; infinity: all at once */
    double burstiness;
    enum arrival_ramp ramp;
    double start_rate, end_rate; /* of a ramp, both > 0 */
    uint64_t seed;
};

/* due_s [n]: seconds since the start, ascending. */
void arrival_times(double *due_s, size_t n, const struct arrival *arrival);

#endif
