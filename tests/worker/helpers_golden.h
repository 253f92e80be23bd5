/*
 * helpers_golden.h - golden cases (tests/goldens/README.md), read for tests of the engine.
 *
 * Failures end the test: a golden file that cannot be read is a broken test.
 */
#ifndef TESTS_WORKER_HELPERS_GOLDEN_H
#define TESTS_WORKER_HELPERS_GOLDEN_H

#include "common/method.h"

#include <cjson/cJSON.h>

struct golden {
    char name[256]; /* "llama-gqa/full_n37" */
    char model[1024];
    struct model_config config;
    struct method_params params;
    uint32_t *prompt;
    int n_prompt;
    uint32_t *generated;
    int n_generated;
    float *logits; /* (n_generated + 1, vocab) */
    int vocab;
    cJSON *json;
};

void golden_load(struct golden *out, const char *root, const char *model, const char *name);
void golden_free(struct golden *golden);

/* A list of numbers of the case; malloc'd. */
uint32_t *golden_list(const cJSON *array, int *n);

/* Calls `body` for every case of the bundled goldens, and of $WINNOW_TEST_DATA/goldens/public,
 * whose name starts with `prefix`. */
void golden_each(const char *prefix, void (*body)(const struct golden *golden));

#endif
