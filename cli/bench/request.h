/* request.h - one GenerateRequest of a benchmark, packed. */
#ifndef CLI_BENCH_REQUEST_H
#define CLI_BENCH_REQUEST_H

#include "cli/compression_options.h"
#include "common/method.h"

#include <stdbool.h>

struct request_spec {
    const uint32_t *ids; /* borrowed; NULL: the text */
    size_t n_ids;
    const char *text;
    size_t bytes;
    uint32_t max_tokens;
    bool ignore_eos;
    double temperature; /* NAN: not sent */
    uint64_t seed;
    const struct compression_options *compression;
    enum method method; /* METHOD_UNSPECIFIED: that of the compression options */
};

/* *data is malloc'd. */
status request_pack(const struct request_spec *spec, uint8_t **data, size_t *bytes);

#endif
