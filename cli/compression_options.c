#include "cli/compression_options.h"

#include "common/method.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#define UNSET_INT INT64_MIN
#define UNSET_DOUBLE ((double)NAN)

/* The last of them stands for no choice and is never found. */
static const char *const poolings[] = {"", "max", "avg", NULL};
static const char *const granularities[] = {"", "kv", "q", NULL};
static const char *const reductions[] = {"", "sum", "mean", "max", NULL};
static const char *const stages[] = {"", "pre", "post", NULL};

/* The place of a word in its list; 0 if it is not given, -1 if it is not there. */
static int word_index(const char *const *words, const char *word)
{
    for (int i = 0; word && words[i]; i++) {
        if (strcasecmp(words[i], word) == 0) {
            return i;
        }
    }
    return word ? -1 : 0;
}

void compression_options_init(struct compression_options *options)
{
    *options = (struct compression_options){
        .retain_rate = UNSET_DOUBLE,
        .tsp_rate = UNSET_DOUBLE,
        .capacity = UNSET_INT,
        .window = UNSET_INT,
        .kernel = UNSET_INT,
        .tsp_layer = UNSET_INT,
        .tsp_len = UNSET_INT,
    };
}

void compression_options_rows(struct option *rows, struct compression_options *options)
{
    struct compression_options *o = options;
    const double u32 = UINT32_MAX;
    const struct option table[COMPRESSION_OPTIONS] = {
        {"method", OPTION_STRING, &o->method, "NAME", "FULL, FASTKV, ...", 0, 0},
        {"retain-rate", OPTION_DOUBLE, &o->retain_rate, "X", "share of rows kept", 0, 1},
        {"capacity", OPTION_INT, &o->capacity, "N", "rows kept per head and layer", 1, u32},
        {"window", OPTION_INT, &o->window, "N", "last tokens, which score the others", 1, u32},
        {"kernel", OPTION_INT, &o->kernel, "N", "odd; smooths the scores", 1, 63},
        {"pooling", OPTION_STRING, &o->pooling, "NAME", "max or avg", 0, 0},
        {"granularity", OPTION_STRING, &o->granularity, "NAME", "kv or q", 0, 0},
        {"group-reduce", OPTION_STRING, &o->group_reduce, "NAME", "sum, mean or max", 0, 0},
        {"reduce-stage", OPTION_STRING, &o->reduce_stage, "NAME", "pre or post", 0, 0},
        {"tsp-layer", OPTION_INT, &o->tsp_layer, "N", "after it only some tokens go on", 0, u32},
        {"tsp-rate", OPTION_DOUBLE, &o->tsp_rate, "X", "share of tokens that go on", 0, 1},
        {"tsp-len", OPTION_INT, &o->tsp_len, "N", "number of tokens that go on", 1, u32},
    };

    memcpy(rows, table, sizeof(table));
}

status compression_options_check(const struct compression_options *options)
{
    const struct compression_options *o = options;

    if (!isnan(o->retain_rate) && o->capacity != UNSET_INT) {
        return status_fail(STATUS_INVALID, "give --retain-rate or --capacity, not both");
    }
    if (!isnan(o->tsp_rate) && o->tsp_len != UNSET_INT) {
        return status_fail(STATUS_INVALID, "give --tsp-rate or --tsp-len, not both");
    }
    if (o->method && !method_by_name(o->method)) {
        return status_fail(STATUS_INVALID, "--method: there is no method \"%s\"", o->method);
    }
    if (word_index(poolings, o->pooling) < 0) {
        return status_fail(STATUS_INVALID, "--pooling is max or avg");
    }
    if (word_index(granularities, o->granularity) < 0) {
        return status_fail(STATUS_INVALID, "--granularity is kv or q");
    }
    if (word_index(reductions, o->group_reduce) < 0) {
        return status_fail(STATUS_INVALID, "--group-reduce is sum, mean or max");
    }
    if (word_index(stages, o->reduce_stage) < 0) {
        return status_fail(STATUS_INVALID, "--reduce-stage is pre or post");
    }
    return STATUS_OK;
}

/* Sets a field that is a one-member oneof. */
#define SET(message, field, FIELD_CASE, value)     \
    do {                                           \
        (message)->_##field##_case = (FIELD_CASE); \
        (message)->field = (value);                \
    } while (0)

static void fill_fastkv(struct compression_message *m, const struct compression_options *o)
{
    if (o->tsp_layer != UNSET_INT) {
        SET(&m->fastkv, tsp_layer, WINNOW__V1__FAST_KV___TSP_LAYER_TSP_LAYER,
            (uint32_t)o->tsp_layer);
        m->compression.fastkv = &m->fastkv;
    }
    if (!isnan(o->tsp_rate)) {
        m->fastkv.tsp_case = WINNOW__V1__FAST_KV__TSP_TSP_RATE;
        m->fastkv.tsp_rate = o->tsp_rate;
        m->compression.fastkv = &m->fastkv;
    }
    if (o->tsp_len != UNSET_INT) {
        m->fastkv.tsp_case = WINNOW__V1__FAST_KV__TSP_TSP_LEN;
        m->fastkv.tsp_len = (uint32_t)o->tsp_len;
        m->compression.fastkv = &m->fastkv;
    }
}

void compression_options_fill(struct compression_message *out,
                              const struct compression_options *options)
{
    const struct compression_options *o = options;
    Winnow__V1__Compression *c = &out->compression;

    winnow__v1__compression__init(c);
    winnow__v1__fast_kv__init(&out->fastkv);
    if (o->method) {
        c->method = (Winnow__V1__Method)method_by_name(o->method);
    }
    if (!isnan(o->retain_rate)) {
        c->budget_case = WINNOW__V1__COMPRESSION__BUDGET_RETAIN_RATE;
        c->retain_rate = o->retain_rate;
    }
    if (o->capacity != UNSET_INT) {
        c->budget_case = WINNOW__V1__COMPRESSION__BUDGET_CAPACITY;
        c->capacity = (uint32_t)o->capacity;
    }
    if (o->window != UNSET_INT) {
        SET(c, window, WINNOW__V1__COMPRESSION___WINDOW_WINDOW, (uint32_t)o->window);
    }
    if (o->kernel != UNSET_INT) {
        SET(c, kernel, WINNOW__V1__COMPRESSION___KERNEL_KERNEL, (uint32_t)o->kernel);
    }
    c->pooling = (Winnow__V1__Pooling)word_index(poolings, o->pooling);
    c->granularity = (Winnow__V1__Granularity)word_index(granularities, o->granularity);
    c->group_reduce = (Winnow__V1__GroupReduce)word_index(reductions, o->group_reduce);
    c->reduce_stage = (Winnow__V1__ReduceStage)word_index(stages, o->reduce_stage);
    fill_fastkv(out, o);
}
