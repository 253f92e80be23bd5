/* sampling.h - how the next token is chosen; the fields and defaults of winnow.v1.Sampling. */
#ifndef COMMON_SAMPLING_H
#define COMMON_SAMPLING_H

#include <stdint.h>

struct sampling {
    uint32_t max_tokens;      /* 256 */
    uint32_t min_tokens;      /* 0 */
    float temperature;        /* 0: greedy, ties to the lowest id */
    float top_p;              /* 1 */
    uint32_t top_k;           /* 0: off */
    float min_p;              /* 0 */
    float repetition_penalty; /* 1 */
    float frequency_penalty;  /* 0 */
    float presence_penalty;   /* 0 */
    uint64_t seed;
    uint32_t sample;   /* which of n */
    uint32_t logprobs; /* 0: none; else 1 more than how many of the likeliest tokens */
};

#endif
