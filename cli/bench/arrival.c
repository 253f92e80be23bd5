#include "cli/bench/arrival.h"

#include "cli/bench/rng.h"

#include <assert.h>
#include <math.h>

enum { ARRIVAL_KEY = 0x61727276 }; /* apart from the keys of requests */

/* progress: 0 at the first request, towards 1 at the last. */
static double rate_at(const struct arrival *arrival, double progress)
{
    double start = arrival->start_rate;
    double end = arrival->end_rate;

    switch (arrival->ramp) {
    case ARRIVAL_LINEAR:
        return start + (end - start) * progress;
    case ARRIVAL_EXPONENTIAL:
        return start * pow(end / start, progress);
    case ARRIVAL_STEADY:
        break;
    }
    return arrival->rate;
}

void arrival_times(double *due_s, size_t n, const struct arrival *arrival)
{
    struct rng rng;
    double now = 0;

    assert(arrival->burstiness > 0);
    rng_init(&rng, arrival->seed, ARRIVAL_KEY);
    for (size_t i = 0; i < n; i++) {
        double rate = rate_at(arrival, (double)i / (double)n);
        double gap = rng_gamma(&rng, arrival->burstiness) / arrival->burstiness / rate;
        now += isinf(rate) ? 0 : gap;
        due_s[i] = now;
    }
    if (arrival->ramp == ARRIVAL_STEADY && now > 0) {
        double stretch = (double)n / arrival->rate / now;
        for (size_t i = 0; i < n; i++) {
            due_s[i] *= stretch;
        }
    }
}
