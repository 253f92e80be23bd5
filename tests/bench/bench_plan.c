/*
 * bench_plan.c - prints what prompts and tokens cost a rank (worker/work.h), as JSON lines.
 *
 *   winnow-bench-plan DIR TOKENS RANKS      DIR: a model directory; its config.json is enough
 *
 * One line for the prompt phase and one for a token, for FULL and for FASTKV with its defaults,
 * in bfloat16.
 */
#include "worker/work.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static void print(const char *method, const char *phase, const struct work *w)
{
    printf("{\"method\": \"%s\", \"phase\": \"%s\", \"linear\": %.6g, \"attention\": %.6g, "
           "\"weight_bytes\": %.6g, \"kv_bytes\": %.6g, \"residual_bytes\": %.6g, "
           "\"collective_bytes\": %.6g, \"collectives\": %.0f, \"slices\": %.0f}\n",
           method, phase, w->linear, w->attention, w->weight_bytes, w->kv_bytes, w->residual_bytes,
           w->collective_bytes, w->collectives, w->slices);
}

int main(int argc, char **argv)
{
    static const enum method methods[] = {METHOD_FULL, METHOD_FASTKV};
    struct model_config model;
    long tokens = argc == 4 ? strtol(argv[2], NULL, 10) : 0;
    long ranks = argc == 4 ? strtol(argv[3], NULL, 10) : 0;

    if (tokens <= 0 || tokens > INT_MAX || ranks <= 0 || ranks > INT_MAX) {
        fprintf(stderr, "usage: winnow-bench-plan DIR TOKENS RANKS\n");
        return 2;
    }
    if (model_config_load(&model, argv[1])) {
        fprintf(stderr, "winnow-bench-plan: %s\n", status_text());
        return 1;
    }
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct method_params params;
        method_defaults(&params, methods[i], &model);
        const struct work_config config = {.model = &model,
                                           .params = &params,
                                           .n_prompt = (int)tokens,
                                           .ranks = (int)ranks,
                                           .act_bytes = 2};
        struct work prefill = work_prefill(&config), decode = work_decode(&config, 1);
        print(method_name(methods[i]), "prefill", &prefill);
        print(method_name(methods[i]), "decode", &decode);
    }
    return 0;
}
