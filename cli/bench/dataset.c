#include "cli/bench/dataset.h"

#include "cli/bench/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LENGTHS_KEY = 0x6c656e67, /* apart from the keys of requests */
    BLOCKS_KEY = 0x626c6f63,
};

status dataset_add(struct dataset *dataset, struct dataset_item **out)
{
    size_t n = dataset->n;

    if (n == DATASET_MAX_ITEMS) {
        return status_fail(STATUS_INVALID, "more than %d requests", DATASET_MAX_ITEMS);
    }
    if ((n & (n - 1)) == 0) { /* full at every power of two */
        size_t target = n ? n * 2 : 1;
        struct dataset_item *bigger = realloc(dataset->items, target * sizeof(*bigger));
        if (!bigger) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for the data set");
        }
        dataset->items = bigger;
    }
    dataset->n++;
    memset(&dataset->items[n], 0, sizeof(dataset->items[n]));
    *out = &dataset->items[n];
    return STATUS_OK;
}

status dataset_keep_text(struct dataset *dataset, char *text)
{
    char **bigger = realloc(dataset->texts, (dataset->n_texts + 1) * sizeof(*bigger));

    if (!bigger) {
        free(text);
        return status_fail(STATUS_EXHAUSTED, "out of memory for the data set");
    }
    dataset->texts = bigger;
    dataset->texts[dataset->n_texts++] = text;
    return STATUS_OK;
}

static uint32_t draw_length(struct rng *rng, int64_t length, double ratio)
{
    double low = floor((double)length * (1 - ratio));
    double high = ceil((double)length * (1 + ratio));

    low = fmax(low, 1);
    return (uint32_t)low + rng_below(rng, (uint32_t)(high - low) + 1);
}

static status make_random(struct dataset *dataset)
{
    const struct dataset_config *c = &dataset->config;
    struct rng rng;

    rng_init(&rng, c->seed, LENGTHS_KEY);
    for (int64_t i = 0; i < c->n; i++) {
        struct dataset_item *item = NULL;
        status st = dataset_add(dataset, &item);
        if (st) {
            return st;
        }
        assert(item);
        item->n_input = draw_length(&rng, c->input_len, c->range_ratio);
        item->n_output = draw_length(&rng, c->output_len, c->range_ratio);
    }
    return STATUS_OK;
}

/* As many items as were asked for: the file's again and again, or its first. */
static status fit(struct dataset *dataset)
{
    size_t have = dataset->n;
    size_t want = dataset->config.n ? (size_t)dataset->config.n : have;

    if (have == 0) {
        return status_fail(STATUS_INVALID, "%s: holds no request", dataset->config.path);
    }
    while (dataset->n > want) {
        free(dataset->items[--dataset->n].blocks);
    }
    if (dataset->config.kind == DATASET_TRACE) {
        return STATUS_OK; /* a trace happens once */
    }
    while (dataset->n < want) {
        struct dataset_item *item = NULL;
        status st = dataset_add(dataset, &item);
        if (st) {
            return st;
        }
        assert(item);
        *item = dataset->items[(dataset->n - 1) % have];
    }
    return STATUS_OK;
}

status dataset_load(struct dataset *out, const struct dataset_config *config)
{
    struct dataset dataset = {.config = *config};
    status st;

    if (config->n_eos >= (int)config->vocab) {
        return status_fail(STATUS_INVALID, "the vocabulary of %u tokens leaves none to draw",
                           config->vocab);
    }
    if (config->kind == DATASET_RANDOM) {
        st = make_random(&dataset);
    } else {
        st = config->kind == DATASET_FILE ? dataset_read_file(&dataset)
                                          : dataset_read_trace(&dataset);
        st = st ? st : fit(&dataset);
    }
    if (st) {
        dataset_free(&dataset);
        return st;
    }
    *out = dataset;
    return STATUS_OK;
}

void dataset_free(struct dataset *dataset)
{
    for (size_t i = 0; i < dataset->n; i++) {
        free(dataset->items[i].blocks);
    }
    for (size_t i = 0; i < dataset->n_texts; i++) {
        free(dataset->texts[i]);
    }
    free(dataset->items);
    free(dataset->texts);
    *dataset = (struct dataset){0};
}

static bool is_eos(const struct dataset_config *config, uint32_t id)
{
    for (int i = 0; i < config->n_eos; i++) {
        if (config->eos[i] == id) {
            return true;
        }
    }
    return false;
}

static void draw_ids(const struct dataset_config *config, struct rng *rng, uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        do {
            ids[i] = rng_below(rng, config->vocab);
        } while (is_eos(config, ids[i]));
    }
}

void dataset_ids(const struct dataset *dataset, const struct dataset_item *item, uint64_t key,
                 uint32_t *ids)
{
    const struct dataset_config *config = &dataset->config;
    size_t block = (size_t)config->trace_block;
    struct rng rng;
    size_t at = 0;

    for (size_t b = 0; b < item->n_blocks && at < item->n_input; b++) {
        size_t n = item->n_input - at < block ? item->n_input - at : block;
        rng_init(&rng, config->seed ^ BLOCKS_KEY, item->blocks[b]);
        draw_ids(config, &rng, ids + at, n);
        at += n;
    }
    rng_init(&rng, config->seed, key);
    draw_ids(config, &rng, ids + at, item->n_input - at);
}
