#include "common/method_wire.h"

#include <limits.h>
#include <math.h>

/* ---- reading: one helper a kind of field ---- */

static status take_int(int *out, bool is_set, uint32_t value, int min, int max, const char *field)
{
    if (!is_set) {
        return STATUS_OK;
    }
    if (value > INT_MAX || (int)value < min || (int)value > max) {
        return status_fail(STATUS_INVALID, "compression.%s is %u; it must be %d to %d", field,
                           value, min, max);
    }
    *out = (int)value;
    return STATUS_OK;
}

/* min < value <= max, or min <= value <= max when `closed`. */
struct interval {
    double min, max;
    bool closed;
};

static status take_double(double *out, bool is_set, double value, struct interval range,
                          const char *field)
{
    if (!is_set) {
        return STATUS_OK;
    }
    /* A NaN fails every comparison, so it is refused as well. */
    bool inside = (range.closed ? value >= range.min : value > range.min) && value <= range.max;
    if (!inside) {
        return status_fail(STATUS_INVALID, "compression.%s is %g; it must be %s %g and at most %g",
                           field, value, range.closed ? "at least" : "above", range.min, range.max);
    }
    *out = value;
    return STATUS_OK;
}

/* An enum field whose zero means "default" and whose values run from 1 to max. */
static status take_enum(int *out, int value, int max, const char *field)
{
    if (value < 0 || value > max) {
        return status_fail(STATUS_INVALID, "compression.%s is %d; it must be 0 to %d", field, value,
                           max);
    }
    if (value != 0) {
        *out = value;
    }
    return STATUS_OK;
}

static const struct interval rate_range = {0.0, 1.0, false};
static const struct interval share_range = {0.0, 1.0, true};
static const struct interval positive_range = {0.0, 1e6, false};

static status read_enums(struct method_params *out, const Winnow__V1__Compression *m)
{
    int pooling = out->pooling;
    int granularity = out->granularity;
    int reduce = out->group_reduce;
    int stage = out->reduce_stage;
    status st = take_enum(&pooling, (int)m->pooling, POOLING_AVG, "pooling");

    if (!st) {
        st = take_enum(&granularity, (int)m->granularity, GRANULARITY_Q, "granularity");
    }
    if (!st) {
        st = take_enum(&reduce, (int)m->group_reduce, GROUP_MAX, "group_reduce");
    }
    if (!st) {
        st = take_enum(&stage, (int)m->reduce_stage, REDUCE_POST, "reduce_stage");
    }
    out->pooling = (enum pooling)pooling;
    out->granularity = (enum granularity)granularity;
    out->group_reduce = (enum group_reduce)reduce;
    out->reduce_stage = (enum reduce_stage)stage;
    return st;
}

static status read_common(struct method_params *out, const Winnow__V1__Compression *m)
{
    status st = read_enums(out, m);

    if (st) {
        return st;
    }
    out->absolute = m->budget_case == WINNOW__V1__COMPRESSION__BUDGET_CAPACITY;
    st = take_double(&out->retain_rate,
                     m->budget_case == WINNOW__V1__COMPRESSION__BUDGET_RETAIN_RATE, m->retain_rate,
                     rate_range, "retain_rate");
    if (!st) {
        st = take_int(&out->capacity, out->absolute, m->capacity, 1, INT_MAX, "capacity");
    }
    if (!st) {
        st = take_int(&out->window, m->_window_case != 0, m->window, 1, MODEL_MAX_POSITIONS,
                      "window");
    }
    if (!st) {
        st = take_int(&out->kernel, m->_kernel_case != 0, m->kernel, 1, 63, "kernel");
    }
    if (!st && out->kernel % 2 == 0) {
        st = status_fail(STATUS_INVALID, "compression.kernel is %d; it must be odd", out->kernel);
    }
    return st;
}

static status read_fastkv(struct method_params *out, const Winnow__V1__FastKV *m,
                          const struct model_config *config)
{
    bool rate = m->tsp_case == WINNOW__V1__FAST_KV__TSP_TSP_RATE;
    bool length = m->tsp_case == WINNOW__V1__FAST_KV__TSP_TSP_LEN;

    if (rate && out->absolute) {
        return status_fail(STATUS_INVALID, "compression.fastkv.tsp_rate contradicts "
                                           "compression.capacity: use tsp_len with a capacity");
    }
    if (length && !out->absolute) {
        return status_fail(STATUS_INVALID, "compression.fastkv.tsp_len contradicts a retain_rate: "
                                           "use tsp_rate, or capacity with tsp_len");
    }
    status st = take_int(&out->tsp_layer, m->_tsp_layer_case != 0, m->tsp_layer, 0,
                         config->layers - 1, "fastkv.tsp_layer");
    if (!st) {
        st = take_double(&out->tsp_rate, rate, m->tsp_rate, rate_range, "fastkv.tsp_rate");
    }
    if (!st) {
        st = take_int(&out->tsp_len, length, m->tsp_len, 1, INT_MAX, "fastkv.tsp_len");
    }
    return st;
}

static status read_gemfilter(struct method_params *out, const Winnow__V1__GemFilter *m,
                             const struct model_config *config)
{
    status st = take_int(&out->filter_layer, m->_filter_layer_case != 0, m->filter_layer, 0,
                         config->layers - 1, "gemfilter.filter_layer");

    if (!st) {
        st = take_int(&out->gem_kernel, m->_gem_kernel_case != 0, m->gem_kernel, 1, 63,
                      "gemfilter.gem_kernel");
    }
    if (!st && out->gem_kernel % 2 == 0) {
        st = status_fail(STATUS_INVALID, "compression.gemfilter.gem_kernel is %d; it must be odd",
                         out->gem_kernel);
    }
    if (m->_gem_keep_last_case != 0) {
        out->gem_keep_last = m->gem_keep_last;
    }
    return st;
}

static status read_headkv(struct method_params *out, const Winnow__V1__HeadKV *m,
                          const struct model_config *config)
{
    size_t expected = (size_t)config->layers * (size_t)config->query_heads;

    if (m->n_head_scores != 0 && m->n_head_scores != expected) {
        return status_fail(STATUS_INVALID,
                           "compression.headkv.head_scores has %zu values; layers x query heads "
                           "is %zu",
                           m->n_head_scores, expected);
    }
    for (size_t i = 0; i < m->n_head_scores; i++) {
        if (!isfinite(m->head_scores[i]) || m->head_scores[i] < 0.0F) {
            return status_fail(STATUS_INVALID,
                               "compression.headkv.head_scores[%zu] is %g; scores are finite and "
                               "not negative",
                               i, (double)m->head_scores[i]);
        }
    }
    out->head_scores = m->head_scores;
    out->n_head_scores = (int)m->n_head_scores;
    status st = take_double(&out->headkv_beta, m->_headkv_beta_case != 0, m->headkv_beta,
                            (struct interval){1.0, 1e6, true}, "headkv.headkv_beta");
    if (!st) {
        st = take_double(&out->headkv_temp, m->_headkv_temp_case != 0, m->headkv_temp,
                         positive_range, "headkv.headkv_temp");
    }
    return st;
}

static status read_streaming(struct method_params *out, const Winnow__V1__StreamingLLM *m)
{
    int mode = out->pos_mode;
    status st = take_enum(&mode, (int)m->pos_mode, POSITION_CACHE, "streamingllm.pos_mode");

    if (!st) {
        st = take_int(&out->sinks, m->_sinks_case != 0, m->sinks, 0, MODEL_MAX_POSITIONS,
                      "streamingllm.sinks");
    }
    out->pos_mode = (enum position_mode)mode;
    if (m->_rolling_case != 0) {
        out->rolling = m->rolling;
    }
    return st;
}

static status read_h2o(struct method_params *out, const Winnow__V1__H2O *m)
{
    if (m->_h2o_causal_case != 0) {
        out->h2o_causal = m->h2o_causal;
    }
    if (m->_h2o_dynamic_case != 0) {
        out->h2o_dynamic = m->h2o_dynamic;
    }
    return STATUS_OK;
}

static status read_pyramidinfer(struct method_params *out, const Winnow__V1__PyramidInfer *m)
{
    status st = take_double(&out->pi_recent_ratio, m->_pi_recent_ratio_case != 0,
                            m->pi_recent_ratio, share_range, "pyramidinfer.pi_recent_ratio");

    if (!st) {
        st = take_double(&out->pi_decay_ratio, m->_pi_decay_ratio_case != 0, m->pi_decay_ratio,
                         share_range, "pyramidinfer.pi_decay_ratio");
    }
    if (!st) {
        st = take_int(&out->pi_min_context, m->_pi_min_context_case != 0, m->pi_min_context, 0,
                      MODEL_MAX_POSITIONS, "pyramidinfer.pi_min_context");
    }
    if (!st) {
        st = take_int(&out->pi_sinks, m->_pi_sinks_case != 0, m->pi_sinks, 0, MODEL_MAX_POSITIONS,
                      "pyramidinfer.pi_sinks");
    }
    if (!st) {
        st = take_double(&out->pi_distance_weight, m->_pi_distance_weight_case != 0,
                         m->pi_distance_weight, positive_range, "pyramidinfer.pi_distance_weight");
    }
    return st;
}

static status check_ids(const Winnow__V1__TokenIds *list, const struct model_config *config,
                        const char *field)
{
    for (size_t i = 0; list && i < list->n_ids; i++) {
        if (list->ids[i] >= (uint32_t)config->vocab) {
            return status_fail(STATUS_INVALID,
                               "compression.fastgen.%s[%zu] is %u; the vocabulary has %d", field, i,
                               list->ids[i], config->vocab);
        }
    }
    return STATUS_OK;
}

static status read_fastgen(struct method_params *out, const Winnow__V1__FastGen *m,
                           const struct model_config *config)
{
    status st = check_ids(m->fg_special_ids, config, "fg_special_ids");

    if (!st) {
        st = check_ids(m->fg_punct_ids, config, "fg_punct_ids");
    }
    if (!st) {
        st = take_double(&out->fg_threshold, m->_fg_threshold_case != 0, m->fg_threshold,
                         share_range, "fastgen.fg_threshold");
    }
    if (!st) {
        st = take_double(&out->fg_local_ratio, m->_fg_local_ratio_case != 0, m->fg_local_ratio,
                         share_range, "fastgen.fg_local_ratio");
    }
    if (!st) {
        st = take_double(&out->fg_freq_ratio, m->_fg_freq_ratio_case != 0, m->fg_freq_ratio,
                         share_range, "fastgen.fg_freq_ratio");
    }
    if (!st) {
        st = take_int(&out->fg_global_tokens, m->_fg_global_tokens_case != 0, m->fg_global_tokens,
                      0, MODEL_MAX_POSITIONS, "fastgen.fg_global_tokens");
    }
    if (m->fg_special_ids) {
        out->fg_special_ids = m->fg_special_ids->ids;
        out->n_fg_special_ids = (int)m->fg_special_ids->n_ids;
    }
    if (m->fg_punct_ids) {
        out->fg_punct_ids = m->fg_punct_ids->ids;
        out->n_fg_punct_ids = (int)m->fg_punct_ids->n_ids;
    }
    return st;
}

/* Another method's own message is refused: it would be silently without effect. */
static status refuse_others(const Winnow__V1__Compression *m, enum method method)
{
    const struct {
        const void *message;
        enum method method;
        const char *field;
    } own[] = {
        {m->fastkv, METHOD_FASTKV, "fastkv"},
        {m->gemfilter, METHOD_GEMFILTER, "gemfilter"},
        {m->adakv, METHOD_ADAKV, "adakv"},
        {m->headkv, METHOD_HEADKV, "headkv"},
        {m->pyramidkv, METHOD_PYRAMIDKV, "pyramidkv"},
        {m->streamingllm, METHOD_STREAMINGLLM, "streamingllm"},
        {m->h2o, METHOD_H2O, "h2o"},
        {m->pyramidinfer, METHOD_PYRAMIDINFER, "pyramidinfer"},
        {m->fastgen, METHOD_FASTGEN, "fastgen"},
    };

    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        if (own[i].message && own[i].method != method) {
            return status_fail(STATUS_INVALID, "compression.%s is set, but the method is %s",
                               own[i].field, method_name(method));
        }
    }
    return STATUS_OK;
}

static status read_own(struct method_params *out, const Winnow__V1__Compression *m,
                       const struct model_config *config)
{
    if (m->fastkv) {
        return read_fastkv(out, m->fastkv, config);
    }
    if (m->gemfilter) {
        return read_gemfilter(out, m->gemfilter, config);
    }
    if (m->adakv) {
        return take_double(&out->floor_alpha, m->adakv->_floor_alpha_case != 0,
                           m->adakv->floor_alpha, share_range, "adakv.floor_alpha");
    }
    if (m->headkv) {
        return read_headkv(out, m->headkv, config);
    }
    if (m->pyramidkv) {
        return take_int(&out->pyramid_beta, m->pyramidkv->_pyramid_beta_case != 0,
                        m->pyramidkv->pyramid_beta, 1, MODEL_MAX_POSITIONS,
                        "pyramidkv.pyramid_beta");
    }
    if (m->streamingllm) {
        return read_streaming(out, m->streamingllm);
    }
    if (m->h2o) {
        return read_h2o(out, m->h2o);
    }
    if (m->pyramidinfer) {
        return read_pyramidinfer(out, m->pyramidinfer);
    }
    if (m->fastgen) {
        return read_fastgen(out, m->fastgen, config);
    }
    return STATUS_OK;
}

/* The budgets of HEADKV follow from its table: without one there is nothing to execute. */
static status check_headkv(const struct method_params *params, const struct model_config *config)
{
    if (params->n_head_scores == 0) {
        return status_fail(STATUS_INVALID,
                           "compression.headkv.head_scores: HEADKV needs a score for each of the "
                           "model's %d x %d query heads",
                           config->layers, config->query_heads);
    }
    if (!method_headkv_normalises(params)) {
        return status_fail(STATUS_INVALID,
                           "compression.headkv.head_scores: with headkv_temp %g no score is above "
                           "zero",
                           params->headkv_temp);
    }
    return STATUS_OK;
}

status method_from_wire(struct method_params *out, const Winnow__V1__Compression *message,
                        const struct model_config *config, enum method default_method)
{
    static const Winnow__V1__Compression unset = WINNOW__V1__COMPRESSION__INIT;
    const Winnow__V1__Compression *m = message ? message : &unset;
    int method = (int)default_method;
    status st = take_enum(&method, (int)m->method, METHOD_COUNT - 1, "method");

    if (st) {
        return st;
    }
    method_defaults(out, (enum method)method, config);
    st = refuse_others(m, out->method);
    if (!st) {
        st = read_common(out, m);
    }
    if (!st) {
        st = read_own(out, m, config);
    }
    if (!st && out->method == METHOD_HEADKV) {
        st = check_headkv(out, config);
    }
    return st ? st : method_check_supported(out);
}

/* ---- writing ---- */

static void write_common(Winnow__V1__Compression *m, const struct method_params *params)
{
    m->method = (Winnow__V1__Method)params->method;
    if (params->absolute) {
        m->budget_case = WINNOW__V1__COMPRESSION__BUDGET_CAPACITY;
        m->capacity = (uint32_t)params->capacity;
    } else {
        m->budget_case = WINNOW__V1__COMPRESSION__BUDGET_RETAIN_RATE;
        m->retain_rate = params->retain_rate;
    }
    m->_window_case = WINNOW__V1__COMPRESSION___WINDOW_WINDOW;
    m->window = (uint32_t)params->window;
    m->_kernel_case = WINNOW__V1__COMPRESSION___KERNEL_KERNEL;
    m->kernel = (uint32_t)params->kernel;
    m->pooling = (Winnow__V1__Pooling)params->pooling;
    m->granularity = (Winnow__V1__Granularity)params->granularity;
    m->group_reduce = (Winnow__V1__GroupReduce)params->group_reduce;
    m->reduce_stage = (Winnow__V1__ReduceStage)params->reduce_stage;
}

static void write_fastkv(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__FastKV *m = &out->fastkv;

    winnow__v1__fast_kv__init(m);
    m->_tsp_layer_case = WINNOW__V1__FAST_KV___TSP_LAYER_TSP_LAYER;
    m->tsp_layer = (uint32_t)params->tsp_layer;
    if (params->absolute) {
        m->tsp_case = WINNOW__V1__FAST_KV__TSP_TSP_LEN;
        m->tsp_len = (uint32_t)params->tsp_len;
    } else {
        m->tsp_case = WINNOW__V1__FAST_KV__TSP_TSP_RATE;
        m->tsp_rate = params->tsp_rate;
    }
    out->compression.fastkv = m;
}

static void write_gemfilter(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__GemFilter *m = &out->gemfilter;

    winnow__v1__gem_filter__init(m);
    m->_filter_layer_case = WINNOW__V1__GEM_FILTER___FILTER_LAYER_FILTER_LAYER;
    m->filter_layer = (uint32_t)params->filter_layer;
    m->_gem_kernel_case = WINNOW__V1__GEM_FILTER___GEM_KERNEL_GEM_KERNEL;
    m->gem_kernel = (uint32_t)params->gem_kernel;
    m->_gem_keep_last_case = WINNOW__V1__GEM_FILTER___GEM_KEEP_LAST_GEM_KEEP_LAST;
    m->gem_keep_last = params->gem_keep_last;
    out->compression.gemfilter = m;
}

static void write_headkv(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__HeadKV *m = &out->headkv;

    winnow__v1__head_kv__init(m);
    m->n_head_scores = (size_t)params->n_head_scores;
    m->head_scores = (float *)params->head_scores; /* packing only reads */
    m->_headkv_beta_case = WINNOW__V1__HEAD_KV___HEADKV_BETA_HEADKV_BETA;
    m->headkv_beta = params->headkv_beta;
    m->_headkv_temp_case = WINNOW__V1__HEAD_KV___HEADKV_TEMP_HEADKV_TEMP;
    m->headkv_temp = params->headkv_temp;
    out->compression.headkv = m;
}

static void write_streaming(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__StreamingLLM *m = &out->streamingllm;

    winnow__v1__streaming_llm__init(m);
    m->_sinks_case = WINNOW__V1__STREAMING_LLM___SINKS_SINKS;
    m->sinks = (uint32_t)params->sinks;
    m->_rolling_case = WINNOW__V1__STREAMING_LLM___ROLLING_ROLLING;
    m->rolling = params->rolling;
    m->pos_mode = (Winnow__V1__PositionMode)params->pos_mode;
    out->compression.streamingllm = m;
}

static void write_h2o(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__H2O *m = &out->h2o;

    winnow__v1__h2_o__init(m);
    m->_h2o_causal_case = WINNOW__V1__H2_O___H2O_CAUSAL_H2O_CAUSAL;
    m->h2o_causal = params->h2o_causal;
    m->_h2o_dynamic_case = WINNOW__V1__H2_O___H2O_DYNAMIC_H2O_DYNAMIC;
    m->h2o_dynamic = params->h2o_dynamic;
    out->compression.h2o = m;
}

static void write_pyramidinfer(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__PyramidInfer *m = &out->pyramidinfer;

    winnow__v1__pyramid_infer__init(m);
    m->_pi_recent_ratio_case = WINNOW__V1__PYRAMID_INFER___PI_RECENT_RATIO_PI_RECENT_RATIO;
    m->pi_recent_ratio = params->pi_recent_ratio;
    m->_pi_decay_ratio_case = WINNOW__V1__PYRAMID_INFER___PI_DECAY_RATIO_PI_DECAY_RATIO;
    m->pi_decay_ratio = params->pi_decay_ratio;
    m->_pi_min_context_case = WINNOW__V1__PYRAMID_INFER___PI_MIN_CONTEXT_PI_MIN_CONTEXT;
    m->pi_min_context = (uint32_t)params->pi_min_context;
    m->_pi_sinks_case = WINNOW__V1__PYRAMID_INFER___PI_SINKS_PI_SINKS;
    m->pi_sinks = (uint32_t)params->pi_sinks;
    m->_pi_distance_weight_case = WINNOW__V1__PYRAMID_INFER___PI_DISTANCE_WEIGHT_PI_DISTANCE_WEIGHT;
    m->pi_distance_weight = params->pi_distance_weight;
    out->compression.pyramidinfer = m;
}

static void write_ids(Winnow__V1__TokenIds *out, const uint32_t *ids, int n)
{
    winnow__v1__token_ids__init(out);
    out->ids = (uint32_t *)ids; /* packing only reads */
    out->n_ids = (size_t)n;
}

static void write_fastgen(struct method_wire *out, const struct method_params *params)
{
    Winnow__V1__FastGen *m = &out->fastgen;

    winnow__v1__fast_gen__init(m);
    m->_fg_threshold_case = WINNOW__V1__FAST_GEN___FG_THRESHOLD_FG_THRESHOLD;
    m->fg_threshold = params->fg_threshold;
    m->_fg_local_ratio_case = WINNOW__V1__FAST_GEN___FG_LOCAL_RATIO_FG_LOCAL_RATIO;
    m->fg_local_ratio = params->fg_local_ratio;
    m->_fg_freq_ratio_case = WINNOW__V1__FAST_GEN___FG_FREQ_RATIO_FG_FREQ_RATIO;
    m->fg_freq_ratio = params->fg_freq_ratio;
    m->_fg_global_tokens_case = WINNOW__V1__FAST_GEN___FG_GLOBAL_TOKENS_FG_GLOBAL_TOKENS;
    m->fg_global_tokens = (uint32_t)params->fg_global_tokens;
    write_ids(&out->special_ids, params->fg_special_ids, params->n_fg_special_ids);
    write_ids(&out->punct_ids, params->fg_punct_ids, params->n_fg_punct_ids);
    m->fg_special_ids = &out->special_ids;
    m->fg_punct_ids = &out->punct_ids;
    out->compression.fastgen = m;
}

void method_to_wire(struct method_wire *out, const struct method_params *params)
{
    winnow__v1__compression__init(&out->compression);
    write_common(&out->compression, params);
    switch (params->method) {
    case METHOD_FASTKV:
        write_fastkv(out, params);
        break;
    case METHOD_GEMFILTER:
        write_gemfilter(out, params);
        break;
    case METHOD_ADAKV:
        winnow__v1__ada_kv__init(&out->adakv);
        out->adakv._floor_alpha_case = WINNOW__V1__ADA_KV___FLOOR_ALPHA_FLOOR_ALPHA;
        out->adakv.floor_alpha = params->floor_alpha;
        out->compression.adakv = &out->adakv;
        break;
    case METHOD_HEADKV:
        write_headkv(out, params);
        break;
    case METHOD_PYRAMIDKV:
        winnow__v1__pyramid_kv__init(&out->pyramidkv);
        out->pyramidkv._pyramid_beta_case = WINNOW__V1__PYRAMID_KV___PYRAMID_BETA_PYRAMID_BETA;
        out->pyramidkv.pyramid_beta = (uint32_t)params->pyramid_beta;
        out->compression.pyramidkv = &out->pyramidkv;
        break;
    case METHOD_STREAMINGLLM:
        write_streaming(out, params);
        break;
    case METHOD_H2O:
        write_h2o(out, params);
        break;
    case METHOD_PYRAMIDINFER:
        write_pyramidinfer(out, params);
        break;
    case METHOD_FASTGEN:
        write_fastgen(out, params);
        break;
    default: /* FULL has no parameters of its own */
        break;
    }
}
