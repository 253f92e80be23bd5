#include "common/model_config.h"

#include "common/file.h"
#include "common/json.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_CONFIG_BYTES = 4 << 20,
    MAX_PATH = 4096,
};

static const struct {
    enum dtype dtype;
    const char *name;
    size_t bytes;
} dtypes[] = {
    {DTYPE_F32, "float32", 4},
    {DTYPE_BF16, "bfloat16", 2},
    {DTYPE_F16, "float16", 2},
};

const char *dtype_name(enum dtype dtype)
{
    assert((unsigned)dtype < sizeof(dtypes) / sizeof(dtypes[0]));
    return dtypes[dtype].name;
}

size_t dtype_bytes(enum dtype dtype)
{
    assert((unsigned)dtype < sizeof(dtypes) / sizeof(dtypes[0]));
    return dtypes[dtype].bytes;
}

static bool is_mistral(const struct model_config *config)
{
    return strcmp(config->architecture, "MistralForCausalLM") == 0;
}

static const struct {
    const char *type;
    const char *architecture;
} families[] = {
    {"llama", "LlamaForCausalLM"},
    {"mistral", "MistralForCausalLM"},
};

static void read_family(struct json_reader *r, struct model_config *out)
{
    const cJSON *list = json_find(r, "architectures");
    const char *type = json_string_or_null(r, "model_type");
    const char *architecture = NULL;

    for (size_t i = 0; type && i < sizeof(families) / sizeof(families[0]); i++) {
        if (strcmp(type, families[i].type) == 0) {
            architecture = families[i].architecture;
        }
    }
    if (!architecture) {
        json_fail(r, STATUS_UNIMPLEMENTED, "model_type",
                  "%.64s is not supported; llama and mistral are", type ? type : "(missing)");
        return;
    }
    snprintf(out->architecture, sizeof(out->architecture), "%s", architecture);
    if (!list) {
        return;
    }
    const cJSON *first = cJSON_GetArrayItem(list, 0);
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 1 || !cJSON_IsString(first)) {
        json_fail(r, STATUS_INVALID, "architectures", "not a list of one name");
    } else if (strcmp(first->valuestring, architecture) != 0) {
        json_fail(r, STATUS_UNIMPLEMENTED, "architectures",
                  "%.64s is not supported; model_type %s means %s", first->valuestring, type,
                  architecture);
    }
}

static void read_dtype(struct json_reader *r, struct model_config *out)
{
    const char *field = json_find(r, "dtype") ? "dtype" : "torch_dtype";
    const char *name = json_string_or_null(r, field);

    out->dtype = DTYPE_F32;
    if (!name) {
        return;
    }
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            out->dtype = dtypes[i].dtype;
            return;
        }
    }
    json_fail(r, STATUS_UNIMPLEMENTED, field,
              "%.64s is not supported; float32, bfloat16 and float16 are", name);
}

static void read_shape(struct json_reader *r, struct model_config *out)
{
    out->layers = json_int(r, "num_hidden_layers", 1, MODEL_MAX_LAYERS);
    out->hidden = json_int(r, "hidden_size", 1, MODEL_MAX_WIDTH);
    out->intermediate = json_int(r, "intermediate_size", 1, MODEL_MAX_WIDTH);
    out->vocab = json_int(r, "vocab_size", 1, MODEL_MAX_VOCAB);
    out->max_positions = json_int(r, "max_position_embeddings", 1, MODEL_MAX_POSITIONS);
    out->query_heads = json_int(r, "num_attention_heads", 1, MODEL_MAX_HEADS);
    out->kv_heads = json_int_or(r, "num_key_value_heads", 1, MODEL_MAX_HEADS, out->query_heads);
    if (is_mistral(out) && !cJSON_HasObjectItem(r->object, "num_key_value_heads")) {
        /* Published implementations disagree on what its absence means for this family. */
        json_fail(r, STATUS_INVALID, "num_key_value_heads", "missing");
    }
    if (out->query_heads % out->kv_heads != 0) {
        json_fail(r, STATUS_INVALID, "num_key_value_heads",
                  "%d does not divide num_attention_heads %d", out->kv_heads, out->query_heads);
    }
    bool derived = !json_find(r, "head_dim");
    if (derived && out->hidden % out->query_heads != 0) {
        json_fail(r, STATUS_INVALID, "num_attention_heads",
                  "%d does not divide hidden_size %d, and there is no head_dim", out->query_heads,
                  out->hidden);
    }
    out->head_dim = json_int_or(r, "head_dim", 1, MODEL_MAX_WIDTH, out->hidden / out->query_heads);
    if (out->head_dim % 8 != 0 || out->head_dim > MODEL_MAX_HEAD_DIM) {
        json_fail(r, STATUS_UNIMPLEMENTED, "head_dim", "%d%s is not a multiple of 8 up to %d",
                  out->head_dim, derived ? " (hidden_size / num_attention_heads)" : "",
                  MODEL_MAX_HEAD_DIM);
    }
}

static void read_llama3(struct json_reader *r, struct model_config *out)
{
    out->rope_low_freq = json_number(r, "low_freq_factor", 1e-6, 1e6);
    out->rope_high_freq = json_number(r, "high_freq_factor", 1e-6, 1e6);
    out->rope_original_positions =
        json_int(r, "original_max_position_embeddings", 1, MODEL_MAX_POSITIONS);
    if (out->rope_high_freq <= out->rope_low_freq) {
        json_fail(r, STATUS_INVALID, "high_freq_factor", "%g is not above low_freq_factor %g",
                  out->rope_high_freq, out->rope_low_freq);
    }
}

/* `r` stands for the rope object, which `field` of the file names. */
static void read_rope_scaling(struct json_reader *r, struct model_config *out)
{
    const char *field = json_find(r, "rope_type") ? "rope_type" : "type";
    const char *type = json_string_or_null(r, field);

    if (!type) {
        json_fail(r, STATUS_INVALID, "rope_type", "missing");
        return;
    }
    if (strcmp(type, "default") == 0) {
        return;
    }
    if (strcmp(type, "linear") == 0) {
        out->rope = ROPE_LINEAR;
    } else if (strcmp(type, "llama3") == 0) {
        out->rope = ROPE_LLAMA3;
        read_llama3(r, out);
    } else {
        json_fail(r, STATUS_UNIMPLEMENTED, field,
                  "%.64s is not supported; default, linear and llama3 are", type);
        return;
    }
    out->rope_factor = json_number(r, "factor", 1e-6, 1e6);
}

/* Older files have rope_theta and rope_scaling; newer ones have both in rope_parameters. */
static void read_rope(struct json_reader *r, struct model_config *out)
{
    const char *field = json_find(r, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const cJSON *object = json_find(r, field);
    char prefix[32];

    if (json_find(r, "rope_scaling") && json_find(r, "rope_parameters")) {
        /* Published implementations disagree on which of them counts. */
        json_fail(r, STATUS_UNIMPLEMENTED, "rope_scaling", "rope_parameters is there too");
    }

    out->rope = ROPE_PLAIN;
    out->rope_factor = 1;
    out->rope_theta = json_number_or(r, "rope_theta", 1, 1e15, 10000.0);
    if (!object) {
        return;
    }
    if (!cJSON_IsObject(object)) {
        json_fail(r, STATUS_INVALID, field, "not an object");
        return;
    }
    snprintf(prefix, sizeof(prefix), "%s.", field);
    struct json_reader inner = {.object = object, .file = r->file, .prefix = prefix, .st = r->st};
    out->rope_theta = json_number_or(&inner, "rope_theta", 1, 1e15, out->rope_theta);
    if (json_number_or(&inner, "partial_rotary_factor", 0, 1, 1) != 1) {
        json_fail(&inner, STATUS_UNIMPLEMENTED, "partial_rotary_factor", "only 1 is supported");
    }
    read_rope_scaling(&inner, out);
    r->st = inner.st;
    if (out->rope == ROPE_LLAMA3 &&
        json_number_or(r, "original_max_position_embeddings", 1, MODEL_MAX_POSITIONS,
                       out->rope_original_positions) != out->rope_original_positions) {
        json_fail(r, STATUS_UNIMPLEMENTED, "original_max_position_embeddings",
                  "not the same as that of %s", field);
    }
}

/* Newer files name every layer's attention; all must be of the kind that sliding_window says. */
static void check_layer_types(struct json_reader *r, const struct model_config *config)
{
    const char *expected = config->sliding_window ? "sliding_attention" : "full_attention";
    const cJSON *list = json_find(r, "layer_types");
    const cJSON *item;

    if (list && !cJSON_IsArray(list)) {
        json_fail(r, STATUS_INVALID, "layer_types", "not a list");
    }
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item) || strcmp(item->valuestring, expected) != 0) {
            json_fail(
                r, STATUS_UNIMPLEMENTED, "layer_types",
                "layers that differ are not supported; with this sliding_window all must be %s",
                expected);
            return;
        }
    }
}

static void read_window(struct json_reader *r, struct model_config *out)
{
    if (json_find(r, "sliding_window") && !is_mistral(out)) {
        json_fail(r, STATUS_UNIMPLEMENTED, "sliding_window", "only Mistral models have one");
        return;
    }
    if (is_mistral(out) && !cJSON_HasObjectItem(r->object, "sliding_window")) {
        /* Absent means 4096 to some published implementations and none to others. */
        json_fail(r, STATUS_INVALID, "sliding_window", "missing; a number, or null for none");
    }
    out->sliding_window = json_int_or(r, "sliding_window", 1, INT_MAX, 0);
    check_layer_types(r, out);
}

/* What would change the arithmetic in a way that winnow does not follow. */
static void refuse_variants(struct json_reader *r)
{
    static const char *const flags[] = {
        "attention_bias",   "mlp_bias",           "use_bias",
        "qkv_bias",         "use_qk_norm",        "qk_norm",
        "rope_interleaved", "is_encoder_decoder", "add_cross_attention"};
    static const char *const objects[] = {"quantization_config",
                                          "compression_config",
                                          "attn_logit_softcapping",
                                          "final_logit_softcapping",
                                          "embedding_multiplier",
                                          "residual_multiplier",
                                          "attention_multiplier",
                                          "logits_scaling",
                                          "clip_qkv",
                                          "logit_scale",
                                          "rope_local_base_freq",
                                          "no_rope_layers",
                                          "num_experts",
                                          "num_local_experts",
                                          "n_routed_experts",
                                          "num_experts_per_tok",
                                          "per_layer_config",
                                          "attention_chunk_size"};

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        if (json_bool_or(r, flags[i], false)) {
            json_fail(r, STATUS_UNIMPLEMENTED, flags[i], "true is not supported");
        }
    }
    for (size_t i = 0; i < sizeof(objects) / sizeof(objects[0]); i++) {
        if (json_find(r, objects[i])) {
            json_fail(r, STATUS_UNIMPLEMENTED, objects[i], "not supported");
        }
    }
    if (json_number_or(r, "partial_rotary_factor", 0, 1, 1) != 1) {
        json_fail(r, STATUS_UNIMPLEMENTED, "partial_rotary_factor", "only 1 is supported");
    }
    const char *act = json_string_or_null(r, "hidden_act");
    if (act && strcmp(act, "silu") != 0) {
        json_fail(r, STATUS_UNIMPLEMENTED, "hidden_act", "%.64s is not supported; silu is", act);
    }
}

static void add_eos(struct json_reader *r, struct model_config *out, const cJSON *item)
{
    int id = json_item_int(r, "eos_token_id", item, 0, out->vocab - 1);

    for (int i = 0; i < out->n_eos_ids; i++) {
        if (out->eos_ids[i] == id) {
            return;
        }
    }
    if (out->n_eos_ids == MODEL_MAX_EOS) {
        json_fail(r, STATUS_INVALID, "eos_token_id", "more than %d ids", MODEL_MAX_EOS);
        return;
    }
    out->eos_ids[out->n_eos_ids++] = id;
}

/* A number or a list of them; those of both files together end a generation. */
static void read_eos(struct json_reader *r, struct model_config *out)
{
    const cJSON *value = json_find(r, "eos_token_id");
    const cJSON *item;

    if (!value) {
        return;
    }
    if (!cJSON_IsArray(value)) {
        add_eos(r, out, value);
        return;
    }
    cJSON_ArrayForEach(item, value)
    {
        add_eos(r, out, item);
    }
}

static status parse_config(struct model_config *out, const char *file, const char *text,
                           size_t bytes)
{
    cJSON *json = NULL;
    status st = json_parse(&json, file, text, bytes);

    if (st) {
        return st;
    }
    struct json_reader r = {.object = json, .file = file, .prefix = ""};
    read_family(&r, out);
    refuse_variants(&r);
    read_dtype(&r, out);
    read_shape(&r, out);
    read_rope(&r, out);
    read_window(&r, out);
    out->rms_eps = (float)json_number_or(&r, "rms_norm_eps", 1e-12, 1, 1e-6);
    out->tied_embeddings = json_bool_or(&r, "tie_word_embeddings", false);
    out->bos_id = json_int_or(&r, "bos_token_id", 0, out->vocab - 1, -1);
    read_eos(&r, out);
    cJSON_Delete(json);
    return r.st;
}

static status parse_generation(struct model_config *out, const char *file, const char *text,
                               size_t bytes)
{
    cJSON *json = NULL;
    status st = json_parse(&json, file, text, bytes);

    if (st) {
        return st;
    }
    struct json_reader r = {.object = json, .file = file, .prefix = ""};
    if (out->bos_id < 0) {
        out->bos_id = json_int_or(&r, "bos_token_id", 0, out->vocab - 1, -1);
    }
    read_eos(&r, out);
    cJSON_Delete(json);
    return r.st;
}

/* The last component of a path, without trailing slashes. */
static void name_from_path(struct model_config *out, const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    snprintf(out->name, sizeof(out->name), "%.*s", (int)(end - begin), path + begin);
}

status model_config_parse(struct model_config *out, const char *what, const char *config,
                          size_t config_bytes, const char *generation, size_t generation_bytes)
{
    char file[MAX_PATH];
    status st = file_join(file, sizeof(file), what, "config.json");

    memset(out, 0, sizeof(*out));
    if (st) {
        return st;
    }
    name_from_path(out, what);
    st = parse_config(out, file, config, config_bytes);
    if (st || !generation) {
        return st;
    }
    st = file_join(file, sizeof(file), what, "generation_config.json");
    return st ? st : parse_generation(out, file, generation, generation_bytes);
}

/* "." and ".." have no name of their own. */
static void name_from_directory(struct model_config *out, const char *dir)
{
    if (strcmp(out->name, ".") != 0 && strcmp(out->name, "..") != 0) {
        return;
    }
    char *real = realpath(dir, NULL);
    if (real) {
        name_from_path(out, real);
    }
    free(real);
}

void model_config_name(struct model_config *out, const char *dir)
{
    name_from_path(out, dir);
    name_from_directory(out, dir);
}

status model_config_load(struct model_config *out, const char *dir)
{
    char path[MAX_PATH];
    char *config = NULL;
    char *generation = NULL;
    size_t config_bytes = 0;
    size_t generation_bytes = 0;
    status st = file_join(path, sizeof(path), dir, "config.json");

    if (!st) {
        st = file_read(&config, &config_bytes, path, MAX_CONFIG_BYTES);
    }
    if (!st) {
        st = file_join(path, sizeof(path), dir, "generation_config.json");
    }
    if (!st) {
        st = file_read(&generation, &generation_bytes, path, MAX_CONFIG_BYTES);
        st = st == STATUS_NOT_FOUND ? STATUS_OK : st;
    }
    if (!st) {
        st = model_config_parse(out, dir, config, config_bytes, generation, generation_bytes);
    }
    if (!st) {
        name_from_directory(out, dir);
    }
    free(config);
    free(generation);
    return st;
}

/* f / factor below, f above, and a straight line between, as the llama3 scaling defines. */
static float llama3_scaled(const struct model_config *config, float f)
{
    float original = (float)config->rope_original_positions;
    float factor = (float)config->rope_factor;
    float longest = (float)(config->rope_original_positions / config->rope_low_freq);
    float shortest = (float)(config->rope_original_positions / config->rope_high_freq);
    /* A number divided by a tensor is, there, the reciprocal times the number. */
    float wavelength = 1.0f / f * (float)(2 * M_PI);

    if (wavelength > longest) {
        return f / factor;
    }
    if (wavelength < shortest) {
        return f;
    }
    float smooth = (1.0f / wavelength * original - (float)config->rope_low_freq) /
                   (float)(config->rope_high_freq - config->rope_low_freq);
    return (1.0f - smooth) * f / factor + smooth * f;
}

void model_config_inv_freq(const struct model_config *config, float *inv_freq)
{
    for (int i = 0; i < config->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)config->head_dim;
        float f = 1.0f / powf((float)config->rope_theta, exponent);

        if (config->rope == ROPE_LINEAR) {
            f /= (float)config->rope_factor;
        } else if (config->rope == ROPE_LLAMA3) {
            f = llama3_scaled(config, f);
        }
        inv_freq[i] = f;
    }
}
