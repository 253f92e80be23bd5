#include "common/slices.h"

#include <assert.h>

static void start_filter_layer(struct slices *it, int layer)
{
    bool chooses = layer == it->params->filter_layer;

    it->next = (struct slice){
        .kind = chooses ? SLICE_KEYS : SLICE_WHOLE,
        .layer = layer,
        .rows = it->n_prompt,
        .chosen = chooses ? method_first_rows(it->params, it->n_prompt) : it->n_prompt,
        .filter = true,
        .nth_layer = layer,
    };
}

static void start_layer(struct slices *it, int layer, int rows, int nth_layer)
{
    struct layer_rows after = method_layer_rows(it->params, it->config, it->n_prompt, layer, rows);
    int chosen = layer == it->config->layers - 1 ? 1 : after.propagated;

    it->next = (struct slice){
        .kind = chosen < rows ? SLICE_KEYS : SLICE_WHOLE,
        .layer = layer,
        .rows = rows,
        .chosen = chosen,
        .nth_layer = nth_layer,
    };
}

static void start_first_layer(struct slices *it)
{
    if (method_filters(it->params, it->n_prompt)) {
        start_filter_layer(it, 0);
    } else {
        start_layer(it, 0, it->n_prompt, 0);
    }
}

/* False after the last one. */
static bool start_next_layer(struct slices *it)
{
    const struct slice last = it->next;

    if (last.filter && last.kind == SLICE_WHOLE) {
        start_filter_layer(it, last.layer + 1);
    } else if (last.filter) {
        start_layer(it, 0, last.chosen, last.nth_layer + 1);
    } else if (last.layer + 1 < it->config->layers) {
        start_layer(it, last.layer + 1, last.chosen, last.nth_layer + 1);
    } else {
        return false;
    }
    return true;
}

/* Of the linear layers, for one row. */
static double key_work(const struct model_config *config)
{
    return 4.0 * config->hidden * config->head_dim * config->kv_heads;
}

static double query_work(const struct model_config *config)
{
    return 4.0 * config->hidden * config->head_dim * config->query_heads +
           6.0 * config->hidden * config->intermediate;
}

/* Sets the chunk that starts at `begin`, of `total` rows. */
static void set_chunk(struct slices *it, int begin, int total)
{
    double most = SLICE_MOST_WORK * SLICE_ROWS * (key_work(it->config) + query_work(it->config));
    struct slice *slice = &it->next;
    int rows = SLICE_ROWS;

    slice->begin = begin;
    slice->end = total - begin < rows ? total : begin + rows;
    while (rows > SLICE_LEAST_ROWS && slice_work(it->config, slice) > most) {
        rows /= 2;
        slice->end = total - begin < rows ? total : begin + rows;
    }
    slice->last_keys = slice->kind != SLICE_QUERIES && slice->end == total;
}

void slices_begin(struct slices *it, const struct method_params *params,
                  const struct model_config *config, int n_prompt)
{
    assert(n_prompt > 0);
    *it = (struct slices){.params = params, .config = config, .n_prompt = n_prompt};
    start_first_layer(it);
    set_chunk(it, 0, n_prompt);
}

static void step(struct slices *it)
{
    struct slice *next = &it->next;
    int total = next->kind == SLICE_QUERIES ? next->chosen : next->rows;

    if (next->end < total) {
        set_chunk(it, next->end, total);
    } else if (next->kind == SLICE_KEYS && !next->filter) {
        next->kind = SLICE_QUERIES;
        set_chunk(it, 0, next->chosen);
    } else if (start_next_layer(it)) {
        set_chunk(it, 0, next->rows);
    } else {
        next->end = 0;
    }
}

bool slices_next(struct slices *it, struct slice *out)
{
    if (it->next.end == 0) {
        return false;
    }
    *out = it->next;
    step(it);
    return true;
}

int slices_layers(const struct method_params *params, const struct model_config *config,
                  int n_prompt)
{
    return config->layers + (method_filters(params, n_prompt) ? params->filter_layer + 1 : 0);
}

/* Causal pairs of query rows [begin, end) in a sequence of `rows`, chosen rows spread evenly. */
static double attention_pairs(const struct slice *slice)
{
    double spread = (double)slice->rows / slice->chosen;
    double mean_row = spread * (slice->begin + slice->end + 1) / 2.0;

    return (slice->end - slice->begin) * (slice->chosen == 1 ? (double)slice->rows : mean_row);
}

double slice_work(const struct model_config *config, const struct slice *slice)
{
    double head = config->head_dim;
    double keys = key_work(config);
    double n = slice->end - slice->begin;
    double work = 0;

    if (slice->kind != SLICE_QUERIES) {
        work += slice->filter && slice->kind == SLICE_KEYS ? n * keys / 2 : n * keys;
    }
    if (slice->kind != SLICE_KEYS) {
        work += n * query_work(config) + 4.0 * attention_pairs(slice) * head * config->query_heads;
    }
    return work;
}

/* Work is linear in rows and pairs, so one slice as long as its layer stands for its chunks. */
double slices_total_work(const struct method_params *params, const struct model_config *config,
                         int n_prompt)
{
    struct slices it = {.params = params, .config = config, .n_prompt = n_prompt};
    double work = 0;

    bool more = true;

    start_first_layer(&it);
    while (more) {
        struct slice *next = &it.next;
        next->begin = 0;
        next->end = next->kind == SLICE_QUERIES ? next->chosen : next->rows;
        work += slice_work(config, next);
        if (next->kind == SLICE_KEYS && !next->filter) {
            next->kind = SLICE_QUERIES;
        } else {
            more = start_next_layer(&it);
        }
    }
    return work;
}
