#include "common/log.h"
#include "coordinator/core_state.h"
#include "coordinator/meters.h"

#include <inttypes.h>

static status live_record(struct core *core, struct live *live, uint32_t sample,
                          struct record **out)
{
    status st = STATUS_OK;

    if (!live->records[sample]) {
        st = record_create(&live->records[sample], core->config->model);
    }
    *out = live->records[sample];
    return st;
}

/* The request cannot be served to its end: a trace over its limit, say. */
static void fail_one(struct core *core, struct live *live, status st)
{
    struct failure failure;

    status_save(&failure, st);
    if (!scheduler_cancel(core->scheduler, live->request->handle, &failure, core->now)) {
        log_error("core: a record without a request reason=\"%s\"", failure.text);
    }
}

/* What is told of a prompt is told of each sample that shares it, and comes with the first one. */
static uint32_t end_of_samples(const struct live *live, uint32_t sample, bool of_prompt)
{
    return of_prompt ? live->request->n_samples : sample + 1;
}

static status take_prompts(struct core *core, uint32_t group, int rank,
                           const struct step_result *result)
{
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        const struct result_prompt *prompt = &result->prompts[i];
        struct record *record;
        uint32_t sample;
        struct live *live =
            scheduler_find(core->scheduler, group, prompt->slot, result->number, &sample);
        if (!live) {
            continue;
        }
        status st = prompt->after_decode
                        ? STATUS_OK
                        : scheduler_keep_pages(core->scheduler, group, prompt->slot, result->number,
                                               rank, prompt->pages, prompt->shared_pages);
        if (st) {
            return st;
        }
        uint32_t end = end_of_samples(live, sample, !prompt->after_decode);
        for (; !st && sample < end; sample++) {
            st = live_record(core, live, sample, &record);
            st = st ? st : record_prompt(record, prompt);
        }
        if (st) {
            fail_one(core, live, st);
        }
    }
    return STATUS_OK;
}

static void take_logits(struct core *core, uint32_t group, int rank,
                        const struct step_result *result)
{
    for (uint32_t i = 0; i < result->n_logits; i++) {
        const struct result_logits *logits = &result->logits[i];
        struct record *record;
        uint32_t sample;
        struct live *live =
            scheduler_find(core->scheduler, group, logits->slot, result->number, &sample);
        if (!live) {
            continue;
        }
        status st = STATUS_OK;
        uint32_t end = end_of_samples(live, sample, logits->prompt);
        for (; !st && sample < end; sample++) {
            st = live_record(core, live, sample, &record);
            st = st ? st : record_logits(record, &core->splits[rank], logits);
        }
        if (st) {
            fail_one(core, live, st);
        }
    }
}

static void take_failed(struct core *core, uint32_t group, int rank,
                        const struct step_result *result)
{
    for (uint32_t i = 0; i < result->n_failed; i++) {
        struct failure failure;
        status_save(&failure,
                    status_fail(STATUS_EXHAUSTED,
                                "rank %d of group %u has no memory left for what the request needs "
                                "beside its KV pages",
                                rank, group));
        scheduler_lacks_memory(core->scheduler, group, result->failed[i], result->number, &failure);
    }
}

/* All ranks answered a plan: records first, then the tokens that may end samples. */
static status take_step(struct core *core, uint32_t group, const struct step_result *ranks)
{
    for (int rank = 1; rank < core->config->tensor_parallel; rank++) {
        if (ranks[rank].index_hash != ranks[0].index_hash) {
            return status_fail(
                STATUS_INTERNAL,
                "group %u: ranks 0 and %d selected different tokens in plan %" PRIu64, group, rank,
                ranks[0].number);
        }
    }
    for (int rank = 0; rank < core->config->tensor_parallel; rank++) {
        status st = take_prompts(core, group, rank, &ranks[rank]);
        if (st) {
            return st;
        }
        take_logits(core, group, rank, &ranks[rank]);
        take_failed(core, group, rank, &ranks[rank]);
    }
    core->steps++;
    core->progress_ms = core->now;
    meters_step(core->config->meters, group, ranks);
    return scheduler_result(core->scheduler, group, &ranks[0], core->now);
}

void core_take_result(struct core *core, struct fleet_worker *worker, struct step_result *result)
{
    uint32_t group = fleet_worker_group(worker);
    struct gather *gather = core->gathers[group];
    const struct step_result *ranks;
    status st;

    if (!gather) {
        return; /* before the group was ever ready there is no plan to answer */
    }
    fleet_kv_used(core->fleet, worker, result->kv_bytes_used);
    st = gather_add_take(gather, (int)fleet_worker_rank(worker), result);
    while (!st && (ranks = gather_complete(gather))) {
        st = take_step(core, group, ranks);
        gather_pop(gather);
    }
    if (st) {
        core_break_group(core, group, st);
    }
}
