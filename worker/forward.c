#include "worker/forward.h"

status forward_embed(const struct member *member, float *residual, const int32_t *ids, int n)
{
    const struct model *model = member->model;
    status st = op_embed(member->dev, residual, ids, n, &model->embed, model->split.vocab_first);

    return st ? st
              : comm_all_reduce(member->comm, residual, (size_t)n * (size_t)model->config.hidden);
}

/* residual += x w^T, each rank having some of the columns. */
static status project(const struct member *member, const struct matrix *w, forward_linear *linear,
                      float *residual, const void *x, int rows)
{
    float *partial = member->scratch->partial;
    size_t n = (size_t)rows * (size_t)w->rows;
    status st = linear(member->dev, partial, DTYPE_F32, x, w, rows);

    if (!st) {
        st = comm_all_reduce(member->comm, partial, n);
    }
    return st ? st : op_add(member->dev, residual, partial, n);
}

status forward_output(const struct member *member, const struct layer_weights *layer,
                      forward_linear *linear, float *residual, int rows)
{
    const struct model_config *config = &member->model->config;
    struct scratch *s = member->scratch;
    enum dtype act = device_dtype(member->dev);
    size_t mlp = (size_t)rows * (size_t)layer->gate.rows;
    status st = project(member, &layer->o, linear, residual, s->attended, rows);

    if (!st) {
        st = op_rmsnorm(member->dev, s->normed, residual, layer->attention_norm, rows,
                        config->hidden, config->rms_eps);
    }
    if (!st) {
        st = linear(member->dev, s->gate, act, s->normed, &layer->gate, rows);
    }
    if (!st) {
        st = linear(member->dev, s->up, act, s->normed, &layer->up, rows);
    }
    if (!st) {
        st = op_silu_mul(member->dev, s->gate, s->gate, s->up, mlp);
    }
    return st ? st : project(member, &layer->down, linear, residual, s->gate, rows);
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
