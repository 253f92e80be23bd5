#include "worker/forward.h"

const struct forward_products forward_chunk = {op_linear, op_linear_each, op_linear_add};
const struct forward_products forward_rows = {op_linear_rows, op_linear_rows_each,
                                              op_linear_rows_add};

status forward_embed(const struct member *member, float *residual, const int32_t *ids, int n)
{
    const struct model *model = member->model;
    size_t floats = (size_t)n * (size_t)model->config.hidden;
    status st = op_embed(member->dev, residual, ids, n, &model->embed, model->split.vocab_first);

    return st ? st : comm_all_reduce(member->comm, residual, floats);
}

status forward_begin_embed(const struct member *member, float *residual, const int32_t *ids, int n,
                           uint64_t *ticket)
{
    const struct model *model = member->model;
    size_t floats = (size_t)n * (size_t)model->config.hidden;
    status st = op_embed(member->dev, residual, ids, n, &model->embed, model->split.vocab_first);

    return st ? st : comm_begin_all_reduce(member->comm, residual, floats, ticket);
}

/* scratch->partial = x w^T, each rank having some of the columns. */
static status sum_over_ranks(const struct member *member, const struct matrix *w,
                             forward_linear *linear, const void *x, int rows)
{
    float *partial = member->scratch->partial;
    status st = linear(member->dev, partial, DTYPE_F32, x, w, rows);

    return st ? st : comm_all_reduce(member->comm, partial, (size_t)rows * (size_t)w->rows);
}

static status norm(const struct member *member, const struct layer_weights *layer,
                   const float *residual, int rows)
{
    const struct model_config *config = &member->model->config;

    return op_rmsnorm(member->dev, member->scratch->normed, residual, layer->attention_norm, rows,
                      config->hidden, config->rms_eps);
}

/* residual += attended wo^T, and scratch->normed = its norm. */
static status project_and_norm(const struct member *member, const struct layer_weights *layer,
                               const struct forward_products *products, float *residual, int rows)
{
    const struct model_config *config = &member->model->config;
    struct scratch *s = member->scratch;
    status st;

    if (comm_size(member->comm) == 1) {
        st = products->add(member->dev, residual, s->partial, s->attended, &layer->o, rows);
        return st ? st : norm(member, layer, residual, rows);
    }
    st = sum_over_ranks(member, &layer->o, products->linear, s->attended, rows);
    return st ? st
              : op_add_rmsnorm(member->dev, s->normed, residual, s->partial, layer->attention_norm,
                               rows, config->hidden, config->rms_eps);
}

/* residual += x w^T, each rank having some of the columns. */
static status project(const struct member *member, const struct matrix *w,
                      const struct forward_products *products, float *residual, const void *x,
                      int rows)
{
    float *partial = member->scratch->partial;
    status st;

    if (comm_size(member->comm) == 1) {
        return products->add(member->dev, residual, partial, x, w, rows);
    }
    st = sum_over_ranks(member, w, products->linear, x, rows);
    return st ? st : op_add(member->dev, residual, partial, (size_t)rows * (size_t)w->rows);
}

/* scratch->gate (rows, MLP columns) = what the down projection takes, from scratch->normed. */
static status mlp_columns(const struct member *member, const struct layer_weights *layer,
                          const struct forward_products *products, int rows)
{
    struct scratch *s = member->scratch;
    const struct weight_product both[] = {{s->gate, &layer->gate}, {s->up, &layer->up}};
    size_t mlp = (size_t)rows * (size_t)layer->gate.rows;
    status st = products->each(member->dev, both, 2, s->normed, rows);

    return st ? st : op_silu_mul(member->dev, s->gate, s->gate, s->up, mlp);
}

status forward_output(const struct member *member, const struct layer_weights *layer,
                      const struct forward_products *products, float *residual, int rows)
{
    status st = project_and_norm(member, layer, products, residual, rows);

    if (!st) {
        st = mlp_columns(member, layer, products, rows);
    }
    return st ? st : project(member, &layer->down, products, residual, member->scratch->gate, rows);
}

static status begin_projection(const struct member *member, const struct matrix *w, const void *x,
                               struct forward_sum *sum)
{
    size_t n = (size_t)sum->rows * (size_t)w->rows;
    status st = op_linear(member->dev, sum->partial, DTYPE_F32, x, w, sum->rows);

    return st ? st : comm_begin_all_reduce(member->comm, sum->partial, n, &sum->ticket);
}

status forward_begin_output(const struct member *member, const struct layer_weights *layer,
                            struct forward_sum *sum)
{
    return begin_projection(member, &layer->o, member->scratch->attended, sum);
}

status forward_begin_mlp(const struct member *member, const struct layer_weights *layer,
                         struct forward_sum *sum)
{
    status st = norm(member, layer, sum->residual, sum->rows);

    if (!st) {
        st = mlp_columns(member, layer, &forward_chunk, sum->rows);
    }
    return st ? st : begin_projection(member, &layer->down, member->scratch->gate, sum);
}

status forward_finish(const struct member *member, const struct forward_sum *sum)
{
    size_t n = (size_t)sum->rows * (size_t)member->model->config.hidden;
    status st = comm_finish(member->comm, sum->ticket);

    return st ? st : op_add(member->dev, sum->residual, sum->partial, n);
}

status forward_logits(const struct member *member, const float *residual, int rows)
{
    const struct model *model = member->model;
    struct scratch *s = member->scratch;
    status st = op_rmsnorm(member->dev, s->normed, residual, model->final_norm, rows,
                           model->config.hidden, model->config.rms_eps);

    return st ? st
              : op_linear_rows(member->dev, s->logits, DTYPE_F32, s->normed, &model->lm_head, rows);
}
