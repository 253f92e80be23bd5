#include "cli/bench/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void fill_sampling(Winnow__V1__Sampling *s, const struct request_spec *spec)
{
    winnow__v1__sampling__init(s);
    s->_max_tokens_case = WINNOW__V1__SAMPLING___MAX_TOKENS_MAX_TOKENS;
    s->max_tokens = spec->max_tokens;
    s->_seed_case = WINNOW__V1__SAMPLING___SEED_SEED;
    s->seed = spec->seed;
    if (spec->ignore_eos) {
        s->_ignore_eos_case = WINNOW__V1__SAMPLING___IGNORE_EOS_IGNORE_EOS;
        s->ignore_eos = 1;
    }
    if (!isnan(spec->temperature)) {
        s->_temperature_case = WINNOW__V1__SAMPLING___TEMPERATURE_TEMPERATURE;
        s->temperature = (float)spec->temperature;
    }
}

/* FASTKV's own parameters go with FASTKV only: one command may send several methods. */
static void fill_compression(struct compression_message *m, const struct request_spec *spec)
{
    compression_options_fill(m, spec->compression);
    if (spec->method) {
        m->compression.method = (Winnow__V1__Method)spec->method;
        if (spec->method != METHOD_FASTKV) {
            m->compression.fastkv = NULL;
        }
    }
}

status request_pack(const struct request_spec *spec, uint8_t **data, size_t *bytes)
{
    Winnow__V1__GenerateRequest request;
    Winnow__V1__Sampling sampling;
    Winnow__V1__TokenIds tokens = WINNOW__V1__TOKEN_IDS__INIT;
    struct compression_message compression;

    winnow__v1__generate_request__init(&request);
    fill_sampling(&sampling, spec);
    fill_compression(&compression, spec);
    request.sampling = &sampling;
    request.compression = &compression.compression;
    if (spec->ids) {
        tokens.ids = (uint32_t *)spec->ids;
        tokens.n_ids = spec->n_ids;
        request.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TOKENS;
        request.tokens = &tokens;
    } else {
        request.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT;
        request.text.data = (uint8_t *)spec->text;
        request.text.len = spec->bytes;
    }
    *bytes = winnow__v1__generate_request__get_packed_size(&request);
    *data = malloc(*bytes + 1);
    if (!*data) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a request");
    }
    winnow__v1__generate_request__pack(&request, *data);
    return STATUS_OK;
}
