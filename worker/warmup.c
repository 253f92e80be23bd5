#include "worker/warmup.h"

#include "common/slices.h"

/* A method that chooses, propagates and keeps goes through most of the code. */
static void choose_method(struct method_params *out, const struct model_config *model)
{
    method_defaults(out, method_supported(METHOD_FASTKV) ? METHOD_FASTKV : METHOD_FULL, model);
}

static uint32_t count_slices(const struct method_params *params, const struct model_config *model,
                             int n_prompt)
{
    struct slices walk;
    struct slice slice;
    uint32_t n = 0;

    slices_begin(&walk, params, model, n_prompt);
    while (slices_next(&walk, &slice)) {
        n++;
    }
    return n;
}

static status step(struct engine *engine, struct plan *plan)
{
    struct step_result result;

    return engine_step(engine, plan, &result);
}

/* The prompt in plans of at most PLAN_MAX_ADVANCE slices. */
static status read_prompt(struct engine *engine, struct plan *plan, uint32_t n_slices)
{
    struct plan_advance advance = {0};
    status st = STATUS_OK;

    plan->n_advance = 1;
    plan->advance = &advance;
    while (!st && n_slices > 0) {
        advance.slices = n_slices < PLAN_MAX_ADVANCE ? n_slices : PLAN_MAX_ADVANCE;
        n_slices -= advance.slices;
        st = step(engine, plan);
        plan->n_begin = 0;
    }
    plan->n_advance = 0;
    plan->advance = NULL;
    return st;
}

/* As many tokens as find room for sure. */
static uint32_t prompt_length(const struct engine *engine, const struct model *model,
                              int max_context)
{
    int heads = model->split.query_heads * model->config.layers;
    int pages = heads * (WARMUP_PROMPT / ENGINE_PAGE_ROWS + 1);

    return max_context > WARMUP_PROMPT && engine_pages_total(engine) >= pages ? WARMUP_PROMPT : 1;
}

status warmup_run(struct engine *engine, const struct model *model, int max_context, uint64_t epoch)
{
    static const uint32_t slot = 0;
    const struct model_config *config = &model->config;
    uint32_t prompt[WARMUP_PROMPT];
    struct plan_begin begin = {.slot = slot,
                               .n_prompt = prompt_length(engine, model, max_context),
                               .prompt = prompt,
                               .sampling = {.max_tokens = 2, .top_p = 1, .repetition_penalty = 1},
                               .max_rows = max_context > 1 ? 1 : 0};
    struct plan plan = {.epoch = epoch, .n_begin = 1, .begin = &begin};

    choose_method(&begin.params, config);
    for (uint32_t i = 0; i < begin.n_prompt; i++) {
        prompt[i] = i % (uint32_t)config->vocab;
    }
    status st =
        read_prompt(engine, &plan, count_slices(&begin.params, config, (int)begin.n_prompt));
    if (!st && begin.max_rows) {
        plan.n_decode = 1;
        plan.decode = &slot;
        st = step(engine, &plan);
        plan.n_decode = 0;
    }
    if (!st) {
        plan.n_release = 1;
        plan.release = &slot;
        st = step(engine, &plan);
    }
    return st ? status_note(st, "warm-up") : STATUS_OK;
}
