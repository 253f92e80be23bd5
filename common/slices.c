#include "common/slices.h"

#include <assert.h>

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

/* Of a query and a key, in all heads: their product, and what its weight adds up. */
static double pair_work(const struct model_config *config)
{
    return 4.0 * config->head_dim * config->query_heads;
}

/* That a slice may have. */
static double most_work(const struct model_config *config)
{
    return SLICE_MOST_WORK * SLICE_ROWS * (key_work(config) + query_work(config));
}

/* Last rows whose queries score a layer; `after` is what it leaves. */
static int scoring_rows(const struct slices *it, const struct slice *layer,
                        const struct layer_rows *after)
{
    bool last = layer->layer + 1 == it->config->layers;
    bool scores = it->params->method == METHOD_PYRAMIDINFER
                      ? !last && after->propagated < layer->rows
                      : it->params->method != METHOD_GEMFILTER && after->selects;

    return scores ? method_score_rows(it->params, it->n_prompt) : 0;
}

/* PYRAMIDINFER scores with each chunk of keys. */
static bool scores_apart(const struct slices *it, const struct slice *layer)
{
    double work = pair_work(it->config) * layer->scoring * layer->rows;

    return it->params->method != METHOD_PYRAMIDINFER && layer->scoring > 0 &&
           (method_scores_open(it->params) || layer->scoring > SLICE_WINDOW_ROWS ||
            work > most_work(it->config) / 2);
}

static void start_layer(struct slices *it, int layer, int rows, int nth_layer)
{
    struct layer_rows after = method_layer_rows(it->params, it->config, it->n_prompt, layer, rows);
    int chosen = layer == it->config->layers - 1 ? 1 : after.propagated;

    it->next = (struct slice){
        .layer = layer,
        .rows = rows,
        .chosen = chosen,
        .nth_layer = nth_layer,
    };
    it->next.scoring = scoring_rows(it, &it->next, &after);
    it->next.apart = scores_apart(it, &it->next);
    it->next.kind = chosen < rows || it->next.apart ? SLICE_KEYS : SLICE_WHOLE;
}

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

/* The rows of the layer's current part. */
static int first_row(const struct slice *slice)
{
    return slice->kind == SLICE_SCORES ? slice->rows - slice->scoring : 0;
}

static int end_row(const struct slice *slice)
{
    return slice->kind == SLICE_QUERIES ? slice->chosen : slice->rows;
}

/* Of query rows [begin, end) and the keys up to their own. */
static double causal_pairs(int begin, int end)
{
    return (end - begin) * ((begin + end + 1) / 2.0);
}

static double scoring_pairs(const struct slices *it, const struct slice *slice)
{
    int window = slice->rows - slice->scoring;
    int first = slice->begin > window ? slice->begin : window;
    bool pyramid = it->params->method == METHOD_PYRAMIDINFER;
    double pairs = 0;

    if (slice->kind == SLICE_SCORES) {
        return method_scores_open(it->params) ? (double)slice->scoring * (slice->end - slice->begin)
                                              : causal_pairs(slice->begin, slice->end);
    }
    if (slice->kind == SLICE_QUERIES) {
        return 0;
    }
    if (method_sums_columns(it->params, it->n_prompt)) {
        pairs = causal_pairs(slice->begin, slice->end);
    }
    if (pyramid && slice->scoring > 0 && first < slice->end) {
        pairs += causal_pairs(first, slice->end);
    }
    if (!pyramid && slice->chooses) {
        pairs += (double)slice->scoring * slice->rows;
    }
    return pairs;
}

static void set_rows(struct slices *it, int begin, int end)
{
    struct slice *slice = &it->next;
    bool last = end == end_row(slice);

    slice->begin = begin;
    slice->end = end;
    slice->chooses =
        last && slice->kind != SLICE_QUERIES && (slice->kind == SLICE_SCORES || !slice->apart);
    slice->pairs = scoring_pairs(it, slice);
}

/* Sets the chunk that starts at `begin`. */
static void set_chunk(struct slices *it, int begin)
{
    double most = most_work(it->config);
    int total = end_row(&it->next);
    int rows = SLICE_ROWS;

    set_rows(it, begin, total - begin < rows ? total : begin + rows);
    while (rows > SLICE_LEAST_ROWS && slice_work(it->config, &it->next) > most) {
        rows /= 2;
        set_rows(it, begin, total - begin < rows ? total : begin + rows);
    }
}

void slices_begin(struct slices *it, const struct method_params *params,
                  const struct model_config *config, int n_prompt)
{
    assert(n_prompt > 0);
    *it = (struct slices){.params = params, .config = config, .n_prompt = n_prompt};
    start_first_layer(it);
    set_chunk(it, 0);
}

/* Keys, scores and queries of a layer, or all of it in one; then the next layer.  False after the
 * last one. */
static bool next_part(struct slices *it)
{
    struct slice *slice = &it->next;

    if (slice->kind == SLICE_KEYS && slice->apart) {
        slice->kind = SLICE_SCORES;
        return true;
    }
    if (slice->kind == SLICE_SCORES || (slice->kind == SLICE_KEYS && !slice->filter)) {
        slice->kind = SLICE_QUERIES;
        return true;
    }
    return start_next_layer(it);
}

static void step(struct slices *it)
{
    struct slice *next = &it->next;

    if (next->end < end_row(next)) {
        set_chunk(it, next->end);
    } else if (next_part(it)) {
        set_chunk(it, first_row(next));
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
    double keys = key_work(config);
    double n = slice->end - slice->begin;
    double work = slice->pairs * pair_work(config);

    if (slice->kind == SLICE_SCORES) {
        return work + n * 2.0 * config->hidden * config->head_dim * config->query_heads;
    }
    if (slice->kind != SLICE_QUERIES) {
        work += slice->filter && slice->kind == SLICE_KEYS ? n * keys / 2 : n * keys;
    }
    if (slice->kind != SLICE_KEYS) {
        work += n * query_work(config) + attention_pairs(slice) * pair_work(config);
    }
    return work;
}

/* Work is linear in rows and pairs, so one slice as long as its part stands for its chunks. */
double slices_total_work(const struct method_params *params, const struct model_config *config,
                         int n_prompt)
{
    struct slices it = {.params = params, .config = config, .n_prompt = n_prompt};
    double work = 0;

    start_first_layer(&it);
    do {
        set_rows(&it, first_row(&it.next), end_row(&it.next));
        work += slice_work(config, &it.next);
    } while (next_part(&it));
    return work;
}
