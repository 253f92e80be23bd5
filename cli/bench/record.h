/*
 * record.h - what one request of a run brought, and when.
 *
 * Times are milliseconds since the start of the run.  A record belongs to the completion thread
 * that its call runs on until the call is over.
 */
#ifndef CLI_BENCH_RECORD_H
#define CLI_BENCH_RECORD_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum record_limits {
    RECORD_MAX_GAPS = 1 << 24, /* gaps of one answer */
};

struct record {
    double due_ms, sent_ms;           /* when it was to be sent, and was */
    double first_ms, last_ms, end_ms; /* first and latest token, end of the call */
    float *gaps;                      /* ms between messages that brought tokens */
    size_t n_gaps, gap_capacity;
    uint32_t n_tokens;     /* that came */
    bool sent, over, done; /* done: the answer is whole */
    status code;
    char *error; /* malloc'd; NULL: none */
    /* As the server counted, once done. */
    uint32_t prompt_tokens, completion_tokens, propagated_tokens;
    double kv_tokens_kept;
    uint64_t kv_bytes, kv_bytes_full;
    double queue_ms, tokenize_ms, prefill_ms, decode_ms, collective_ms;
};

/* One GenerateResponse that came at this time.  STATUS_INTERNAL: it is not one. */
status record_message(struct record *record, const uint8_t *data, size_t bytes, double now_ms);
/* The end of the call. */
void record_end(struct record *record, const struct failure *end, double now_ms);
void record_free(struct record *record);

/* Of a whole answer. */
double record_ttft_ms(const struct record *record);
double record_e2el_ms(const struct record *record);
/* Time per token after the first; 0 for an answer of one token. */
double record_tpot_ms(const struct record *record);
bool record_ok(const struct record *record);

#endif
