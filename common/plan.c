#include "common/plan.h"

#include "common/method_wire.h"
#include "winnow/v1/worker.pb-c.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static status no_memory(const char *what)
{
    return status_fail(STATUS_EXHAUSTED, "no memory for a %s", what);
}

/* Packs `message` into fresh memory. */
static status pack(const ProtobufCMessage *message, const char *what, uint8_t **out,
                   size_t *out_bytes)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *data = malloc(bytes ? bytes : 1);

    if (!data) {
        return no_memory(what);
    }
    protobuf_c_message_pack(message, data);
    *out = data;
    *out_bytes = bytes;
    return STATUS_OK;
}

/* ---- plan, outgoing ---- */

struct begin_wire {
    Winnow__V1__PlanBegin begin;
    Winnow__V1__Sampling sampling;
    struct method_wire method;
};

static void write_sampling(Winnow__V1__Sampling *out, const struct sampling *sampling)
{
    winnow__v1__sampling__init(out);
    out->_max_tokens_case = WINNOW__V1__SAMPLING___MAX_TOKENS_MAX_TOKENS;
    out->max_tokens = sampling->max_tokens;
    out->_min_tokens_case = WINNOW__V1__SAMPLING___MIN_TOKENS_MIN_TOKENS;
    out->min_tokens = sampling->min_tokens;
    out->_temperature_case = WINNOW__V1__SAMPLING___TEMPERATURE_TEMPERATURE;
    out->temperature = sampling->temperature;
    out->_top_p_case = WINNOW__V1__SAMPLING___TOP_P_TOP_P;
    out->top_p = sampling->top_p;
    out->_top_k_case = WINNOW__V1__SAMPLING___TOP_K_TOP_K;
    out->top_k = sampling->top_k;
    out->_min_p_case = WINNOW__V1__SAMPLING___MIN_P_MIN_P;
    out->min_p = sampling->min_p;
    out->_repetition_penalty_case = WINNOW__V1__SAMPLING___REPETITION_PENALTY_REPETITION_PENALTY;
    out->repetition_penalty = sampling->repetition_penalty;
    out->_frequency_penalty_case = WINNOW__V1__SAMPLING___FREQUENCY_PENALTY_FREQUENCY_PENALTY;
    out->frequency_penalty = sampling->frequency_penalty;
    out->_presence_penalty_case = WINNOW__V1__SAMPLING___PRESENCE_PENALTY_PRESENCE_PENALTY;
    out->presence_penalty = sampling->presence_penalty;
    out->_seed_case = WINNOW__V1__SAMPLING___SEED_SEED;
    out->seed = sampling->seed;
    if (sampling->logprobs > 0) {
        out->_logprobs_case = WINNOW__V1__SAMPLING___LOGPROBS_LOGPROBS;
        out->logprobs = sampling->logprobs - 1;
    }
}

static void write_begin(struct begin_wire *out, const struct plan_begin *begin)
{
    winnow__v1__plan_begin__init(&out->begin);
    if (begin->forks) {
        out->begin.slot = begin->slot;
        out->begin.sample = begin->sampling.sample;
        out->begin._fork_of_case = WINNOW__V1__PLAN_BEGIN___FORK_OF_FORK_OF;
        out->begin.fork_of = begin->source;
        return;
    }
    method_to_wire(&out->method, &begin->params);
    write_sampling(&out->sampling, &begin->sampling);
    out->begin.slot = begin->slot;
    out->begin.n_prompt = begin->n_prompt;
    out->begin.prompt = (uint32_t *)begin->prompt; /* packing only reads */
    out->begin.compression = &out->method.compression;
    out->begin.sampling = &out->sampling;
    out->begin.sample = begin->sampling.sample;
    out->begin.trace = begin->trace;
    out->begin.max_rows = begin->max_rows;
    out->begin.first_row = begin->first_row;
}

/* The message's arrays, in one allocation each; freed by the caller whatever happens. */
struct plan_wire {
    struct begin_wire *begins;
    Winnow__V1__PlanBegin **begin_list;
    Winnow__V1__PlanAdvance *advances;
    Winnow__V1__PlanAdvance **advance_list;
};

static void fill_plan(Winnow__V1__Plan *message, struct plan_wire *wire, const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        write_begin(&wire->begins[i], &plan->begin[i]);
        wire->begin_list[i] = &wire->begins[i].begin;
    }
    for (uint32_t i = 0; i < plan->n_advance; i++) {
        winnow__v1__plan_advance__init(&wire->advances[i]);
        wire->advances[i].slot = plan->advance[i].slot;
        wire->advances[i].slices = plan->advance[i].slices;
        wire->advance_list[i] = &wire->advances[i];
    }
    message->epoch = plan->epoch;
    message->number = plan->number;
    message->n_release = plan->n_release;
    message->release = (uint32_t *)plan->release;
    message->n_begin = plan->n_begin;
    message->begin = wire->begin_list;
    message->n_advance = plan->n_advance;
    message->advance = wire->advance_list;
    message->n_decode = plan->n_decode;
    message->decode = (uint32_t *)plan->decode;
}

status plan_encode(const struct plan *plan, uint8_t **out, size_t *out_bytes)
{
    Winnow__V1__Plan message = WINNOW__V1__PLAN__INIT;
    struct plan_wire wire = {
        .begins = calloc(plan->n_begin + 1, sizeof(*wire.begins)),
        .begin_list = calloc(plan->n_begin + 1, sizeof(Winnow__V1__PlanBegin *)),
        .advances = calloc(plan->n_advance + 1, sizeof(*wire.advances)),
        .advance_list = calloc(plan->n_advance + 1, sizeof(Winnow__V1__PlanAdvance *)),
    };
    status st;

    if (!wire.begins || !wire.begin_list || !wire.advances || !wire.advance_list) {
        st = no_memory("plan");
    } else {
        fill_plan(&message, &wire, plan);
        st = pack(&message.base, "plan", out, out_bytes);
    }
    free(wire.begins);
    free(wire.begin_list);
    free(wire.advances);
    free(wire.advance_list);
    return st;
}

/* ---- plan, incoming ---- */

/* The unpacked message keeps the arrays that the plan borrows. */
struct decoded_plan {
    Winnow__V1__Plan *message;
    struct plan_begin *begins;
    struct plan_advance *advances;
};

static void free_decoded_plan(struct decoded_plan *decoded)
{
    if (decoded) {
        if (decoded->message) {
            winnow__v1__plan__free_unpacked(decoded->message, NULL);
        }
        free(decoded->begins);
        free(decoded->advances);
        free(decoded);
    }
}

void plan_free(struct plan *plan)
{
    free_decoded_plan(plan->owned);
    plan->owned = NULL;
}

static void read_sampling(struct sampling *out, const Winnow__V1__Sampling *m, uint32_t sample)
{
    *out = (struct sampling){
        .max_tokens = m->max_tokens,
        .min_tokens = m->min_tokens,
        .temperature = m->temperature,
        .top_p = m->top_p,
        .top_k = m->top_k,
        .min_p = m->min_p,
        .repetition_penalty = m->repetition_penalty,
        .frequency_penalty = m->frequency_penalty,
        .presence_penalty = m->presence_penalty,
        .seed = m->seed,
        .sample = sample,
        .logprobs = m->_logprobs_case ? m->logprobs + 1 : 0,
    };
}

static status read_fork(struct plan_begin *out, const Winnow__V1__PlanBegin *m)
{
    if (m->slot >= PLAN_MAX_SLOTS || m->fork_of >= PLAN_MAX_SLOTS) {
        return status_fail(STATUS_INVALID, "plan: slot %u forks slot %u, at most %d", m->slot,
                           m->fork_of, PLAN_MAX_SLOTS - 1);
    }
    *out = (struct plan_begin){
        .slot = m->slot,
        .sampling.sample = m->sample,
        .forks = true,
        .source = m->fork_of,
    };
    return STATUS_OK;
}

static status read_begin(struct plan_begin *out, const Winnow__V1__PlanBegin *m,
                         const struct model_config *config)
{
    if (m->_fork_of_case) {
        return read_fork(out, m);
    }
    if (m->slot >= PLAN_MAX_SLOTS || m->n_prompt == 0 || m->n_prompt > MODEL_MAX_POSITIONS ||
        m->max_rows > MODEL_MAX_POSITIONS || m->first_row > 2 * MODEL_MAX_POSITIONS) {
        return status_fail(STATUS_INVALID, "plan: begin of slot %u: %zu prompt tokens, %u rows",
                           m->slot, m->n_prompt, m->max_rows);
    }
    if (!m->compression || !m->sampling) {
        return status_fail(STATUS_INVALID, "plan: begin of slot %u lacks parameters", m->slot);
    }
    if (m->sampling->logprobs > PLAN_MAX_LOGPROBS) {
        return status_fail(STATUS_INVALID, "plan: %u logprobs, at most %d", m->sampling->logprobs,
                           PLAN_MAX_LOGPROBS);
    }
    for (size_t i = 0; i < m->n_prompt; i++) {
        if (m->prompt[i] >= (uint32_t)config->vocab) {
            return status_fail(STATUS_INVALID, "plan: token %u; the vocabulary has %d",
                               m->prompt[i], config->vocab);
        }
    }
    out->slot = m->slot;
    out->n_prompt = (uint32_t)m->n_prompt;
    out->prompt = m->prompt;
    out->trace = m->trace;
    out->max_rows = m->max_rows;
    out->first_row = m->first_row;
    read_sampling(&out->sampling, m->sampling, m->sample);
    return method_from_wire(&out->params, m->compression, config, METHOD_UNSPECIFIED);
}

static status check_slots(const uint32_t *slots, size_t n, size_t limit, const char *what)
{
    if (n > limit) {
        return status_fail(STATUS_INVALID, "plan: %zu %s, at most %zu", n, what, limit);
    }
    for (size_t i = 0; i < n; i++) {
        if (slots[i] >= PLAN_MAX_SLOTS) {
            return status_fail(STATUS_INVALID, "plan: %s of slot %u, at most %d", what, slots[i],
                               PLAN_MAX_SLOTS - 1);
        }
    }
    return STATUS_OK;
}

static status read_advances(struct plan_advance *out, const Winnow__V1__Plan *m)
{
    for (size_t i = 0; i < m->n_advance; i++) {
        out[i].slot = m->advance[i]->slot;
        out[i].slices = m->advance[i]->slices;
        if (out[i].slot >= PLAN_MAX_SLOTS || out[i].slices == 0) {
            return status_fail(STATUS_INVALID, "plan: advance of slot %u by %u", out[i].slot,
                               out[i].slices);
        }
    }
    return STATUS_OK;
}

static status read_plan(struct plan *out, struct decoded_plan *decoded,
                        const struct model_config *config)
{
    const Winnow__V1__Plan *m = decoded->message;
    status st = check_slots(m->release, m->n_release, PLAN_MAX_SLOTS, "releases");

    if (!st) {
        st = check_slots(m->decode, m->n_decode, PLAN_MAX_DECODE, "decodes");
    }
    if (!st && (m->n_begin > PLAN_MAX_SLOTS || m->n_advance > PLAN_MAX_SLOTS)) {
        st =
            status_fail(STATUS_INVALID, "plan: %zu begins, %zu advances", m->n_begin, m->n_advance);
    }
    if (st) {
        return st;
    }
    decoded->begins = calloc(m->n_begin + 1, sizeof(*decoded->begins));
    decoded->advances = calloc(m->n_advance + 1, sizeof(*decoded->advances));
    if (!decoded->begins || !decoded->advances) {
        return no_memory("plan");
    }
    for (size_t i = 0; i < m->n_begin && !st; i++) {
        st = read_begin(&decoded->begins[i], m->begin[i], config);
    }
    if (!st) {
        st = read_advances(decoded->advances, m);
    }
    *out = (struct plan){
        .epoch = m->epoch,
        .number = m->number,
        .n_release = (uint32_t)m->n_release,
        .n_begin = (uint32_t)m->n_begin,
        .n_advance = (uint32_t)m->n_advance,
        .n_decode = (uint32_t)m->n_decode,
        .release = m->release,
        .begin = decoded->begins,
        .advance = decoded->advances,
        .decode = m->decode,
    };
    return st;
}

status plan_decode(struct plan *out, const uint8_t *data, size_t bytes,
                   const struct model_config *config)
{
    struct decoded_plan *decoded = calloc(1, sizeof(*decoded));

    *out = (struct plan){0};
    if (!decoded) {
        return no_memory("plan");
    }
    decoded->message = winnow__v1__plan__unpack(NULL, bytes, data);
    status st = decoded->message
                    ? read_plan(out, decoded, config)
                    : status_fail(STATUS_INVALID, "plan: %zu bytes are not a plan", bytes);
    if (st) {
        free_decoded_plan(decoded);
        *out = (struct plan){0};
        return st;
    }
    out->owned = decoded;
    return STATUS_OK;
}
