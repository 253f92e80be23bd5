#include "worker/chooser.h"

#include "worker/penalties.h"
#include "worker/sampler.h"

#include <stdlib.h>

struct chooser {
    struct member *member;
    struct results *results;
    struct penalties *penalties;
    struct shards *shards;
    struct sampler *sampler;
    struct logprobs *logprobs;
};

uint64_t chooser_bytes(const struct model *model)
{
    int ranks = model->split.ranks;

    return penalties_bytes(model) + shards_bytes(ranks) + sampler_bytes() + logprobs_bytes(ranks);
}

status chooser_create(struct chooser **out, struct member *member, struct results *results)
{
    struct chooser *chooser = calloc(1, sizeof(*chooser));

    if (!chooser) {
        return status_fail(STATUS_EXHAUSTED, "chooser: out of memory");
    }
    chooser->member = member;
    chooser->results = results;
    status st = penalties_create(&chooser->penalties, member);
    if (!st) {
        st = shards_create(&chooser->shards, member);
    }
    if (!st) {
        st = sampler_create(&chooser->sampler, member, chooser->shards);
    }
    if (!st) {
        st = logprobs_create(&chooser->logprobs, member, chooser->shards);
    }
    if (st) {
        chooser_destroy(chooser);
        return st;
    }
    *out = chooser;
    return STATUS_OK;
}

void chooser_destroy(struct chooser *chooser)
{
    if (chooser) {
        logprobs_destroy(chooser->logprobs);
        sampler_destroy(chooser->sampler);
        shards_destroy(chooser->shards);
        penalties_destroy(chooser->penalties);
        free(chooser);
    }
}

status chooser_begin(struct chooser *chooser, struct sequence *sequence, const int32_t *prompt,
                     int n)
{
    return penalties_begin(chooser->penalties, sequence, prompt, n);
}

/* The row is there after the next wait. */
static status report_logits(struct chooser *chooser, const struct sequence *sequence, int row,
                            bool prompt)
{
    const struct member *member = chooser->member;
    size_t n = (size_t)member->model->split.vocab_rows;
    float *values;

    if ((prompt && sequence->forked) ||
        !(sequence->trace & (prompt ? TRACE_PROMPT_LOGITS : TRACE_STEP_LOGITS))) {
        return STATUS_OK;
    }
    if (results_logits(chooser->results, sequence->slot, prompt, (int)n, &values)) {
        results_failed(chooser->results, sequence->slot);
        return STATUS_OK; /* it is chosen for as on the ranks that have the memory */
    }
    return device_fetch(member->dev, values, member->scratch->logits + (size_t)row * n,
                        n * sizeof(*values));
}

/* The one wait of a step: for its tokens, and for the rows of logits that are asked for. */
static status wait_for_tokens(struct chooser *chooser, struct sequence *const *rows, int n,
                              bool prompt)
{
    status st = STATUS_OK;

    for (int i = 0; !st && i < n; i++) {
        st = report_logits(chooser, rows[i], i, prompt);
    }
    /* also where one failed: nothing may arrive in the memory of the others later */
    status waited = device_sync(chooser->member->dev);
    return st ? st : waited;
}

/* Which rows want log-probabilities. */
static int list_wanted(struct logprobs_row *wanted, struct sequence *const *rows, int n)
{
    int n_wanted = 0;

    for (int i = 0; i < n; i++) {
        uint32_t logprobs = rows[i]->sampling.logprobs;
        if (logprobs > 0) {
            wanted[n_wanted++] = (struct logprobs_row){i, (int)logprobs - 1};
        }
    }
    return n_wanted;
}

/* ids (n) = the next tokens, and found (n) their log-probabilities; NULL where not asked for. */
static status choose(struct chooser *chooser, int32_t *ids, struct logprobs_found **found,
                     struct sequence *const *rows, int n, bool prompt)
{
    struct member *member = chooser->member;
    struct sampler_row draws[SCRATCH_DECODE_ROWS];
    struct logprobs_row wanted[SCRATCH_DECODE_ROWS];
    struct logprobs_found *list[SCRATCH_DECODE_ROWS];
    struct logprobs_step step = {.logits = member->scratch->logits,
                                 .chosen = sampler_chosen(chooser->sampler),
                                 .rows = n,
                                 .wanted = wanted,
                                 .n = list_wanted(wanted, rows, n)};
    const float *logits;
    status st = penalties_apply(chooser->penalties, &logits, step.logits, rows, n);

    for (int i = 0; i < n; i++) {
        draws[i] = (struct sampler_row){&rows[i]->sampling, rows[i]->n_chosen};
        found[i] = NULL;
    }
    for (int i = 0; i < step.n; i++) {
        list[i] = found[wanted[i].row] = results_found(chooser->results);
    }
    if (!st) {
        st = sampler_begin(chooser->sampler, logits, draws, n);
    }
    if (!st && step.n > 0) {
        st = logprobs_begin(chooser->logprobs, &step);
    }
    if (!st) {
        st = wait_for_tokens(chooser, rows, n, prompt);
    }
    if (!st) {
        st = sampler_end(chooser->sampler, ids, n);
    }
    return st ? st : logprobs_end(chooser->logprobs, list, &step, ids);
}

status chooser_next(struct chooser *chooser, struct sequence *const *rows, int n, bool prompt)
{
    struct member *member = chooser->member;
    struct logprobs_found *found[SCRATCH_DECODE_ROWS];
    int32_t ids[SCRATCH_DECODE_ROWS];
    status st = choose(chooser, ids, found, rows, n, prompt);

    for (int i = 0; !st && i < n; i++) {
        rows[i]->token = ids[i];
        rows[i]->n_chosen++;
        member->shared_hash = member_hash(member->shared_hash, &ids[i], 1);
        if (comm_rank(member->comm) == 0) {
            results_token(chooser->results, rows[i]->slot, ids[i], found[i]);
        }
    }
    return st;
}
