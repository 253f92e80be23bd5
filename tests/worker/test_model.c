#include "helpers_files.h"
#include "tests/check.h"
#include "worker/convert.h"
#include "worker/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `max_isa`: "avx512" for weights by rows in bfloat16, too; NULL: what the machine has, which may
 * be packed ones. */
static struct device *open_device(enum dtype dtype, const char *max_isa)
{
    struct device_config config = {.dtype = dtype, .threads = 1, .max_isa = max_isa};
    struct device *dev;

    CHECK_OK(device_open(&dev, "cpu", &config));
    return dev;
}

static void check_value(float value, const char *name, int row, int col, int total_cols)
{
    float expected = small_value(name, (size_t)row * (size_t)total_cols + (size_t)col);

    if (value != expected) {
        fail_msg("%s [%d, %d]: %g instead of %g", name, row, col, value, expected);
    }
}

/* To half a step, and what rounding it takes to say so. */
static void check_rounded(float value, float scale, const char *name, int row, int col,
                          int total_cols)
{
    float expected = small_value(name, (size_t)row * (size_t)total_cols + (size_t)col);

    if (!(fabsf(value - expected) <= 0.5001f * scale)) {
        fail_msg("%s [%d, %d]: %g for %g", name, row, col, value, expected);
    }
}

static void check_int8(const struct matrix *matrix, const char *name, int row, int col,
                       int total_cols)
{
    for (int r = 0; r < matrix->rows; r++) {
        const int8_t *data = (const int8_t *)matrix->data + (size_t)r * matrix->stride;
        float scale = matrix->scale[r];

        for (int c = 0; c < matrix->cols; c++) {
            check_rounded((float)data[c] * scale, scale, name, row + r, col + c, total_cols);
        }
    }
}

/* Matrix = rows and columns from (row, col) of the tensor, which has total_cols columns. */
static void check_matrix(struct device *dev, const struct matrix *matrix, const char *name, int row,
                         int col, int total_cols)
{
    enum { MOST = 64 };
    float values[MOST];

    CHECK(matrix->cols <= MOST);
    if (matrix->layout == MATRIX_ROWS) {
        CHECK(matrix->stride == (size_t)matrix->cols || matrix->stride == (size_t)total_cols);
    }
    if (matrix->scale) {
        check_int8(matrix, name, row, col, total_cols);
        return;
    }
    for (int32_t r = 0; r < matrix->rows; r++) {
        CHECK_OK(op_embed(dev, values, &r, 1, matrix, 0));
        for (int c = 0; c < matrix->cols; c++) {
            check_value(values[c], name, row + r, col + c, total_cols);
        }
    }
}

static void check_norm(const float *norm, const char *name)
{
    for (size_t i = 0; i < TINY_HIDDEN; i++) {
        CHECK(norm[i] == small_value(name, i));
    }
}

static const char *layer_name(int layer, const char *name)
{
    static char text[128];

    snprintf(text, sizeof(text), "model.layers.%d.%s.weight", layer, name);
    return text;
}

static void check_layer(struct device *dev, const struct model *model, int layer)
{
    const struct layer_weights *w = &model->layers[layer];
    const struct split *s = &model->split;
    int query = s->query_first * TINY_HEAD_DIM;
    int key = s->kv_first * TINY_HEAD_DIM;

    assert_int_equal(w->q.rows, s->query_heads * TINY_HEAD_DIM);
    assert_int_equal(w->k.rows, s->kv_heads * TINY_HEAD_DIM);
    assert_int_equal(w->v.rows, s->kv_heads * TINY_HEAD_DIM);
    assert_int_equal(w->o.cols, s->query_heads * TINY_HEAD_DIM);
    assert_int_equal(w->gate.rows, s->mlp_columns);
    assert_int_equal(w->up.rows, s->mlp_columns);
    assert_int_equal(w->down.cols, s->mlp_columns);
    assert_int_equal(w->o.rows, TINY_HIDDEN);
    assert_int_equal(w->down.rows, TINY_HIDDEN);
    check_matrix(dev, &w->q, layer_name(layer, "self_attn.q_proj"), query, 0, TINY_HIDDEN);
    check_matrix(dev, &w->k, layer_name(layer, "self_attn.k_proj"), key, 0, TINY_HIDDEN);
    check_matrix(dev, &w->v, layer_name(layer, "self_attn.v_proj"), key, 0, TINY_HIDDEN);
    check_matrix(dev, &w->o, layer_name(layer, "self_attn.o_proj"), 0, query,
                 TINY_QUERY_HEADS * TINY_HEAD_DIM);
    check_matrix(dev, &w->gate, layer_name(layer, "mlp.gate_proj"), s->mlp_first, 0, TINY_HIDDEN);
    check_matrix(dev, &w->up, layer_name(layer, "mlp.up_proj"), s->mlp_first, 0, TINY_HIDDEN);
    check_matrix(dev, &w->down, layer_name(layer, "mlp.down_proj"), 0, s->mlp_first, TINY_MLP);
    check_norm(w->input_norm, layer_name(layer, "input_layernorm"));
    check_norm(w->attention_norm, layer_name(layer, "post_attention_layernorm"));
}

static void check_model(struct device *dev, const struct model *model, bool tied)
{
    const struct split *s = &model->split;

    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        check_layer(dev, model, layer);
    }
    assert_int_equal(model->embed.rows, s->vocab_rows);
    assert_int_equal(model->lm_head.rows, s->vocab_rows);
    assert_int_equal(model->embed.cols, TINY_HIDDEN);
    check_matrix(dev, &model->embed, "model.embed_tokens.weight", s->vocab_first, 0, TINY_HIDDEN);
    check_matrix(dev, &model->lm_head, tied ? "model.embed_tokens.weight" : "lm_head.weight",
                 s->vocab_first, 0, TINY_HIDDEN);
    check_norm(model->final_norm, "model.norm.weight");
    CHECK(model->inv_freq[0] == 1.0f);
}

static void check_ranks(struct device *dev, const char *dir, int ranks, bool tied)
{
    for (int rank = 0; rank < ranks; rank++) {
        struct model *model;
        CHECK_OK(model_open(&model, dev, dir, rank, ranks));
        check_model(dev, model, tied);
        model_close(model);
    }
    device_close(dev);
}

static void check_all_ranks(const char *dir, enum dtype dtype, int ranks, bool tied)
{
    check_ranks(open_device(dtype, "avx512"), dir, ranks, tied);
    check_ranks(open_device(dtype, NULL), dir, ranks, tied);
}

static void test_each_rank_gets_its_slices_whatever_the_dtypes(void **state)
{
    static const enum dtype file_dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

    (void)state;
    for (int f = 0; f < 3; f++) {
        struct tiny_options options = {.dtype = file_dtypes[f]};
        char *dir = make_directory();
        write_tiny_model(dir, &options);
        for (int ranks = 1; ranks <= TINY_QUERY_HEADS; ranks++) {
            check_all_ranks(dir, DTYPE_F32, ranks, false);
            check_all_ranks(dir, DTYPE_BF16, ranks, false);
        }
        remove_directory(dir);
    }
}

static size_t int8_bytes(const struct matrix *m)
{
    CHECK(m->scale);
    return (size_t)m->rows * ((size_t)m->cols + sizeof(float));
}

/* All but the embedding, which is also a tied output before it is rounded. */
static void check_int8_model(const char *dir, enum dtype dtype, int rank, int ranks, bool tied)
{
    struct device_config config = {.dtype = dtype, .int8_weights = true, .threads = 1};
    struct device *dev;
    struct model *model;
    size_t bytes = 0;

    CHECK_OK(device_open(&dev, "cpu", &config));
    CHECK_OK(model_open(&model, dev, dir, rank, ranks));
    check_model(dev, model, tied);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        const struct layer_weights *w = &model->layers[layer];
        bytes += int8_bytes(&w->q) + int8_bytes(&w->k) + int8_bytes(&w->v) + int8_bytes(&w->o) +
                 int8_bytes(&w->gate) + int8_bytes(&w->up) + int8_bytes(&w->down) +
                 2 * TINY_HIDDEN * sizeof(float);
    }
    CHECK(!model->embed.scale);
    bytes += int8_bytes(&model->lm_head) + TINY_HIDDEN * sizeof(float) +
             (size_t)model->embed.rows * TINY_HIDDEN * dtype_bytes(dtype);
    assert_int_equal(model->bytes, bytes);
    model_close(model);
    device_close(dev);
}

static void test_int8_weights_are_the_files_to_half_a_step(void **state)
{
    static const struct tiny_options files[] = {{.dtype = DTYPE_F32, .tied = true},
                                                {.dtype = DTYPE_BF16},
                                                {.dtype = DTYPE_F16},
                                                {.dtype = DTYPE_BF16, .misaligned = true}};

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char *dir = make_directory();

        write_tiny_model(dir, &files[i]);
        check_int8_model(dir, DTYPE_F32, 0, 1, files[i].tied);
        check_int8_model(dir, DTYPE_BF16, 0, 2, files[i].tied);
        check_int8_model(dir, DTYPE_BF16, 1, 2, files[i].tied);
        remove_directory(dir);
    }
}

static void test_two_files_and_an_index_are_one_model(void **state)
{
    struct tiny_options options = {.dtype = DTYPE_BF16, .sharded = true};
    char *dir = make_directory();

    (void)state;
    write_tiny_model(dir, &options);
    check_all_ranks(dir, DTYPE_BF16, 2, false);
    remove_directory(dir);
}

static void test_tied_embeddings_are_the_output_and_count_once(void **state)
{
    struct tiny_options options = {.dtype = DTYPE_F32, .tied = true};
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_F32, NULL);
    struct model *model;

    (void)state;
    write_tiny_model(dir, &options);
    check_all_ranks(dir, DTYPE_F32, 2, true);
    CHECK_OK(model_open(&model, dev, dir, 0, 1));
    CHECK(model->lm_head.data == model->embed.data);
    const size_t h = TINY_HIDDEN;
    size_t layer = h * (2 * (size_t)48 + 2 * (size_t)24 + 3 * (size_t)TINY_MLP + 2);
    assert_int_equal(model->bytes, (3 * layer + TINY_VOCAB * h + h) * sizeof(float));
    model_close(model);
    device_close(dev);
    remove_directory(dir);
}

static void test_an_equal_dtype_is_used_where_it_lies(void **state)
{
    struct tiny_options options = {.dtype = DTYPE_BF16};
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_BF16, "avx512");
    struct model *model;

    (void)state;
    write_tiny_model(dir, &options);
    CHECK_OK(model_open(&model, dev, dir, 1, 2));
    assert_int_equal(model->layers[0].o.stride, TINY_QUERY_HEADS * TINY_HEAD_DIM);
    assert_int_equal(model->layers[0].down.stride, TINY_MLP);
    CHECK((const char *)model->layers[0].gate.data < (const char *)model->layers[0].up.data);
    model_close(model);
    device_close(dev);
    remove_directory(dir);
}

static void test_misaligned_data_are_copied(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct tiny_options options = {.dtype = dtypes[i], .misaligned = true};
        char *dir = make_directory();
        struct device *dev = open_device(dtypes[i], "avx512");
        struct model *model;
        write_tiny_model(dir, &options);
        CHECK_OK(model_open(&model, dev, dir, 0, 2));
        check_model(dev, model, false);
        assert_int_equal(model->layers[0].o.stride, model->layers[0].o.cols);
        CHECK((uintptr_t)model->layers[0].o.data % dtype_bytes(dtypes[i]) == 0);
        model_close(model);
        device_close(dev);
        remove_directory(dir);
    }
}

static size_t packed_bytes(struct device *dev, const struct matrix *m)
{
    CHECK(m->layout == MATRIX_PACKED && (uintptr_t)m->data % 64 == 0);
    return op_packed_bytes(dev, m->rows, m->cols);
}

/* One after the other, in the order in which a step reads them, each of them once. */
static void check_packed_model(struct device *dev, const char *dir, bool tied)
{
    struct model *model;
    size_t bytes = (size_t)(2 * TINY_LAYERS + 1) * TINY_HIDDEN * sizeof(float);

    CHECK_OK(model_open(&model, dev, dir, 1, 2));
    check_model(dev, model, tied);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        const struct layer_weights *w = &model->layers[layer];
        const struct matrix *all[] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down};
        const char *next = w->q.data;

        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
            CHECK(all[i]->data == next);
            next += packed_bytes(dev, all[i]);
        }
        bytes += (size_t)(next - (const char *)w->q.data);
    }
    bytes += packed_bytes(dev, &model->lm_head);
    if (tied) {
        CHECK(model->embed.data == model->lm_head.data);
    } else {
        CHECK(model->embed.layout == MATRIX_ROWS);
        bytes += (size_t)model->embed.rows * TINY_HIDDEN * dtype_bytes(DTYPE_BF16);
    }
    assert_int_equal(model->bytes, bytes);
    model_close(model);
}

static void test_packed_weights_lie_one_after_the_other(void **state)
{
    static const struct tiny_options files[] = {{.dtype = DTYPE_F32, .tied = true},
                                                {.dtype = DTYPE_BF16, .tied = true},
                                                {.dtype = DTYPE_BF16},
                                                {.dtype = DTYPE_F16, .misaligned = true}};
    struct device *dev = open_device(DTYPE_BF16, NULL);

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char *dir = make_directory();

        write_tiny_model(dir, &files[i]);
        if (op_packed_bytes(dev, 1, 1) > 0) {
            check_packed_model(dev, dir, files[i].tied);
        }
        remove_directory(dir);
    }
    device_close(dev);
}

static void expect_refusal(const struct tiny_options *options, status code, const char *words)
{
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_F32, NULL);
    struct model *model = NULL;

    write_tiny_model(dir, options);
    CHECK_FAILS(model_open(&model, dev, dir, 0, 1), code, words);
    assert_null(model);
    device_close(dev);
    remove_directory(dir);
}

static void test_a_missing_or_misshapen_tensor_is_named(void **state)
{
    (void)state;
    expect_refusal(&(struct tiny_options){.skip = "model.layers.1.mlp.up_proj.weight"},
                   STATUS_INVALID, "tensor model.layers.1.mlp.up_proj.weight: missing");
    expect_refusal(&(struct tiny_options){.skip = "lm_head.weight"}, STATUS_INVALID,
                   "tensor lm_head.weight: missing");
    expect_refusal(&(struct tiny_options){.reshaped = "model.layers.2.mlp.down_proj.weight"},
                   STATUS_INVALID,
                   "model.safetensors: tensor model.layers.2.mlp.down_proj.weight: shape: "
                   "[20, 48], config.json needs [48, 20]");
}

static void test_bias_and_quantization_tensors_are_refused_by_name(void **state)
{
    (void)state;
    expect_refusal(&(struct tiny_options){.extra = "\"model.layers.0.self_attn.q_proj.bias\":"
                                                   "{\"dtype\":\"F32\",\"shape\":[1]",
                                          .extra_bytes = 4},
                   STATUS_UNIMPLEMENTED,
                   "model.safetensors: tensor model.layers.0.self_attn.q_proj.bias: ");
    expect_refusal(&(struct tiny_options){.extra = "\"model.layers.0.mlp.up_proj.weight_scale\":"
                                                   "{\"dtype\":\"F32\",\"shape\":[1]",
                                          .extra_bytes = 4},
                   STATUS_UNIMPLEMENTED, "mlp.up_proj.weight_scale: bias, quantization");
}

static void test_a_needed_tensor_of_integers_is_refused(void **state)
{
    (void)state;
    expect_refusal(&(struct tiny_options){.skip = "model.norm.weight",
                                          .extra = "\"model.norm.weight\":"
                                                   "{\"dtype\":\"I8\",\"shape\":[48]",
                                          .extra_bytes = 48},
                   STATUS_UNIMPLEMENTED,
                   "tensor model.norm.weight: dtype: I8 is not supported; F32, BF16 and F16 are");
}

static void test_rotary_tables_of_old_files_are_ignored(void **state)
{
    struct tiny_options options = {.extra = "\"model.layers.0.self_attn.rotary_emb.inv_freq\":"
                                            "{\"dtype\":\"I64\",\"shape\":[1]",
                                   .extra_bytes = 8};
    char *dir = make_directory();

    (void)state;
    write_tiny_model(dir, &options);
    check_all_ranks(dir, DTYPE_F32, 1, false);
    remove_directory(dir);
}

static void test_tensors_of_another_model_are_refused_by_name(void **state)
{
    static const char *const names[] = {"model.layers.3.mlp.up_proj.weight",
                                        "model.layers.01.mlp.up_proj.weight",
                                        "model.layers.99999999999.mlp.x.weight",
                                        "model.layers.0.pre_feedforward_layernorm.weight",
                                        "model.layers.0.mlp.experts.0.w1.weight",
                                        "model.norm.weight.extra",
                                        "score.weight"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char extra[160];
        char words[160];
        snprintf(extra, sizeof(extra), "\"%s\":{\"dtype\":\"F32\",\"shape\":[1]", names[i]);
        snprintf(words, sizeof(words),
                 "model.safetensors: tensor %s: not part of a LlamaForCausalLM of 3 layers",
                 names[i]);
        expect_refusal(&(struct tiny_options){.extra = extra, .extra_bytes = 4},
                       STATUS_UNIMPLEMENTED, words);
    }
}

static void test_an_output_that_is_not_the_tied_embedding_is_refused(void **state)
{
    char extra[128];

    (void)state;
    snprintf(extra, sizeof(extra), "\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[%d,%d]",
             TINY_VOCAB, TINY_HIDDEN);
    expect_refusal(&(struct tiny_options){.tied = true,
                                          .extra = extra,
                                          .extra_bytes = sizeof(float) * TINY_VOCAB * TINY_HIDDEN},
                   STATUS_UNIMPLEMENTED,
                   "tensor lm_head.weight: not model.embed_tokens.weight, although config.json "
                   "says tie_word_embeddings");
    expect_refusal(&(struct tiny_options){.tied = true,
                                          .extra = "\"lm_head.weight\":{\"dtype\":\"F32\","
                                                   "\"shape\":[1]",
                                          .extra_bytes = 4},
                   STATUS_UNIMPLEMENTED, "tensor lm_head.weight: not model.embed_tokens.weight");
}

static void expect_bad_index(const char *index, status code, const char *words)
{
    struct tiny_options options = {.sharded = true};
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_F32, NULL);
    struct model *model = NULL;

    write_tiny_model(dir, &options);
    write_text(dir, "model.safetensors.index.json", index);
    CHECK_FAILS(model_open(&model, dev, dir, 0, 1), code, words);
    device_close(dev);
    remove_directory(dir);
}

static void test_an_index_that_lies_is_refused(void **state)
{
    (void)state;
    expect_bad_index("{}", STATUS_INVALID, "index.json: weight_map: missing");
    expect_bad_index("{\"weight_map\":[]}", STATUS_INVALID, "weight_map: not an object");
    expect_bad_index("{\"weight_map\":{\"a\":1}}", STATUS_INVALID, "weight_map: a: not a string");
    expect_bad_index("{\"weight_map\":{\"a\":\"../x.safetensors\"}}", STATUS_INVALID,
                     "weight_map: \"../x.safetensors\" is not a file of its folder");
    expect_bad_index("{\"weight_map\":{\"a\":\"gone.safetensors\"}}", STATUS_NOT_FOUND,
                     "gone.safetensors");
    expect_bad_index("{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}",
                     STATUS_INVALID, "weight_map: a is not in model-00001-of-00002.safetensors");
    expect_bad_index("{\"weight_map\":{\"model.embed_tokens.weight\":"
                     "\"model-00001-of-00002.safetensors\",\"model.embed_tokens.weight\":"
                     "\"model-00001-of-00002.safetensors\"}}",
                     STATUS_INVALID, "weight_map: model.embed_tokens.weight is there twice");
    expect_bad_index("nonsense", STATUS_INVALID, "index.json: not valid JSON");
}

static void test_a_directory_without_weights_says_so(void **state)
{
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_F32, NULL);
    struct model *model;

    (void)state;
    write_tiny_model(dir, &(struct tiny_options){.dtype = DTYPE_F32});
    char path[512];
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    assert_int_equal(remove(path), 0);
    CHECK_FAILS(model_open(&model, dev, dir, 0, 1), STATUS_NOT_FOUND,
                "neither model.safetensors nor model.safetensors.index.json");
    CHECK_FAILS(model_open(&model, dev, "/nonexistent", 0, 1), STATUS_NOT_FOUND,
                "/nonexistent/config.json");
    device_close(dev);
    remove_directory(dir);
}

static void test_more_ranks_than_query_heads_are_refused(void **state)
{
    char *dir = make_directory();
    struct device *dev = open_device(DTYPE_F32, NULL);
    struct model *model;

    (void)state;
    write_tiny_model(dir, &(struct tiny_options){.dtype = DTYPE_F32});
    CHECK_FAILS(model_open(&model, dev, dir, 0, 7), STATUS_INVALID, "6 query heads");
    device_close(dev);
    remove_directory(dir);
}

static uint64_t fingerprint(const char *dir)
{
    uint64_t out;

    CHECK_OK(model_fingerprint(&out, dir));
    return out;
}

static void test_the_fingerprint_tells_models_apart_and_not_their_files(void **state)
{
    uint64_t one = fingerprint("tests/goldens/data/llama-gqa/model");

    (void)state;
    CHECK(one == fingerprint("tests/goldens/data/llama-gqa-sharded/model"));
    CHECK(one != fingerprint("tests/goldens/data/llama-gqa-bf16/model"));
    CHECK(one != fingerprint("tests/models/needle-tiny"));
    uint64_t out;
    CHECK_FAILS(model_fingerprint(&out, "tests"), STATUS_NOT_FOUND, "tests/config.json");
}

static void test_the_bundled_models_load(void **state)
{
    static const char *const dirs[] = {"tests/models/needle-tiny", "tests/models/stories260k",
                                       "tests/goldens/data/llama-gqa/model",
                                       "tests/goldens/data/llama-gqa-sharded/model",
                                       "tests/goldens/data/mistral-hd/model"};

    (void)state;
    for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
        struct device *dev = open_device(DTYPE_F32, NULL);
        struct model *model;
        CHECK_OK(model_open(&model, dev, dirs[i], 1, 2));
        CHECK(model->bytes > 0);
        model_close(model);
        device_close(dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_rank_gets_its_slices_whatever_the_dtypes),
        cmocka_unit_test(test_int8_weights_are_the_files_to_half_a_step),
        cmocka_unit_test(test_two_files_and_an_index_are_one_model),
        cmocka_unit_test(test_tied_embeddings_are_the_output_and_count_once),
        cmocka_unit_test(test_an_equal_dtype_is_used_where_it_lies),
        cmocka_unit_test(test_misaligned_data_are_copied),
        cmocka_unit_test(test_packed_weights_lie_one_after_the_other),
        cmocka_unit_test(test_a_missing_or_misshapen_tensor_is_named),
        cmocka_unit_test(test_bias_and_quantization_tensors_are_refused_by_name),
        cmocka_unit_test(test_a_needed_tensor_of_integers_is_refused),
        cmocka_unit_test(test_rotary_tables_of_old_files_are_ignored),
        cmocka_unit_test(test_tensors_of_another_model_are_refused_by_name),
        cmocka_unit_test(test_an_output_that_is_not_the_tied_embedding_is_refused),
        cmocka_unit_test(test_an_index_that_lies_is_refused),
        cmocka_unit_test(test_a_directory_without_weights_says_so),
        cmocka_unit_test(test_more_ranks_than_query_heads_are_refused),
        cmocka_unit_test(test_the_fingerprint_tells_models_apart_and_not_their_files),
        cmocka_unit_test(test_the_bundled_models_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
