/*
 * helpers_traffic.h - chance that replays from a seed, and requests as real services get them.
 *
 * Lengths are log-normal, the shape that published traces of language model services have.  For
 * conversations the medians are those of the Azure trace in the Splitwise paper (arXiv 2311.18677):
 * 1,020 prompt tokens and 129 generated ones; the spreads (sigma 1.0 and 1.0), the long documents
 * (one request in twenty; median 24,000 tokens, sigma 0.8), methods, samples and priorities are
 * this test's own choice.
 */
#ifndef TESTS_COORDINATOR_HELPERS_TRAFFIC_H
#define TESTS_COORDINATOR_HELPERS_TRAFFIC_H

#include "coordinator/request.h"

enum { TRAFFIC_MAX_SAMPLES = 4 };

struct traffic {
    uint64_t random;
};

uint64_t traffic_mix(uint64_t x);
double traffic_chance(struct traffic *traffic); /* [0, 1) */
uint32_t traffic_below(struct traffic *traffic, uint32_t n);
double traffic_wait_ms(struct traffic *traffic, double per_ms); /* exponential */

struct traffic_kind {
    bool real;           /* the lengths above, all methods, priorities; else short and simple */
    uint32_t max_prompt; /* simple: mostly short, a few of up to so many tokens */
    uint32_t max_context;
    double deadline_share; /* of the requests; half a second on average */
};

/* Lengths, method, sampling and the rest but for the handle and the prompt. */
void traffic_make_request(struct traffic *traffic, const struct traffic_kind *kind,
                          const struct model_config *model, double now, struct request *request);

#endif
