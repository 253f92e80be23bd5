#include "worker/chooser.h"

#include "worker/penalties.h"
#include "worker/sampler.h"

#include <stdlib.h>

struct chooser {
    struct member *member;
    struct results *results;
    struct penalties *penalties;
    struct sampler *sampler;
    struct logprobs *logprobs;
};

uint64_t chooser_bytes(const struct model *model)
{
    int ranks = model->split.ranks;

    return penalties_bytes(model) + sampler_bytes(ranks) + logprobs_bytes(ranks);
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
        st = sampler_create(&chooser->sampler, member);
    }
    if (!st) {
        st = logprobs_create(&chooser->logprobs, member);
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
        penalties_destroy(chooser->penalties);
        free(chooser);
    }
}

status chooser_begin(struct chooser *chooser, struct sequence *sequence, const int32_t *prompt,
                     int n)
{
    return penalties_begin(chooser->penalties, sequence, prompt, n);
}

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
    return device_download(member->dev, values, member->scratch->logits + (size_t)row * n,
                           n * sizeof(*values));
}

/* found (n): of the chosen `ids`; NULL where not asked for. */
static status find_logprobs(struct chooser *chooser, struct logprobs_found **found,
                            struct sequence *const *rows, const int32_t *ids, int n)
{
    struct logprobs_found *list[SCRATCH_DECODE_ROWS];
    struct logprobs_row wanted[SCRATCH_DECODE_ROWS];
    int n_wanted = 0;

    for (int i = 0; i < n; i++) {
        uint32_t logprobs = rows[i]->sampling.logprobs;
        found[i] = logprobs > 0 ? results_found(chooser->results) : NULL;
        if (found[i]) {
            wanted[n_wanted] = (struct logprobs_row){i, ids[i], (int)logprobs - 1};
            list[n_wanted++] = found[i];
        }
    }
    return n_wanted > 0 ? logprobs_find(chooser->logprobs, list, chooser->member->scratch->logits,
                                        wanted, n_wanted)
                        : STATUS_OK;
}

status chooser_next(struct chooser *chooser, struct sequence *const *rows, int n, bool prompt)
{
    struct member *member = chooser->member;
    struct sampler_row draws[SCRATCH_DECODE_ROWS];
    struct logprobs_found *found[SCRATCH_DECODE_ROWS];
    int32_t ids[SCRATCH_DECODE_ROWS];
    const float *logits;
    status st = STATUS_OK;

    for (int i = 0; !st && i < n; i++) {
        draws[i] = (struct sampler_row){&rows[i]->sampling, rows[i]->n_chosen};
        st = report_logits(chooser, rows[i], i, prompt);
    }
    if (!st) {
        st = penalties_apply(chooser->penalties, &logits, member->scratch->logits, rows, n);
    }
    if (!st) {
        st = sampler_choose(chooser->sampler, ids, logits, draws, n);
    }
    if (!st) {
        st = find_logprobs(chooser, found, rows, ids, n);
    }
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
