#include "tests/worker/helpers_golden.h"

#include "common/file.h"
#include "tests/check.h"
#include "worker/safetensors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON = 64 << 20, MAX_NAMES = 512 };

static double number(const cJSON *params, const char *field)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(params, field);

    CHECK(item != NULL);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : cJSON_GetNumberValue(item);
}

static bool is(const cJSON *params, const char *field, const char *value)
{
    return strcmp(cJSON_GetObjectItemCaseSensitive(params, field)->valuestring, value) == 0;
}

static void read_head_scores(struct method_params *out, const cJSON *params)
{
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(params, "head_scores");
    const cJSON *layer;
    const cJSON *score;
    int n = 0;

    if (!cJSON_IsArray(layers)) {
        return;
    }
    int heads = cJSON_GetArraySize(cJSON_GetArrayItem(layers, 0));
    float *scores = calloc((size_t)(cJSON_GetArraySize(layers) * heads) + 1, sizeof(*scores));
    cJSON_ArrayForEach(layer, layers)
    {
        cJSON_ArrayForEach(score, layer)
        {
            scores[n++] = (float)score->valuedouble;
        }
    }
    out->head_scores = scores;
    out->n_head_scores = n;
}

uint32_t *golden_list(const cJSON *array, int *n)
{
    const cJSON *item;
    int i = 0;

    *n = cJSON_GetArraySize(array);
    uint32_t *list = malloc((size_t)*n * sizeof(*list) + 1);
    cJSON_ArrayForEach(item, array)
    {
        list[i++] = (uint32_t)item->valuedouble;
    }
    return list;
}

static void read_params(struct method_params *out, const cJSON *params)
{
    *out = (struct method_params){
        .method = method_by_name(cJSON_GetObjectItemCaseSensitive(params, "method")->valuestring),
        .absolute = is(params, "mode", "constant"),
        .retain_rate = number(params, "retain_rate"),
        .capacity = (int)number(params, "capacity"),
        .window = (int)number(params, "window"),
        .kernel = (int)number(params, "kernel"),
        .pooling = is(params, "pooling", "max") ? POOLING_MAX : POOLING_AVG,
        .granularity = is(params, "granularity", "kv") ? GRANULARITY_KV : GRANULARITY_Q,
        .group_reduce = is(params, "group_reduce", "sum")    ? GROUP_SUM
                        : is(params, "group_reduce", "mean") ? GROUP_MEAN
                                                             : GROUP_MAX,
        .reduce_stage = is(params, "reduce_stage", "pre") ? REDUCE_PRE : REDUCE_POST,
        .tsp_layer = (int)number(params, "tsp_layer"),
        .tsp_rate = number(params, "tsp_rate"),
        .tsp_len = (int)number(params, "tsp_len"),
        .floor_alpha = number(params, "floor_alpha"),
        .pyramid_beta = (int)number(params, "pyramid_beta"),
        .headkv_beta = number(params, "headkv_beta"),
        .headkv_temp = number(params, "headkv_temp"),
        .sinks = (int)number(params, "sinks"),
        .rolling = number(params, "rolling") != 0,
        .h2o_causal = number(params, "h2o_causal") != 0,
        .h2o_dynamic = number(params, "h2o_dynamic") != 0,
        .fg_threshold = number(params, "fg_threshold"),
        .fg_local_ratio = number(params, "fg_local_ratio"),
        .fg_freq_ratio = number(params, "fg_freq_ratio"),
        .fg_global_tokens = (int)number(params, "fg_global_tokens"),
        .pos_mode = is(params, "pos_mode", "cache") ? POSITION_CACHE : POSITION_ORIGINAL,
        .filter_layer = (int)number(params, "filter_layer"),
        .gem_kernel = (int)number(params, "gem_kernel"),
        .gem_keep_last = number(params, "gem_keep_last") != 0,
        .pi_recent_ratio = number(params, "pi_recent_ratio"),
        .pi_decay_ratio = number(params, "pi_decay_ratio"),
        .pi_min_context = (int)number(params, "pi_min_context"),
        .pi_sinks = (int)number(params, "pi_sinks"),
        .pi_distance_weight = number(params, "pi_distance_weight"),
    };
    read_head_scores(out, params);
    out->fg_special_ids = golden_list(cJSON_GetObjectItemCaseSensitive(params, "fg_special_ids"),
                                      &out->n_fg_special_ids);
    out->fg_punct_ids =
        golden_list(cJSON_GetObjectItemCaseSensitive(params, "fg_punct_ids"), &out->n_fg_punct_ids);
}

static void read_logits(struct golden *out, const char *path)
{
    struct safetensors *file;

    CHECK_OK(safetensors_open(&file, path));
    const struct tensor *logits = safetensors_find(file, "logits");
    CHECK(logits != NULL);
    if (!logits) {
        return; /* CHECK() has ended the test: said for the analyzer */
    }
    CHECK(logits->dims == 2 && strcmp(logits->dtype, "F32") == 0);
    CHECK(logits->shape[0] == (uint64_t)out->n_generated + 1);
    out->vocab = (int)logits->shape[1];
    out->logits = malloc(logits->bytes);
    memcpy(out->logits, logits->data, logits->bytes);
    safetensors_close(file);
}

void golden_load(struct golden *out, const char *root, const char *model, const char *name)
{
    char path[4096];
    char *text;
    size_t bytes;

    *out = (struct golden){0};
    snprintf(out->name, sizeof(out->name), "%s/%s", model, name);
    snprintf(out->model, sizeof(out->model), "%s/%s/model", root, model);
    CHECK_OK(model_config_load(&out->config, out->model));
    snprintf(path, sizeof(path), "%s/%s/cases/%s.json", root, model, name);
    CHECK_OK(file_read(&text, &bytes, path, MAX_JSON));
    out->json = cJSON_ParseWithLength(text, bytes);
    free(text);
    CHECK(out->json != NULL);
    read_params(&out->params, cJSON_GetObjectItemCaseSensitive(out->json, "params"));
    out->prompt =
        golden_list(cJSON_GetObjectItemCaseSensitive(out->json, "prompt_ids"), &out->n_prompt);
    out->generated = golden_list(cJSON_GetObjectItemCaseSensitive(out->json, "generated_ids"),
                                 &out->n_generated);
    snprintf(path, sizeof(path), "%s/%s/cases/%s.safetensors", root, model, name);
    read_logits(out, path);
}

void golden_free(struct golden *golden)
{
    free(golden->prompt);
    free(golden->generated);
    free(golden->logits);
    free((void *)golden->params.head_scores);
    free((void *)golden->params.fg_special_ids);
    free((void *)golden->params.fg_punct_ids);
    cJSON_Delete(golden->json);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Names in `path` that start with `prefix` and end with `suffix`, the suffix cut off; sorted. */
static int list_names(char names[][128], const char *path, const char *prefix, const char *suffix)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    int n = 0;

    while (dir && (entry = readdir(dir))) {
        size_t length = strlen(entry->d_name);
        size_t tail = strlen(suffix);
        if (entry->d_name[0] == '.' || length < tail || length >= 128 || n == MAX_NAMES ||
            strncmp(entry->d_name, prefix, strlen(prefix)) != 0 ||
            strcmp(entry->d_name + length - tail, suffix) != 0) {
            continue;
        }
        snprintf(names[n++], 128, "%.*s", (int)(length - tail), entry->d_name);
    }
    if (dir) {
        closedir(dir);
    }
    qsort(names, (size_t)n, sizeof(names[0]), by_name);
    return n;
}

static int each_of(const char *root, const char *prefix, void (*body)(const struct golden *))
{
    static char models[MAX_NAMES][128];
    static char cases[MAX_NAMES][128];
    int n_models = list_names(models, root, "", "");
    int n = 0;

    for (int m = 0; m < n_models; m++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%.127s/cases", root, models[m]);
        int n_cases = list_names(cases, path, prefix, ".json");
        for (int c = 0; c < n_cases; c++, n++) {
            struct golden golden;
            golden_load(&golden, root, models[m], cases[c]);
            body(&golden);
            golden_free(&golden);
        }
    }
    return n;
}

void golden_each(const char *prefix, void (*body)(const struct golden *golden))
{
    const char *data = getenv("WINNOW_TEST_DATA");

    CHECK(each_of(WINNOW_SOURCE_DIR "/tests/goldens/data", prefix, body) > 0);
    if (data) {
        char root[4096];
        snprintf(root, sizeof(root), "%s/goldens/public", data);
        each_of(root, prefix, body);
    }
}
