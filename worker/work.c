#include "worker/work.h"

#include "common/slices.h"
#include "worker/comm_transport.h"

/* Elements of the matrices of a layer. */
struct sizes {
    double hidden, query, key; /* widths */
    double keys;               /* K and V together */
    double queries;            /* Q, output and MLP */
};

static struct sizes sizes_of(const struct model_config *model)
{
    struct sizes s = {
        .hidden = model->hidden,
        .query = (double)model->query_heads * model->head_dim,
        .key = (double)model->kv_heads * model->head_dim,
    };

    s.keys = 2 * s.hidden * s.key;
    s.queries = 2 * s.hidden * s.query + 3 * s.hidden * (double)model->intermediate;
    return s;
}

/* Vectors of `floats` floats, summed over the ranks. */
static void add_collectives(struct work *work, const struct work_config *config, double n,
                            double floats)
{
    double peers = config->ranks - 1;

    if (peers > 0) {
        work->collectives += n;
        work->collective_bytes += n * floats * (double)sizeof(float) *
                                  (floats <= COMM_WHOLE_LIMIT ? peers : 2 * peers / config->ranks);
    }
}

static void add_slice(struct work *work, const struct work_config *config,
                      const struct slice *slice)
{
    struct sizes s = sizes_of(config->model);
    double act = (double)config->act_bytes;
    double share = 1.0 / config->ranks;
    double rows = slice->end - slice->begin;
    double linear = 0, elements = 0;

    work->slices++;
    if (slice->kind == SLICE_SCORES) {
        elements += s.hidden * s.query;
        work->kv_bytes += share * slice->rows * s.key * act;
        work->residual_bytes += rows * s.hidden * sizeof(float);
    } else if (slice->kind != SLICE_QUERIES) {
        double keys = slice->filter && slice->kind == SLICE_KEYS ? s.keys / 2 : s.keys;
        elements += keys;
        work->kv_bytes += share * rows * 2 * s.key * act;
        work->residual_bytes += rows * s.hidden * sizeof(float);
    }
    if (slice->kind == SLICE_WHOLE || slice->kind == SLICE_QUERIES) {
        double seen = slice->kind == SLICE_WHOLE ? slice->end : slice->rows;
        elements += s.queries;
        work->kv_bytes += share * seen * 2 * s.key * act;
        work->residual_bytes += 7 * rows * s.hidden * sizeof(float);
        add_collectives(work, config, 2, rows * s.hidden);
    }
    linear = 2 * rows * elements;
    work->linear += share * linear;
    work->attention += share * (slice_work(config->model, slice) - linear);
    work->weight_bytes += share * elements * act;
    if (slice->layer == 0 && (slice->kind == SLICE_WHOLE || slice->kind == SLICE_KEYS)) {
        add_collectives(work, config, 1, rows * s.hidden); /* the embedding */
    }
}

/* The output matrix, for some rows. */
static void add_logits(struct work *work, const struct work_config *config, int rows)
{
    double elements = (double)config->model->hidden * config->model->vocab / config->ranks;

    work->linear += 2.0 * rows * elements;
    work->weight_bytes += elements * (double)config->act_bytes;
}

struct work work_prefill(const struct work_config *config)
{
    struct work work = {0};
    struct slices it;
    struct slice slice;

    slices_begin(&it, config->params, config->model, config->n_prompt);
    while (slices_next(&it, &slice)) {
        bool drops = slice.chooses && slice.chosen > 1 && slice.chosen < slice.rows;
        add_slice(&work, config, &slice);
        if (drops) {
            add_collectives(&work, config, 1, slice.rows); /* the scores */
        }
    }
    add_logits(&work, config, 1);
    return work;
}

struct work work_decode(const struct work_config *config, int rows)
{
    const struct model_config *model = config->model;
    struct sizes s = sizes_of(model);
    struct work work = {0};
    double act = (double)config->act_bytes, n = rows, share = 1.0 / config->ranks;
    int entering = method_first_rows(config->params, config->n_prompt);

    for (int layer = 0; layer < model->layers; layer++) {
        struct layer_rows counts =
            method_layer_rows(config->params, model, config->n_prompt, layer, entering);
        double kept = counts.kept + 1.0;

        work.linear += share * 2 * n * (s.keys + s.queries);
        work.attention += share * 4 * n * kept * s.query;
        work.weight_bytes += share * (s.keys + s.queries) * act;
        work.kv_bytes += share * n * kept * 2 * s.key * act;
        work.residual_bytes += 8 * n * s.hidden * sizeof(float);
        add_collectives(&work, config, 2, n * s.hidden);
        entering = counts.propagated;
    }
    add_collectives(&work, config, 1, n * s.hidden);
    add_logits(&work, config, rows);
    return work;
}
