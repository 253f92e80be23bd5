#include "common/method.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

static const char *const names[METHOD_COUNT] = {
    [METHOD_UNSPECIFIED] = "UNSPECIFIED",
    [METHOD_FULL] = "FULL",
    [METHOD_FASTKV] = "FASTKV",
    [METHOD_GEMFILTER] = "GEMFILTER",
    [METHOD_SNAPKV] = "SNAPKV",
    [METHOD_ADAKV] = "ADAKV",
    [METHOD_HEADKV] = "HEADKV",
    [METHOD_STREAMINGLLM] = "STREAMINGLLM",
    [METHOD_H2O] = "H2O",
    [METHOD_PYRAMIDKV] = "PYRAMIDKV",
    [METHOD_PYRAMIDINFER] = "PYRAMIDINFER",
    [METHOD_FASTGEN] = "FASTGEN",
};

const char *method_name(enum method method)
{
    return (unsigned)method < METHOD_COUNT ? names[method] : NULL;
}

const char *fastgen_policy_name(unsigned policy)
{
    static const char *const policies[FASTGEN_POLICIES] = {
        [FASTGEN_SPECIAL] = "special",
        [FASTGEN_PUNCT] = "special+punct",
        [FASTGEN_FREQUENT] = "special+punct+freq",
        [FASTGEN_LOCAL] = "special+punct+freq+local",
        [FASTGEN_FULL] = "full",
    };

    return policy < FASTGEN_POLICIES ? policies[policy] : NULL;
}

enum method method_by_name(const char *name)
{
    for (int m = METHOD_FULL; m < METHOD_COUNT; m++) {
        if (strcasecmp(names[m], name) == 0) {
            return (enum method)m;
        }
    }
    return METHOD_UNSPECIFIED;
}

bool method_supported(enum method method)
{
    static const bool supported[METHOD_COUNT] = {
        [METHOD_FULL] = true,      [METHOD_FASTKV] = true,    [METHOD_SNAPKV] = true,
        [METHOD_ADAKV] = true,     [METHOD_HEADKV] = true,    [METHOD_STREAMINGLLM] = true,
        [METHOD_PYRAMIDKV] = true, [METHOD_GEMFILTER] = true, [METHOD_PYRAMIDINFER] = true,
        [METHOD_H2O] = true,       [METHOD_FASTGEN] = true,
    };

    return (unsigned)method < METHOD_COUNT && supported[method];
}

status method_check_supported(const struct method_params *params)
{
    if (!method_supported(params->method)) {
        return status_fail(STATUS_UNIMPLEMENTED, "method %s is not built into this server",
                           method_name(params->method));
    }
    return STATUS_OK;
}

static int default_filter_layer(int layers)
{
    switch (layers) {
    case 32:
        return 13;
    case 36:
        return 17;
    case 40:
        return 19;
    default:
        return layers * 2 / 5;
    }
}

void method_defaults(struct method_params *out, enum method method,
                     const struct model_config *config)
{
    *out = (struct method_params){
        .method = method,
        .retain_rate = 0.1,
        .window = 8,
        .kernel = 7,
        .pooling = POOLING_MAX,
        .granularity = GRANULARITY_KV,
        .group_reduce = method == METHOD_FASTKV ? GROUP_SUM : GROUP_MEAN,
        .reduce_stage = method == METHOD_FASTKV ? REDUCE_POST : REDUCE_PRE,
        .tsp_layer = (config->layers - 1) / 2,
        .tsp_rate = 0.2,
        .tsp_len = 2048,
        .filter_layer = default_filter_layer(config->layers),
        .gem_kernel = 5,
        .gem_keep_last = true,
        .floor_alpha = 0.2,
        .pyramid_beta = 20,
        .headkv_beta = 1.2,
        .headkv_temp = 1.0,
        .sinks = 4,
        .pos_mode = POSITION_ORIGINAL,
        .h2o_causal = true,
        .pi_recent_ratio = 0.2,
        .pi_decay_ratio = 0.7,
        .pi_min_context = 64,
        .pi_sinks = 4,
        .pi_distance_weight = 1.2,
        .fg_threshold = 0.95,
        .fg_local_ratio = 0.3,
        .fg_freq_ratio = 0.3,
        .fg_global_tokens = 4,
    };
}
