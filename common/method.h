/*
 * method.h - the compression methods: their parameters, and how many rows each leaves where.
 *
 * The coordinator checks and completes the parameters and plans memory with the row counts;
 * the worker executes the same structure.  That both count alike is what makes admission
 * exact, so the arithmetic lives here, once.  Numbers of the enums are those of winnow.v1.
 *
 * Sources: design notes follow FastKV (arXiv 2502.01068) and the methods it compares with;
 * docs/methods.md has one section for each.
 */
#ifndef COMMON_METHOD_H
#define COMMON_METHOD_H

#include "common/model_config.h"

#include <stdbool.h>
#include <stdint.h>

enum method {
    METHOD_UNSPECIFIED = 0,
    METHOD_FULL = 1,
    METHOD_FASTKV = 2,
    METHOD_GEMFILTER = 3,
    METHOD_SNAPKV = 4,
    METHOD_ADAKV = 5,
    METHOD_HEADKV = 6,
    METHOD_STREAMINGLLM = 7,
    METHOD_H2O = 8,
    METHOD_PYRAMIDKV = 9,
    METHOD_PYRAMIDINFER = 10,
    METHOD_FASTGEN = 11,
    METHOD_COUNT = 12,
};
enum pooling { POOLING_MAX = 1, POOLING_AVG = 2 };
enum granularity { GRANULARITY_KV = 1, GRANULARITY_Q = 2 };
enum group_reduce { GROUP_SUM = 1, GROUP_MEAN = 2, GROUP_MAX = 3 };
enum reduce_stage { REDUCE_PRE = 1, REDUCE_POST = 2 };
enum position_mode { POSITION_ORIGINAL = 1, POSITION_CACHE = 2 };

/* What FASTGEN chooses among for every cache head, cheapest first; each keeps what the one before
 * keeps, and more. */
enum fastgen_policy {
    FASTGEN_SPECIAL,  /* special tokens, and the first few */
    FASTGEN_PUNCT,    /* punctuation */
    FASTGEN_FREQUENT, /* those that got most attention */
    FASTGEN_LOCAL,    /* the nearest */
    FASTGEN_FULL,
    FASTGEN_POLICIES,
};

/* Everything a request can choose, defaults filled in.  Fields of other methods are unused. */
struct method_params {
    enum method method;
    bool absolute;      /* capacity and tsp_len count; else retain_rate and tsp_rate */
    double retain_rate; /* rows kept per cache head: trunc(m * rate) */
    int capacity;
    int window; /* last tokens of the prompt: their queries score, they are always kept */
    int kernel; /* odd */
    enum pooling pooling;
    enum granularity granularity;
    enum group_reduce group_reduce;
    enum reduce_stage reduce_stage;
    int tsp_layer; /* FASTKV */
    double tsp_rate;
    int tsp_len;
    int filter_layer; /* GEMFILTER */
    int gem_kernel;
    bool gem_keep_last;
    double floor_alpha;       /* ADAKV */
    int pyramid_beta;         /* PYRAMIDKV */
    const float *head_scores; /* HEADKV: [layers, query_heads], borrowed */
    int n_head_scores;
    double headkv_beta;
    double headkv_temp;
    int sinks; /* STREAMINGLLM */
    bool rolling;
    enum position_mode pos_mode;
    bool h2o_causal; /* H2O */
    bool h2o_dynamic;
    double pi_recent_ratio; /* PYRAMIDINFER */
    double pi_decay_ratio;
    int pi_min_context;
    int pi_sinks;
    double pi_distance_weight;
    double fg_threshold; /* FASTGEN */
    double fg_local_ratio;
    double fg_freq_ratio;
    const uint32_t *fg_special_ids; /* borrowed */
    int n_fg_special_ids;
    const uint32_t *fg_punct_ids; /* borrowed */
    int n_fg_punct_ids;
    int fg_global_tokens;
};

const char *method_name(enum method method);      /* "FASTKV"; NULL above the last */
const char *fastgen_policy_name(unsigned policy); /* "special+punct"; NULL above the last */
enum method method_by_name(const char *name);     /* any case; METHOD_UNSPECIFIED if unknown */

/* Whether this build executes the method; the others are refused as UNIMPLEMENTED. */
bool method_supported(enum method method);

/* STATUS_UNIMPLEMENTED naming a valid choice that this build does not execute. */
status method_check_supported(const struct method_params *params);

/* The contract's defaults of a method for this model: a rate of 0.1, window 8, kernel 7, ... */
void method_defaults(struct method_params *out, enum method method,
                     const struct model_config *config);

/* ---- how many rows go where (method_rows.c) ---- */

/* What one layer does with the rows that enter it. */
struct layer_rows {
    int kept;       /* rows stored per cache head: exact, or the worst case where heads differ */
    int propagated; /* rows that enter the next layer; == in unless tokens are dropped here */
    bool selects;   /* a selection takes place: kept is less than what entered, or may be */
};

/* Rows that enter layer 0 of the pass that fills the cache: n_prompt, or GEMFILTER's choice. */
int method_first_rows(const struct method_params *params, int n_prompt);

/* A filter pass chooses those rows first: GEMFILTER, where there is anything to drop. */
bool method_filters(const struct method_params *params, int n_prompt);

/* `rows` enter `layer` of a prompt of `n_prompt` tokens (GEMFILTER: of its second pass). */
struct layer_rows method_layer_rows(const struct method_params *params,
                                    const struct model_config *config, int n_prompt, int layer,
                                    int rows);

/* ADAKV: the places that the cache heads of a layer compete for, and the rows that a head keeps
 * which won `won` of them; given that a selection takes place. */
int64_t method_adakv_places(const struct method_params *params, const struct model_config *config,
                            int rows);
int method_adakv_rows(const struct method_params *params, int rows, int won);

/* HEADKV: whether the importance of the heads has shares at all: it has not when all scores are
 * zero, or when the temperature makes them vanish. */
bool method_headkv_normalises(const struct method_params *params);

/* HEADKV: kept (cache heads of the whole model) = rows that each head of the layer keeps, given
 * that a selection takes place. */
void method_headkv_rows(const struct method_params *params, const struct model_config *config,
                        int layer, int rows, int *kept);

/* The most rows a cache head ever holds when it kept `kept` of the prompt's and `appended` more
 * tokens are decoded: methods that evict while decoding stay below the sum. */
int method_peak_rows(const struct method_params *params, int n_prompt, int kept, int appended);

/* Cache heads of a layer keep different numbers of rows. */
bool method_heads_differ(const struct method_params *params);

/* A layer that `rows` enter, of a prompt of n_prompt tokens that `appended` more follow, in a
 * cache with pages of page_rows rows. */
struct layer_load {
    int n_prompt, layer, rows, appended, page_rows;
};
struct head_range {
    int first, n; /* of the model's cache heads */
};

/* pages[i] += the most pages that the heads of ranges[i] hold of the layer, all together: exact
 * but for ADAKV, where it is what all places of the layer, won by the range, make of them. */
void method_add_pages(const struct method_params *params, const struct model_config *config,
                      const struct layer_load *load, const struct head_range *ranges, int n,
                      uint64_t *pages);

/* One cache per query head, instead of one per KV head. */
bool method_caches_by_query(const struct method_params *params);

/* Cache heads of the whole model, by granularity. */
int method_cache_heads(const struct method_params *params, const struct model_config *config);

/* Last rows of a layer whose queries score it; 0: none, or all rows (see below). */
int method_score_rows(const struct method_params *params, int n_prompt);

/* The choice needs the attention of all rows, so it comes after their queries. */
bool method_scores_all_rows(const struct method_params *params);

/* H2O with scores that are not causal: every query of a layer is needed at its end. */
bool method_scores_open(const struct method_params *params);

/* The column sums of every layer's attention are needed: to choose by, or to start the
 * accumulators of a method that evicts while decoding. */
bool method_sums_columns(const struct method_params *params, int n_prompt);

/* Rows leave the cache while decoding. */
bool method_evicts(const struct method_params *params);

/* FASTGEN: how near a key is local, and how many are frequent. */
int method_fastgen_local(const struct method_params *params, int n_prompt);
int method_fastgen_frequent(const struct method_params *params, int n_prompt);

/* trunc(rows * retain_rate), or the capacity. */
int method_budget(const struct method_params *params, int rows);

/* Tokens entering the last layer. */
int method_propagated(const struct method_params *params, const struct model_config *config,
                      int n_prompt);

#endif
