/*
 * plan.h - the step plan and its result, and their form on the wire (worker.proto).
 *
 * A plan is the same for every rank of a group and is applied in this order: release, begin,
 * advance, decode.  A sequence is named by its slot, a small number that the coordinator
 * hands out and reuses only after a plan released it.  Plans are numbered without gaps within
 * an epoch and may arrive before the result of the one before.
 *
 * The worker keeps the token it chose last, so a decode step needs nothing from outside.
 *
 * Samples of one request share their prompt: the first one's slot is read, and in the plan with its
 * last slice the others begin as its forks, each with a first token of its own.
 * What was computed past a stop is dropped by the coordinator, which then releases the slot.
 */
#ifndef COMMON_PLAN_H
#define COMMON_PLAN_H

#include "common/method.h"
#include "common/sampling.h"
#include "common/status.h"

enum plan_limits {
    PLAN_MAX_SLOTS = 1024,            /* sequences alive in one group */
    PLAN_MAX_DECODE = PLAN_MAX_SLOTS, /* a decode step carries every live sequence */
    PLAN_MAX_SAMPLES = 64,            /* sequences that share a prompt */
    PLAN_MAX_ADVANCE = 256,           /* slices of one plan */
    PLAN_MAX_LOGPROBS = 20,           /* likeliest tokens reported with a chosen one */
    PLAN_MAX_PROMPTS = 4,             /* sequences of one group in their prompt phase */
    PLAN_ROW_STEP = 32,               /* a prompt's first row is a multiple of this */
};

/* Rows of prompt memory (residual stream, one layer's K/V) that the prompts in their prompt phase
 * share: the longest prompt and, beside it, short ones. */
static inline uint32_t plan_prompt_rows(uint32_t max_context)
{
    return (max_context + max_context / 4 + PLAN_ROW_STEP - 1) / PLAN_ROW_STEP * PLAN_ROW_STEP;
}

enum trace_flag { TRACE_SELECTED = 1, TRACE_PROMPT_LOGITS = 2, TRACE_STEP_LOGITS = 4 };

struct plan_begin {
    uint32_t slot;
    uint32_t n_prompt;
    const uint32_t *prompt; /* [n_prompt], every id below the vocabulary size */
    struct method_params params;
    struct sampling sampling;
    uint32_t trace;     /* of enum trace_flag */
    uint32_t max_rows;  /* tokens that decode may append: max_tokens - 1 */
    uint32_t first_row; /* of the prompt memory; its n_prompt rows are no other prompt's */
    /* It begins with what the slot `source` holds when its prompt ends, in this very plan: of the
     * fields above only `slot` and `sampling.sample` are its own, and the rest is the source's. */
    bool forks;
    uint32_t source;
};

struct plan_advance {
    uint32_t slot;
    uint32_t slices; /* >= 1; the last slice of a prompt also chooses the first token */
};

/* All arrays are borrowed by the struct, except in a plan made by plan_decode(). */
struct plan {
    uint64_t epoch;
    uint64_t number;
    uint32_t n_release, n_begin, n_advance, n_decode;
    const uint32_t *release;
    const struct plan_begin *begin;
    const struct plan_advance *advance;
    const uint32_t *decode; /* slots that get one more token */
    void *owned;            /* memory behind the arrays of a decoded plan */
};

/* Of the raw distribution; the lists are borrowed. */
struct result_logprob {
    float logprob; /* of the chosen token */
    uint32_t n_top;
    const uint32_t *top_ids; /* likeliest first, ties to the lowest id */
    const float *top_logprobs;
};

struct result_token {
    uint32_t slot;
    uint32_t id;
    const struct result_logprob *logprob; /* NULL: not asked for */
};

/* What one cache head kept; of replicated heads only replica 0 reports. */
struct result_head {
    uint32_t layer;
    uint32_t head; /* global number */
    uint32_t n_kept;
    const uint32_t *kept; /* ascending original positions */
    uint32_t policy;      /* FASTGEN: 1 + enum fastgen_policy; else 0 */
};

/* Sent once for a slot, with the result of the plan that ended its prompt phase; its forks have
 * none.  Logits of a prompt's last row likewise. */
struct result_prompt {
    uint32_t slot;
    uint64_t kv_rows;       /* rows stored, summed over layers and this rank's cache heads; KV
                             * heads that several ranks hold are replica 0's */
    uint64_t kv_bytes;      /* of those rows */
    uint64_t kv_bytes_full; /* what FULL would store of this rank's KV heads (replica 0) */
    uint32_t kv_heads;      /* layers * cache heads counted in kv_rows */
    uint64_t pages;         /* the most that the slot may come to hold on this rank from now on */
    uint64_t shared_pages;  /* of these: what it and its forks share as long as one lives */
    uint32_t n_tokens_in;   /* TRACE_SELECTED: one a layer */
    const uint32_t *tokens_in;
    uint32_t n_heads; /* TRACE_SELECTED */
    const struct result_head *heads;
    uint32_t n_propagated; /* TRACE_SELECTED, rank 0; ascending original positions */
    const uint32_t *propagated;
    /* A second one of a method that evicts, TRACE_SELECTED, when max_rows rows were appended: its
     * heads say what is still live; the rest is zero. */
    bool after_decode;
};

/* This rank's vocabulary rows of the logits that a token was chosen from. */
struct result_logits {
    uint32_t slot;
    bool prompt; /* of the prompt's last row, else of a decode step */
    uint32_t n_values;
    const float *values;
};

struct step_result {
    uint64_t epoch;
    uint64_t number; /* of the plan */
    uint32_t n_tokens;
    const struct result_token *tokens; /* rank 0 only */
    uint32_t n_prompts;
    const struct result_prompt *prompts;
    uint32_t n_logits;
    const struct result_logits *logits;
    uint32_t n_failed;
    const uint32_t *failed; /* slots that this rank has no memory for beside their pages: they get
                             * no tokens any more, or only half of what was asked about them */
    double compute_ms;      /* the whole step */
    double collective_ms;   /* waiting for collectives */
    double exchange_ms; /* in collectives, hidden behind the computation or not; not on the wire */
    double scoring_ms;  /* what the methods need beyond FULL to choose rows */
    double decode_ms;   /* the decode step: what compute_ms has beside the slices */
    uint64_t kv_bytes_used;
    uint64_t index_hash; /* of every selection of this step; equal on all ranks or a fault */
    void *owned;         /* memory behind the arrays of a decoded result */
};

/* Packed winnow.v1.Plan / StepResult; *out is malloc'd, the caller frees it. */
status plan_encode(const struct plan *plan, uint8_t **out, size_t *out_bytes);
/* Checks every number against the model and the limits above. */
status plan_decode(struct plan *out, const uint8_t *data, size_t bytes,
                   const struct model_config *config);
void plan_free(struct plan *plan); /* of plan_decode() */

status step_result_encode(const struct step_result *result, uint8_t **out, size_t *out_bytes);
status step_result_decode(struct step_result *out, const uint8_t *data, size_t bytes);
void step_result_free(struct step_result *result); /* of step_result_decode() */

#endif
