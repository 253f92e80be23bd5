#include "cli/bench/record.h"

#include "winnow/v1/inference.pb-c.h"

#include <stdlib.h>
#include <string.h>

static status add_gap(struct record *record, double gap_ms)
{
    if (record->n_gaps == record->gap_capacity) {
        size_t target = record->gap_capacity ? record->gap_capacity * 2 : 64;
        float *bigger =
            target <= RECORD_MAX_GAPS ? realloc(record->gaps, target * sizeof(*bigger)) : NULL;
        if (!bigger) {
            return status_fail(STATUS_EXHAUSTED, "no memory for the times of an answer");
        }
        record->gaps = bigger;
        record->gap_capacity = target;
    }
    record->gaps[record->n_gaps++] = (float)gap_ms;
    return STATUS_OK;
}

static status take_tokens(struct record *record, size_t n, double now_ms)
{
    status st = STATUS_OK;

    if (n == 0) {
        return STATUS_OK; /* text that lagged behind its ids */
    }
    if (record->n_tokens == 0) {
        record->first_ms = now_ms;
    } else {
        st = add_gap(record, now_ms - record->last_ms);
    }
    record->last_ms = now_ms;
    record->n_tokens += (uint32_t)n;
    return st;
}

static void take_done(struct record *record, const Winnow__V1__Done *done)
{
    const Winnow__V1__Usage *u = done->usage;
    const Winnow__V1__Timing *t = done->timing;

    record->done = u && t;
    if (u) {
        record->prompt_tokens = u->prompt_tokens;
        record->completion_tokens = u->completion_tokens;
        record->propagated_tokens = u->propagated_tokens;
        record->kv_tokens_kept = u->kv_tokens_kept;
        record->kv_bytes = u->kv_bytes;
        record->kv_bytes_full = u->kv_bytes_full;
    }
    if (t) {
        record->queue_ms = t->queue_ms;
        record->tokenize_ms = t->tokenize_ms;
        record->prefill_ms = t->prefill_ms;
        record->decode_ms = t->decode_ms;
        record->collective_ms = t->collective_ms;
    }
}

status record_message(struct record *record, const uint8_t *data, size_t bytes, double now_ms)
{
    Winnow__V1__GenerateResponse *response =
        winnow__v1__generate_response__unpack(NULL, bytes, data);
    status st = STATUS_OK;

    if (!response) {
        return status_fail(STATUS_INTERNAL, "the server sent something that is no response");
    }
    if (response->event_case == WINNOW__V1__GENERATE_RESPONSE__EVENT_TOKENS) {
        st = take_tokens(record, response->tokens->n_ids, now_ms);
    } else if (response->event_case == WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE) {
        take_done(record, response->done);
    }
    winnow__v1__generate_response__free_unpacked(response, NULL);
    return st;
}

void record_end(struct record *record, const struct failure *end, double now_ms)
{
    const char *text = end->text;

    record->end_ms = now_ms;
    record->over = true;
    if (record->code) {
        return; /* our own failure cancelled the call */
    }
    record->code = end->code;
    if (!end->code && (!record->done || record->n_tokens == 0)) {
        record->code = STATUS_INTERNAL;
        text = "the server ended the call without a whole answer";
    }
    if (record->code) {
        record->error = strdup(text);
    }
}

void record_free(struct record *record)
{
    free(record->gaps);
    free(record->error);
    *record = (struct record){0};
}

bool record_ok(const struct record *record)
{
    return record->over && record->code == STATUS_OK;
}

double record_ttft_ms(const struct record *record)
{
    return record->first_ms - record->sent_ms;
}

double record_e2el_ms(const struct record *record)
{
    return record->end_ms - record->sent_ms;
}

double record_tpot_ms(const struct record *record)
{
    double after_first = record->end_ms - record->first_ms;

    return record->n_tokens > 1 ? after_first / (record->n_tokens - 1) : 0;
}
