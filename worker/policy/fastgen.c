/*
 * fastgen.c - FASTGEN: every cache head gets the cheapest policy that recovers enough of the
 * prompt's attention, and keeps what that policy keeps.
 *
 * What a policy recovers is the mean over all rows of the attention on the keys it keeps.  For
 * fixed sets of keys that is a sum of column sums.  The local window differs from row to row; for
 * keys outside the fixed sets its share is the column sum over near rows alone.
 */
#include "worker/evict.h"
#include "worker/policy.h"
#include "worker/policy/score.h"

#include <math.h>
#include <stddef.h>

enum { FIXED = 1, FREQUENT = 2 }; /* why a key is kept by every row */

struct profile {
    struct member *member;
    const struct policy_layer *layer;
    const float *all, *near; /* (rows) of one head, on the host */
    uint8_t *kept;           /* (rows) of FIXED and FREQUENT, for the policy being tried */
    double pairs;            /* rows and query heads that the sums cover */
    int first_local;         /* keys from here on are local to the last row */
};

static bool is_local(const struct profile *p, enum fastgen_policy policy, int key)
{
    return policy == FASTGEN_LOCAL && key >= p->first_local;
}

static void keep_fixed(const struct profile *p, enum fastgen_policy policy)
{
    uint8_t marks = policy >= FASTGEN_PUNCT ? EVICT_SPECIAL | EVICT_PUNCT : EVICT_SPECIAL;

    for (int i = 0; i < p->layer->rows; i++) {
        bool fixed = i < p->layer->params->fg_global_tokens || (p->layer->marks[i] & marks);
        p->kept[i] = fixed ? FIXED : 0;
    }
}

/* The keys with the most attention that the last row does not keep otherwise. */
static status keep_frequent(const struct profile *p, enum fastgen_policy policy)
{
    struct scratch *s = p->member->scratch;
    struct device *dev = p->member->dev;
    int rows = p->layer->rows;
    int most = method_fastgen_frequent(p->layer->params, p->layer->n_prompt);
    int candidates = 0;

    for (int i = 0; i < rows; i++) {
        bool free = !p->kept[i] && !is_local(p, policy, i);
        candidates += free;
        s->host_other[i] = free ? p->all[i] : -INFINITY;
    }
    int n = candidates < most ? candidates : most;
    status st = device_upload(dev, s->total, s->host_other, (size_t)rows * sizeof(float));
    if (!st) {
        st = op_top_k(dev, s->chosen, s->total, rows, n);
    }
    if (!st) {
        st = device_download(dev, s->host_rows, s->chosen, (size_t)n * sizeof(*s->host_rows));
    }
    for (int i = 0; !st && i < n; i++) {
        p->kept[s->host_rows[i]] = FREQUENT;
    }
    return st;
}

static double recovery(const struct profile *p, enum fastgen_policy policy)
{
    double sum = 0;

    for (int i = 0; i < p->layer->rows; i++) {
        if (p->kept[i]) {
            sum += (double)p->all[i];
        } else if (policy == FASTGEN_LOCAL) {
            sum += (double)p->near[i];
        }
    }
    return sum / p->pairs;
}

static status choose_policy(const struct profile *p, enum fastgen_policy *out)
{
    for (int policy = FASTGEN_SPECIAL; policy < FASTGEN_FULL; policy++) {
        status st = STATUS_OK;

        *out = (enum fastgen_policy)policy;
        keep_fixed(p, *out);
        if (policy >= FASTGEN_FREQUENT) {
            st = keep_frequent(p, *out);
        }
        if (st || recovery(p, *out) >= p->layer->params->fg_threshold) {
            return st;
        }
    }
    *out = FASTGEN_FULL;
    return STATUS_OK;
}

/* Uploads the list of the rows that the last row keeps; *n of them. */
static status keep_rows(const struct profile *p, enum fastgen_policy policy, int32_t *list, int *n)
{
    int32_t *rows = p->member->scratch->host_rows;

    *n = 0;
    for (int i = 0; i < p->layer->rows; i++) {
        if (policy == FASTGEN_FULL || p->kept[i] || is_local(p, policy, i)) {
            rows[(*n)++] = i;
        }
    }
    return device_upload(p->member->dev, list, rows, (size_t)*n * sizeof(*rows));
}

static status profile_head(struct profile *p, const float *all, const float *near, int32_t *list,
                           struct policy_choice *out, int head)
{
    struct scratch *s = p->member->scratch;
    size_t bytes = (size_t)p->layer->rows * sizeof(float);
    enum fastgen_policy policy = FASTGEN_FULL;
    status st = device_download(p->member->dev, s->host_mass, all, bytes);

    if (!st) {
        st = device_download(p->member->dev, s->host_near, near, bytes);
    }
    if (!st) {
        st = choose_policy(p, &policy);
    }
    out->policies[head] = (uint8_t)policy;
    return st ? st : keep_rows(p, policy, list, &out->n_kept[head]);
}

static status profile_heads(struct profile *p, const float *all, const float *near,
                            struct policy_choice *out)
{
    struct scratch *s = p->member->scratch;
    size_t rows = (size_t)p->layer->rows;
    int heads = member_cache_heads(p->member, p->layer->params).n;
    status st = STATUS_OK;

    out->kept = s->kept;
    out->kept_stride = (size_t)p->member->max_context;
    out->propagated = NULL;
    for (int head = 0; !st && head < heads; head++) {
        size_t h = (size_t)head;
        st = profile_head(p, all + h * rows, near + h * rows, s->kept + h * out->kept_stride, out,
                          head);
    }
    return st;
}

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const struct model_config *config = &member->model->config;
    const struct method_params *params = layer->params;
    struct scratch *s = member->scratch;
    int group = method_caches_by_query(params) ? 1 : config->query_heads / config->kv_heads;
    struct profile profile = {
        .member = member,
        .layer = layer,
        .all = s->host_mass,
        .near = s->host_near,
        .kept = s->host_marks,
        .pairs = (double)layer->rows * group,
        .first_local = layer->rows - method_fastgen_local(params, layer->n_prompt),
    };
    const float *all, *near;
    status st = score_sums(member, layer, layer->columns, s->scores, false, &all);

    if (!st) {
        st = score_sums(member, layer, layer->near_columns, s->pooled, false, &near);
    }
    if (!st) {
        st = profile_heads(&profile, all, near, out);
    }
    out->mass = all;
    if (!st && params->group_reduce == GROUP_MAX) { /* the profile is of means, whatever it is */
        st = score_sums(member, layer, layer->columns, s->scores, true, &out->mass);
    }
    return st;
}

const struct policy policy_fastgen = {.window_queries = false, .choose = choose};
