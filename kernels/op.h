/*
 * op.h - the mathematics.  Row-major device pointers; shapes are in each comment.
 *
 * "act" is the device's dtype (float32, bfloat16 or float16); everything else is float32 or int32.
 * Operations enqueue on the device's stream and return; only device_sync() and
 * device_download() wait.  Arguments are asserted once, in dispatch.c.
 *
 * A row's result never depends on how many other rows are in the call for op_linear_rows()
 * and the decode operations: each keeps one fixed order of summation (docs/decisions.md).
 */
#ifndef KERNELS_OP_H
#define KERNELS_OP_H

#include "common/method.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    OP_MAX_DECODE_ROWS = 64, /* op_linear_rows, op_decode_attention */
    OP_MAX_HEAD_DIM = 256,
    OP_MAX_PRODUCTS = 3, /* op_linear_each, op_linear_rows_each */
    OP_MAX_POOL_KERNEL = 63,
    OP_KEY_BINS = 256, /* op_key_counts */
    OP_PACK_ROWS = 32, /* op_pack */
};

/* How a weight lies in memory. */
enum matrix_layout {
    MATRIX_ROWS,   /* row r starts at data + r * stride */
    MATRIX_PACKED, /* as op_pack() wrote it, for the device that did; of act */
};

/* A weight [rows, cols]: act, for instance a slice of a mapped file; or int8 with a scale for each
 * row, of op_quantize(). */
struct matrix {
    const void *data;
    const float *scale; /* (rows): row r is data times scale[r]; NULL: data is act */
    int rows;
    int cols;
    size_t stride; /* elements; MATRIX_ROWS only */
    enum matrix_layout layout;
};

/* The largest operations to come. */
struct op_limits {
    const struct matrix *const *weights; /* of op_linear and op_linear_rows */
    int n_weights;
    int chunk_rows; /* of op_linear and op_column_sums, and the window of op_window_scores */
    int keys;       /* of a prompt, and rows of a cache head */
    int q_heads, kv_heads, head_dim, vocab_rows;
    int group; /* query heads of a KV head for op_evict(), which may be more than this rank has */
};

/* Takes the memory in which these operations work, so that none of them can fail for lack of it.
 * Again for other limits: takes more, never less.  An operation beyond the limits fails with
 * STATUS_INTERNAL if it needs more. */
status op_reserve(struct device *dev, const struct op_limits *limits);

/* out[r] = table[ids[r] - first_id], or zeros for an id of another rank's rows.
 * out (n, table->cols) float32; ids (n); table of act. */
status op_embed(struct device *dev, float *out, const int32_t *ids, int n,
                const struct matrix *table, int first_id);

/* out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight.  out (rows, cols) act; x (rows, cols)
 * float32; weight (cols) float32. */
status op_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                  int cols, float eps);

/* out = x w^T for a chunk of one prompt, any number of rows.
 * out (rows, w->rows) act or float32 as `out_dtype` says; x (rows, w->cols) act. */
status op_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                 const struct matrix *w, int rows);

/* The same for 1 to OP_MAX_DECODE_ROWS rows of different sequences, in one fixed order along
 * w->cols: bit-identical for a row whatever the number of rows. */
status op_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                      const struct matrix *w, int rows);

/* The same for up to OP_MAX_PRODUCTS matrices with as many columns, all times one x: a device may
 * form the products side by side.  The bits are those of op_linear() or op_linear_rows(). */
struct weight_product {
    void *out; /* (rows, w->rows) act */
    const struct matrix *w;
};
status op_linear_each(struct device *dev, const struct weight_product *products, int n,
                      const void *x, int rows);
status op_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                           const void *x, int rows);

/*
 * w in int8: scale[r] = max |w[r]| / 127, out[r] = w[r] / scale[r], rounded to the nearest, halves
 * away from zero; a row of zeros, or of less than 127 FLT_MIN, has scale 0.  The error of an
 * element is at most scale[r] / 2.  A row that is not finite is STATUS_INVALID.
 * out (w->rows, w->cols); scale (w->rows); w of act.
 *
 * op_linear() multiplies activations as they are by what this made; op_linear_rows() rounds a row
 * of them to 16 bits first, multiples of its largest magnitude / 32512.
 */
status op_quantize(struct device *dev, int8_t *out, float *scale, const struct matrix *w);

/* Bytes of a weight of act as op_pack() lays it out, or 0: this device wants weights by rows.  Rows
 * may be packed a multiple of OP_PACK_ROWS at a time: op_packed_bytes() of those before is where
 * the next ones go. */
size_t op_packed_bytes(const struct device *dev, int rows, int cols);

/* w, by rows, in the layout of this device: op_linear(), op_linear_rows() and op_embed() take both,
 * but the products are faster, and op_linear() gives a row the bits that op_linear_rows() does.
 * out (op_packed_bytes()) is aligned to 64 bytes. */
status op_pack(struct device *dev, void *out, const struct matrix *w);

/* sum (rows, w->rows) float32 += x w^T, as op_linear() and op_linear_rows(); `scratch` is as
 * large, and what it holds then is undefined. */
status op_linear_add(struct device *dev, float *sum, float *scratch, const void *x,
                     const struct matrix *w, int rows);
status op_linear_rows_add(struct device *dev, float *sum, float *scratch, const void *x,
                          const struct matrix *w, int rows);

/*
 * What a chunk of a prompt does between its projections and attention, in one pass: its queries
 * are rotated in place, its keys on their way to those of the layer, and its values join the
 * layer's.  In row r pairs (i, i + head_dim / 2) are turned by the product of positions[r] and
 * inv_freq[i], formed in float32.  Nothing overlaps.
 */
struct rope {
    void *q;                  /* (rows, q_heads, head_dim) act; NULL: none */
    const void *k, *v;        /* (rows, kv_heads, head_dim) act; NULL: none */
    void *layer_k, *layer_v;  /* (kv_heads, >= rows, head_dim) act, heads kv_stride apart */
    size_t kv_stride;         /* elements */
    const int32_t *positions; /* (rows) */
    const float *inv_freq;    /* (head_dim / 2) */
    int rows, q_heads, kv_heads, head_dim;
};
status op_rope(struct device *dev, const struct rope *args);

/*
 * Causal attention of prompt rows, blocked with an online softmax: no tokens-by-tokens matrix.
 * Query row r is row i = q_index ? q_index[r] : first_row + r of the sequence; it sees keys
 * 0..i, and with a sliding window W only those with positions[i] - positions[j] < W.
 * Query head h reads KV head h / (q_heads / kv_heads).  Scale 1 / sqrt(head_dim).
 */
struct attention {
    void *out;                /* (rows, q_heads, head_dim) act */
    const void *q;            /* (rows, q_heads, head_dim) act, rotated */
    const void *k, *v;        /* (kv_heads, >= n_keys, head_dim) act, heads kv_stride apart */
    size_t kv_stride;         /* elements */
    const int32_t *q_index;   /* (rows) ascending, or NULL */
    const int32_t *positions; /* (n_keys) ascending original positions */
    float *lse;               /* (rows, q_heads) log of the sum of exponentials, or NULL */
    int first_row;
    int rows, n_keys; /* keys at and past n_keys are not there yet */
    int q_heads, kv_heads, head_dim;
    int sliding_window; /* 0: none */
};
status op_attention(struct device *dev, const struct attention *args);

/* out[h][j] = sum over the last `window` rows of the softmax probability that row gives key j,
 * times the row's weight, j < n_keys - window (algorithms: "window score").  The softmax runs
 * over all visible keys, which are read once where their sums are known, else twice.
 * out (q_heads, n_keys - window) float32; q (window, q_heads, head_dim) act, rotated. */
struct window_scores {
    float *out;
    const void *q;
    const void *k;
    size_t kv_stride;
    const int32_t *positions; /* (n_keys) */
    const float *weights;     /* (window), or NULL: 1 each */
    const float *lse;         /* (window, q_heads) of op_attention(); NULL: found first */
    int window, n_keys;
    int q_heads, kv_heads, head_dim;
    int sliding_window;
};
status op_window_scores(struct device *dev, const struct window_scores *args);

/*
 * Column sums of the softmax: how much attention each key gets from query rows first_row ..
 * first_row + rows of a sequence, for each query head; the matrix itself never exists.  Rows see
 * keys as in op_attention(), except that a row i < open_rows sees all n_keys (the published,
 * not causal, H2O scores).  Sums of keys j < fresh are added to, the others set.
 */
struct column_sums {
    float *out;   /* (q_heads, stride) */
    float *local; /* likewise, of the pairs with i - j < n_local alone; NULL: not wanted */
    size_t stride;
    const void *q;            /* (rows, q_heads, head_dim) act, rotated */
    const void *k;            /* (kv_heads, >= n_keys, head_dim) act, heads kv_stride apart */
    size_t kv_stride;         /* elements */
    const int32_t *positions; /* (n_keys) ascending original positions */
    const float *lse;         /* (rows, q_heads) of op_attention(); NULL: found first */
    int first_row, rows, n_keys;
    int open_rows, fresh, n_local;
    int q_heads, kv_heads, head_dim;
    int sliding_window; /* 0: none */
};
status op_column_sums(struct device *dev, const struct column_sums *args);

/* out[j] = sum over the query heads of q . k_j: no scale and no softmax.  out (n_keys) float32;
 * q (q_heads, head_dim) act, one row, rotated. */
struct dot_scores {
    float *out;
    const void *q;
    const void *k; /* (kv_heads, >= n_keys, head_dim) act, heads kv_stride apart */
    size_t kv_stride;
    int n_keys;
    int q_heads, kv_heads, head_dim;
};
status op_dot_scores(struct device *dev, const struct dot_scores *args);

/* out[i][j] = reduce over h < group of in[i * group + h][j].  in (groups * group, n);
 * out (groups, n); out may alias in.  Summed in ascending h. */
status op_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                       int n, enum group_reduce how);

/* Stride 1, padding kernel / 2 along n.  MAX ignores what is outside; AVG counts it as 0 and
 * divides by kernel.  out, in (rows, n), not aliased; kernel odd. */
status op_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
               enum pooling how);

/* index (k) ascending = the k largest of score (n); equal scores: the lower index first.
 * 0 <= k <= n; NaN counts as the smallest. */
status op_top_k(struct device *dev, int32_t *index, const float *score, int n, int k);

/*
 * Counts of scores by key, for the k-th largest over the rows of several ranks: a radix select
 * from the top 8 bits down.  out[r][b] = how many scores of row r have `prefix` as the bits of
 * their key above the 8 at `shift`, and b as those 8.  Scores rank as in op_top_k: a key is
 * op_key() of the score, -0 taken as +0, so NaN comes last.
 */
struct key_counts {
    int32_t *out;        /* (rows, OP_KEY_BINS) */
    const float *scores; /* (rows, n) */
    uint32_t prefix;     /* key >> (shift + 8); ignored when shift == 24 */
    int rows, n;
    int shift; /* 24, 16, 8 or 0 */
};
status op_key_counts(struct device *dev, const struct key_counts *args);

/* out[i] = in[index[i]] for rows of row_bytes bytes; out (n), not aliased. */
status op_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                      size_t row_bytes);

/* x += y, then out = op_rmsnorm() of x, in one pass.  x, y (rows, cols) float32. */
status op_add_rmsnorm(struct device *dev, void *out, float *x, const float *y, const float *weight,
                      int rows, int cols, float eps);

/* x += y, float32. */
status op_add(struct device *dev, float *x, const float *y, size_t n);

/* out = silu(gate) * up.  All (n) act; out may alias gate. */
status op_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n);

/*
 * The paged cache: page p of a pool holds page_rows rows of head_dim keys at
 * k + p * page_rows * head_dim, and values likewise.  A page table lists the pages of one cache
 * head in order; row i is at pages[i / page_rows], i % page_rows.  Where rows leave by attention
 * (op_evict()), each has a note, which goes where the row goes.
 *
 * With scales the rows are int8, rounded as a row of op_quantize() where they enter the pool and
 * read as its multiples of their scale; a row that is not finite has a scale that is not.  Only a
 * device on the host takes such a pool.
 */
struct kv_note {
    float mass; /* attention that the row got so far */
    int32_t position;
    uint32_t marks; /* what kind of token it holds */
};
struct kv_pool {
    void *k, *v;              /* act, or int8 */
    float *k_scale, *v_scale; /* of row p * page_rows + i, or NULL both */
    struct kv_note *notes;    /* likewise; NULL: rows have none */
    int page_rows;
    int head_dim;
};

/* Rows index[0..n) (NULL: 0..n) of k and v (>= n, head_dim) become rows 0..n of the pages.
 * `pages` and `index` are device pointers like the rest. */
status op_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                    const void *k, const void *v, const int32_t *index, int n);

/* notes (n) become those of rows 0..n of the pages. */
status op_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                  const struct kv_note *notes, int n);

/*
 * What a decode step does between its projections and attention, in one pass: each row's keys,
 * rotated as op_rope() does, and values join their caches, and its queries are rotated in place.
 * Cache head c takes KV head c / (cache_heads / kv_heads).
 */
struct kv_append {
    const struct kv_pool *pool;
    const int32_t *slot;      /* (rows * cache_heads): page * page_rows + row in the pool */
    const void *k, *v;        /* (rows, kv_heads, head_dim) act */
    void *q;                  /* (rows, q_heads, head_dim) act; NULL: none */
    const int32_t *positions; /* (rows) */
    const float *inv_freq;    /* (head_dim / 2) */
    int rows, q_heads, kv_heads, cache_heads;
};
status op_kv_append(struct device *dev, const struct kv_append *args);

/*
 * One query row a sequence over its pages: cache head c of sequence s sees rows
 * first[s * cache_heads + c] .. length[...) of its table (at least one).  Split by its own
 * length only.  Query head h reads cache head h / (q_heads / cache_heads).
 */
struct decode_attention {
    void *out;     /* (rows, q_heads, head_dim) act */
    const void *q; /* (rows, q_heads, head_dim) act, rotated */
    const struct kv_pool *pool;
    const int32_t *const *pages; /* (rows * cache_heads) page tables */
    const int32_t *first;        /* (rows * cache_heads) */
    const int32_t *length;       /* (rows * cache_heads) */
    /* Rows 0..sinks[s] of sequence s see q_sinks instead of q: attention sinks whose distance from
     * the query is another than their positions say.  Where sinks[s] is not 0, it is less than the
     * sequence's lengths, whose first rows are 0.  NULL: no sequence has any. */
    const int32_t *sinks; /* (rows) */
    const void *q_sinks;  /* (rows, q_heads, head_dim) act, rotated */
    int rows, q_heads, cache_heads, head_dim;
};
status op_decode_attention(struct device *dev, const struct decode_attention *args);

/* Row to[i] of the pool becomes row from[i], its note too, i ascending: a row that was moved may
 * move again. */
status op_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                  const int32_t *from, int n);

/* Page numbers to their places in page tables, which differ; list (n) on the device. */
struct page_entry {
    int32_t *at;
    int32_t page;
};
status op_enter_pages(struct device *dev, const struct page_entry *list, int n);

/*
 * Which row leaves a cache head after a decode step whose new row is the head's last.  Each row has
 * a note; the new one gets its own, then what the step's attention gave each row joins its mass:
 * of the softmax probabilities that op_decode_attention() gives it, for each query head of the
 * cache head, what `joins` makes, or nothing.
 * Rows below position `first`, above `recent`, or with one of the marks, stay; if those that may go
 * are more than n_others, the lightest of them goes, of equal ones the highest position.  It is for
 * the caller to take the row out of its pages (op_kv_move()).
 */
struct evict_rule {
    const int32_t *pages; /* the head's table, on the device */
    int32_t rows;         /* 0: none, and none goes */
    int32_t joins;        /* of attention, reduced like this (enum group_reduce); 0: nothing */
    int32_t position;     /* of the new row, and its marks */
    uint32_t new_marks;
    int32_t first, recent;
    uint32_t marks;
    int32_t n_others;
};
struct evict {
    int32_t *out;                   /* (heads): the row that goes, or -1 */
    const struct kv_pool *pool;     /* with notes */
    const struct evict_rule *rules; /* (heads) on the device */
    int heads;
    /* Of these heads, without sinks; its out is not used.  NULL: `joins` is 0 in all rules. */
    const struct decode_attention *attention;
};
status op_evict(struct device *dev, const struct evict *args);

/*
 * Penalties on the tokens that a sequence has seen, before anything else is done with its logits.
 * Of row r with x = logits[r][i], i < n, id first_id + i: a token that was seen at all has
 * x / repetition if x > 0, else x * repetition; from that go frequency * (how often it was
 * generated), and presence if it was generated.  Formed in double and rounded once.
 */
enum { OP_SEEN_GENERATED = 0x7fffffff }; /* bits of `seen` that count; the top one: in the prompt */
struct penalty {
    float repetition, frequency, presence;
    int32_t token;  /* generated since the last call: it joins `seen` first; -1: none */
    uint32_t *seen; /* (n) of this sequence alone, on the device; NULL: the row is copied */
};
/* out, logits (rows, n) float32, not aliased; penalties (rows). */
status op_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                   int first_id, const struct penalty *penalties);

/*
 * Choosing tokens from one rank's vocabulary rows.  Perturbed value of token id for a row:
 * z = logit when noise is off, else logit / temperature + G, where G is Gumbel noise that is a
 * function of (seed, sample, step, id) alone; the largest z over all ranks is then an exact
 * draw from the softmax, whatever the split.  G is made of Philox4x32-10 words as
 * kernels/cpu/philox.h defines; the sum is formed in double and rounded once.  A NaN logit never
 * takes part.  Only ids with key(logit) > floor_key, or equal to
 * it and id <= tie_id, take part; key() maps floats to ascending uint32.
 */
struct draw {
    float temperature; /* 0: no noise */
    uint64_t seed;
    uint32_t sample;
    uint32_t step;
    uint32_t floor_key;
    int32_t tie_id;
};
struct drawn {
    float value; /* the largest z; -inf if no id takes part */
    int32_t id;  /* the lowest global id that has it; -1 if none */
};
enum { OP_ANY_ID = INT32_MAX }; /* as tie_id */
/* out (rows); logits (rows, n) float32, ids first_id..first_id + n; draws (rows). */
status op_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
               int first_id, const struct draw *draws);

/* out[r] = the drawn of row r with the largest value over all ranks, the lowest rank's of equal
 * ones.  out (rows); drawn (ranks, rows). */
status op_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                     int ranks);

/* out[r] = the logit of the token chosen[r].id, or 0 for one of another rank's rows.
 * out (rows); logits (rows, n), ids first_id..first_id + n; chosen (rows). */
status op_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                    int first_id, const struct drawn *chosen);

/*
 * The filters of a row, over vocabulary shards.  After its temperature, top_k, top_p and min_p in
 * this order leave a set of ids: all whose key is above a floor, and the lowest of those that have
 * it.  A floor is found in four rounds, a radix select from the top byte of the key down: each
 * counts this rank's logits (op_logit_histogram()), and with the counts of all ranks takes a byte
 * of the floor's key (op_narrow()).  All ranks find the same.
 */
struct logit_filter {
    int32_t row;       /* of the logits */
    float temperature; /* > 0 */
    uint32_t top_k;    /* 0: all */
    float top_p;       /* 1: all */
    float min_p;       /* 0: all */

    /* What the rounds found; zero before the first. */
    uint32_t floor_key;
    int32_t ties;      /* ids with that key that stay, of all ranks */
    int32_t ties_here; /* of this one */
    bool cuts_ties;    /* some do not */
    /* The select in progress: the bytes of the key so far, and what lies above them. */
    uint32_t prefix;
    uint64_t above_count;
    double above_mass;
    double want;  /* the count or mass at which the set ends */
    double total; /* mass of the set */
};

/*
 * Bin b of a row's histogram covers keys whose top bits, above `shift`, equal the filter's prefix,
 * and whose next 8 bits are b.  mass = sum of exp((logit - peak) / temperature) in double, ids
 * ascending.  NaN is not counted.
 */
enum { OP_HISTOGRAM_BINS = 256 };
struct logit_bin {
    uint64_t count;
    double mass;
};
struct logit_histogram {
    struct logit_bin *out;              /* (rows, 256) */
    const float *logits;                /* (>= rows, n) */
    const struct logit_filter *filters; /* (rows) */
    const struct drawn *peaks;          /* of the rows of the logits: their largest, of all ranks */
    int rows, n;
    int shift; /* 24, 16, 8 or 0; at 24 the prefix is ignored */
};
status op_logit_histogram(struct device *dev, const struct logit_histogram *args);

/* One round of top_k, or with by_mass of top_p, of the filters that have it; top_k comes first. */
struct narrow {
    struct logit_filter *filters; /* (rows) */
    const struct drawn *peaks;    /* as above */
    const struct logit_bin *bins; /* (ranks, rows, 256): of every rank's op_logit_histogram() */
    int rows, ranks, rank;
    int shift; /* of the histograms: 24, 16, 8, 0 in turn */
    bool by_mass;
};
status op_narrow(struct device *dev, const struct narrow *args);

/* Applies min_p, and sets floor_key and tie_id in the draw of each filter's row, for the ids of
 * this rank.  A row whose peak is not finite has none. */
struct filtered_draws {
    struct draw *draws;                 /* of the rows of the logits */
    const struct logit_filter *filters; /* (rows) */
    const struct drawn *peaks;
    const float *logits; /* (>= rows, n), ids first_id..first_id + n */
    int rows, n, first_id;
};
status op_filter_draws(struct device *dev, const struct filtered_draws *args);

/* The ascending map of floats (NaN lowest) used above. */
static inline uint32_t op_key(float value)
{
    union {
        float f;
        uint32_t u;
    } bits = {.f = value};

    if (value != value) {
        return 0;
    }
    return bits.u & 0x80000000u ? ~bits.u : bits.u | 0x80000000u;
}

#ifdef __cplusplus
}
#endif

#endif
