/*
 * adakv.c - ADAKV: the cache heads of a layer, on whatever ranks they lie, compete for the
 * layer's places by window score; a head that wins more keeps more of its own best rows.
 *
 * The k-th largest score of all heads is found by its key, 8 bits at a time, from counts that
 * the ranks exchange: no score leaves its rank, and the whole numbers are the same on all.
 * Equal scores go to the lower head.
 */
#include "worker/policy.h"
#include "worker/policy/score.h"

#include <assert.h>
#include <stddef.h>

struct contest {
    struct member *member;
    struct cache_heads heads;
    const float *scores; /* (heads, n) */
    int n;
    int64_t left; /* places for scores whose key begins with `prefix` */
    uint32_t prefix;
    int64_t before;           /* scores with just this key, of heads before this rank's */
    int won[MODEL_MAX_HEADS]; /* places, by cache head of this rank */
};

/* Counts of the scores that begin with the prefix: host_key_counts by head, host_key_sums by
 * rank.  A head that several ranks hold is counted by one. */
static status count(const struct contest *c, int shift)
{
    struct member *member = c->member;
    struct scratch *s = member->scratch;
    size_t bytes = OP_KEY_BINS * sizeof(*s->key_sums);
    int64_t sums[OP_KEY_BINS] = {0};
    status st = op_key_counts(member->dev, &(struct key_counts){
                                               .out = s->key_counts,
                                               .scores = c->scores,
                                               .prefix = c->prefix,
                                               .rows = c->heads.n,
                                               .n = c->n,
                                               .shift = shift,
                                           });

    if (!st) {
        st = device_download(member->dev, s->host_key_counts, s->key_counts,
                             (size_t)c->heads.n * OP_KEY_BINS * sizeof(*s->key_counts));
    }
    for (int i = 0; !st && c->heads.speaks && i < c->heads.n * OP_KEY_BINS; i++) {
        sums[i % OP_KEY_BINS] += s->host_key_counts[i];
    }
    if (!st) {
        st = device_upload(member->dev, s->key_sums, sums, bytes);
    }
    if (!st) {
        st = comm_all_gather(member->comm, s->key_sums_of_all, s->key_sums, bytes);
    }
    return st ? st
              : device_download(member->dev, s->host_key_sums, s->key_sums_of_all,
                                (size_t)comm_size(member->comm) * bytes);
}

/* Scores of bin `bin` on ranks 0..ranks. */
static int64_t sum_of_ranks(const struct contest *c, int ranks, int bin)
{
    int64_t sum = 0;

    for (int r = 0; r < ranks; r++) {
        sum += c->member->scratch->host_key_sums[(size_t)r * OP_KEY_BINS + (size_t)bin];
    }
    return sum;
}

/* The bin of the last place goes to the prefix; scores in higher bins have won theirs. */
static void narrow(struct contest *c)
{
    const struct member *member = c->member;
    int rank = comm_rank(member->comm);
    int first = c->heads.speaks ? rank : rank - member->model->split.replica;
    int bin = OP_KEY_BINS - 1;
    int64_t here;

    while (here = sum_of_ranks(c, comm_size(member->comm), bin), here < c->left) {
        assert(bin > 0);
        c->left -= here;
        for (int head = 0; head < c->heads.n; head++) {
            c->won[head] += member->scratch->host_key_counts[head * OP_KEY_BINS + bin];
        }
        bin--;
    }
    c->prefix = c->prefix << 8 | (uint32_t)bin;
    c->before = sum_of_ranks(c, first, bin);
}

/* The places left go to scores equal to the key, heads in order. */
static void share_ties(struct contest *c)
{
    const struct scratch *s = c->member->scratch;
    int bin = (int)(c->prefix % OP_KEY_BINS);
    int64_t left = c->left - c->before;

    for (int head = 0; head < c->heads.n && left > 0; head++) {
        int equal = s->host_key_counts[head * OP_KEY_BINS + bin];
        c->won[head] += left < equal ? (int)left : equal;
        left -= equal;
    }
}

static status run_contest(struct contest *c)
{
    if (c->left == 0) {
        return STATUS_OK;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        status st = count(c, shift);
        if (st) {
            return st;
        }
        narrow(c);
    }
    share_ties(c);
    const int32_t key = (int32_t)c->prefix;
    c->member->shared_hash = member_hash(c->member->shared_hash, &key, 1);
    return STATUS_OK;
}

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const struct method_params *params = layer->params;
    struct contest contest = {
        .member = member,
        .heads = member_cache_heads(member, params),
        .n = layer->rows - params->window,
        .left = method_adakv_places(params, &member->model->config, layer->rows),
    };

    if (!layer->counts.selects) {
        return policy_full.choose(member, layer, out);
    }
    status st = score_window(member, layer, &contest.scores);
    if (!st) {
        st = run_contest(&contest);
    }
    if (st) {
        return st;
    }
    for (int head = 0; head < contest.heads.n; head++) {
        out->n_kept[head] = method_adakv_rows(params, layer->rows, contest.won[head]);
    }
    out->propagated = NULL;
    return score_keep_heads(member, layer, contest.scores, out);
}

const struct policy policy_adakv = {.window_queries = true, .choose = choose};
