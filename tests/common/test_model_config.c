#include "common/file.h"
#include "common/model_config.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A complete file with one field in front: of equal keys the first counts. */
#define REST(type, architecture)                                                       \
    "\"architectures\":[\"" architecture "\"],\"model_type\":\"" type "\","            \
    "\"vocab_size\":512,\"hidden_size\":128,\"num_hidden_layers\":8,"                  \
    "\"num_attention_heads\":8,\"num_key_value_heads\":4,\"intermediate_size\":256,"   \
    "\"rope_theta\":500000.0,\"rms_norm_eps\":1e-05,\"max_position_embeddings\":4096," \
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"bos_token_id\":1,"        \
    "\"eos_token_id\":2,\"torch_dtype\":\"bfloat16\"}"
#define LLAMA(first) "{" first REST("llama", "LlamaForCausalLM")
#define MISTRAL(first) "{" first REST("mistral", "MistralForCausalLM")

static status parse(struct model_config *out, const char *text)
{
    return model_config_parse(out, "some/model", text, strlen(text), NULL, 0);
}

static status parse_both(struct model_config *out, const char *text, const char *generation)
{
    return model_config_parse(out, "some/model", text, strlen(text), generation,
                              strlen(generation));
}

static void test_a_llama_file_is_read_field_by_field(void **state)
{
    struct model_config c;

    (void)state;
    CHECK_OK(parse(&c, LLAMA("")));
    assert_string_equal(c.name, "model");
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(c.dtype, DTYPE_BF16);
    assert_int_equal(c.vocab, 512);
    assert_int_equal(c.hidden, 128);
    assert_int_equal(c.layers, 8);
    assert_int_equal(c.query_heads, 8);
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.intermediate, 256);
    assert_int_equal(c.max_positions, 4096);
    assert_int_equal(c.rope, ROPE_PLAIN);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.bos_id, 1);
    assert_int_equal(c.n_eos_ids, 1);
    assert_int_equal(c.eos_ids[0], 2);
    CHECK(c.rope_theta == 500000.0);
    CHECK(c.rms_eps == 1e-5f);
    CHECK(!c.tied_embeddings);
}

static void test_what_may_be_absent_has_the_published_default(void **state)
{
    struct model_config c;

    (void)state;
    CHECK_OK(parse(&c, "{\"model_type\":\"llama\",\"vocab_size\":32000,\"hidden_size\":4096,"
                       "\"num_hidden_layers\":32,\"num_attention_heads\":32,"
                       "\"intermediate_size\":11008,\"max_position_embeddings\":4096}"));
    assert_int_equal(c.kv_heads, 32);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.dtype, DTYPE_F32);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.n_eos_ids, 0);
    CHECK(c.rope_theta == 10000.0);
    CHECK(c.rms_eps == 1e-6f);
}

struct shape {
    const char *text;
    int layers, hidden, intermediate, query_heads, kv_heads, head_dim, vocab, window;
};

/* The shapes of published models, in their own files' words. */
static const struct shape shapes[] = {
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":4096,"
     "\"intermediate_size\":14336,\"num_attention_heads\":32,\"num_hidden_layers\":32,"
     "\"num_key_value_heads\":8,\"vocab_size\":128256,\"max_position_embeddings\":131072,"
     "\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":8.0,\"low_freq_factor\":1.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},"
     "\"eos_token_id\":[128001,128008,128009],\"bos_token_id\":128000,\"pretraining_tp\":1,"
     "\"attention_bias\":false,\"mlp_bias\":false,\"torch_dtype\":\"bfloat16\"}",
     32, 4096, 14336, 32, 8, 128, 128256, 0},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":2048,"
     "\"head_dim\":64,\"intermediate_size\":8192,\"num_attention_heads\":32,"
     "\"num_hidden_layers\":16,\"num_key_value_heads\":8,\"vocab_size\":128256,"
     "\"max_position_embeddings\":131072,\"rope_theta\":500000.0,\"tie_word_embeddings\":true,"
     "\"rope_scaling\":{\"factor\":32.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
     "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}",
     16, 2048, 8192, 32, 8, 64, 128256, 0},
    {"{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\","
     "\"hidden_size\":4096,\"intermediate_size\":14336,\"num_attention_heads\":32,"
     "\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"sliding_window\":4096,"
     "\"vocab_size\":32000,\"max_position_embeddings\":32768,\"rope_theta\":10000.0}",
     32, 4096, 14336, 32, 8, 128, 32000, 4096},
    {"{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\","
     "\"hidden_size\":5120,\"head_dim\":128,\"intermediate_size\":14336,"
     "\"num_attention_heads\":32,\"num_hidden_layers\":40,\"num_key_value_heads\":8,"
     "\"sliding_window\":null,\"vocab_size\":131072,\"max_position_embeddings\":1024000,"
     "\"rope_theta\":1000000.0}",
     40, 5120, 14336, 32, 8, 128, 131072, 0},
    {"{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\","
     "\"hidden_size\":4096,\"head_dim\":128,\"intermediate_size\":12288,"
     "\"num_attention_heads\":32,\"num_hidden_layers\":36,\"num_key_value_heads\":8,"
     "\"sliding_window\":32768,\"vocab_size\":131072,\"max_position_embeddings\":32768,"
     "\"rope_theta\":100000000.0}",
     36, 4096, 12288, 32, 8, 128, 131072, 32768},
};

static void test_the_shapes_of_published_models_are_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const struct shape *s = &shapes[i];
        struct model_config c;
        CHECK_OK(parse(&c, s->text));
        assert_int_equal(c.layers, s->layers);
        assert_int_equal(c.hidden, s->hidden);
        assert_int_equal(c.intermediate, s->intermediate);
        assert_int_equal(c.query_heads, s->query_heads);
        assert_int_equal(c.kv_heads, s->kv_heads);
        assert_int_equal(c.head_dim, s->head_dim);
        assert_int_equal(c.vocab, s->vocab);
        assert_int_equal(c.sliding_window, s->window);
    }
}

static void test_the_files_of_published_models_are_accepted_as_they_are(void **state)
{
    static const struct {
        const char *name;
        double theta, factor;
        enum rope_kind rope;
        enum dtype dtype;
        int kv_heads, head_dim, window, positions;
        bool tied;
    } files[] = {
        {"llama-7b", 1e4, 1, ROPE_PLAIN, DTYPE_F16, 32, 128, 0, 2048, false},
        {"llama-2-7b", 1e4, 1, ROPE_PLAIN, DTYPE_F16, 32, 128, 0, 4096, false},
        {"llama-2-70b", 1e4, 1, ROPE_PLAIN, DTYPE_F16, 8, 128, 0, 4096, false},
        {"vicuna-7b-16k", 1e4, 4, ROPE_LINEAR, DTYPE_F16, 32, 128, 0, 4096, false},
        {"llama-3-8b", 5e5, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 0, 8192, false},
        {"llama-3.1-8b-instruct", 5e5, 8, ROPE_LLAMA3, DTYPE_BF16, 8, 128, 0, 131072, false},
        {"llama-3.1-8b-rope-parameters", 5e5, 8, ROPE_LLAMA3, DTYPE_F32, 8, 128, 0, 131072, false},
        {"llama-3.2-1b", 5e5, 32, ROPE_LLAMA3, DTYPE_BF16, 8, 64, 0, 131072, true},
        {"llama-3.2-3b", 5e5, 32, ROPE_LLAMA3, DTYPE_BF16, 8, 128, 0, 131072, true},
        {"mistral-7b-v0.1", 1e4, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 4096, 32768, false},
        {"mistral-7b-instruct-v0.2", 1e6, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 0, 32768, false},
        {"mistral-7b-v0.3", 1e6, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 0, 32768, false},
        {"mistral-nemo", 1e6, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 0, 128000, false},
        {"ministral-8b-instruct", 1e8, 1, ROPE_PLAIN, DTYPE_BF16, 8, 128, 32768, 32768, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        struct model_config c;
        char path[256];
        char *text = NULL;
        size_t bytes = 0;
        snprintf(path, sizeof(path), "tests/models/rows/configs/%s.json", files[i].name);
        CHECK_OK(file_read(&text, &bytes, path, 1 << 16));
        CHECK_OK(model_config_parse(&c, files[i].name, text, bytes, NULL, 0));
        CHECK(c.rope_theta == files[i].theta && c.rope_factor == files[i].factor);
        assert_int_equal(c.rope, files[i].rope);
        assert_int_equal(c.dtype, files[i].dtype);
        assert_int_equal(c.kv_heads, files[i].kv_heads);
        assert_int_equal(c.head_dim, files[i].head_dim);
        assert_int_equal(c.sliding_window, files[i].window);
        assert_int_equal(c.max_positions, files[i].positions);
        assert_int_equal(c.tied_embeddings, files[i].tied);
        CHECK(c.rms_eps == (i == 0 ? 1e-6f : 1e-5f));
        free(text);
    }
}

struct refused {
    const char *text;
    status code;
    const char *words;
};

static const struct refused refused[] = {
    {LLAMA("\"num_key_value_heads\":3,"), STATUS_INVALID,
     "some/model/config.json: num_key_value_heads: 3 does not divide num_attention_heads 8"},
    {LLAMA("\"num_hidden_layers\":0,"), STATUS_INVALID,
     "num_hidden_layers: 0 is not a whole number from 1 to 1024"},
    {LLAMA("\"num_hidden_layers\":1025,"), STATUS_INVALID, "num_hidden_layers: 1025"},
    {LLAMA("\"num_hidden_layers\":2.5,"), STATUS_INVALID, "num_hidden_layers: 2.5"},
    {LLAMA("\"num_hidden_layers\":1e999,"), STATUS_INVALID, "num_hidden_layers: inf"},
    {LLAMA("\"hidden_size\":\"128\","), STATUS_INVALID, "hidden_size: not a number"},
    {LLAMA("\"hidden_size\":null,"), STATUS_INVALID, "hidden_size: missing"},
    {LLAMA("\"hidden_size\":1048577,"), STATUS_INVALID, "hidden_size: 1048577"},
    {LLAMA("\"hidden_size\":132,"), STATUS_INVALID, "num_attention_heads: 8 does not divide"},
    {LLAMA("\"hidden_size\":96,"), STATUS_UNIMPLEMENTED,
     "head_dim: 12 (hidden_size / num_attention_heads) is not a multiple of 8"},
    {LLAMA("\"head_dim\":264,"), STATUS_UNIMPLEMENTED, "head_dim: 264"},
    {LLAMA("\"vocab_size\":4194305,"), STATUS_INVALID, "vocab_size: 4194305"},
    {LLAMA("\"max_position_embeddings\":-1,"), STATUS_INVALID, "max_position_embeddings: -1"},
    {LLAMA("\"rms_norm_eps\":0,"), STATUS_INVALID, "rms_norm_eps: 0 is not between"},
    {LLAMA("\"rope_theta\":0.5,"), STATUS_INVALID, "rope_theta: 0.5 is not between"},
    {LLAMA("\"model_type\":\"qwen2\","), STATUS_UNIMPLEMENTED, "model_type: qwen2"},
    {LLAMA("\"model_type\":null,"), STATUS_UNIMPLEMENTED, "model_type: (missing)"},
    {LLAMA("\"architectures\":[\"LlamaForSequenceClassification\"],"), STATUS_UNIMPLEMENTED,
     "architectures: LlamaForSequenceClassification"},
    {LLAMA("\"architectures\":[\"MistralForCausalLM\"],"), STATUS_UNIMPLEMENTED,
     "architectures: MistralForCausalLM"},
    {LLAMA("\"architectures\":[],"), STATUS_INVALID, "architectures: not a list of one name"},
    {LLAMA("\"architectures\":\"x\","), STATUS_INVALID, "architectures: not a list of one name"},
    {LLAMA("\"quantization_config\":{\"bits\":4},"), STATUS_UNIMPLEMENTED,
     "quantization_config: not supported"},
    {LLAMA("\"attention_bias\":true,"), STATUS_UNIMPLEMENTED, "attention_bias: true"},
    {LLAMA("\"mlp_bias\":true,"), STATUS_UNIMPLEMENTED, "mlp_bias: true"},
    {LLAMA("\"mlp_bias\":1,"), STATUS_INVALID, "mlp_bias: not true or false"},
    {LLAMA("\"hidden_act\":\"gelu\","), STATUS_UNIMPLEMENTED, "hidden_act: gelu"},
    {LLAMA("\"partial_rotary_factor\":0.5,"), STATUS_UNIMPLEMENTED, "partial_rotary_factor"},
    {LLAMA("\"sliding_window\":4096,"), STATUS_UNIMPLEMENTED, "sliding_window: only Mistral"},
    {MISTRAL("\"sliding_window\":0,"), STATUS_INVALID, "sliding_window: 0"},
    {MISTRAL("\"sliding_window\":\"4096\","), STATUS_INVALID, "sliding_window: not a number"},
    {MISTRAL("\"sliding_window\":64,\"layer_types\":[\"sliding_attention\",\"full_attention\"],"),
     STATUS_UNIMPLEMENTED, "layer_types"},
    {LLAMA("\"torch_dtype\":\"float64\","), STATUS_UNIMPLEMENTED, "torch_dtype: float64"},
    {LLAMA("\"dtype\":\"int8\","), STATUS_UNIMPLEMENTED, "dtype: int8"},
    {LLAMA("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4},"), STATUS_UNIMPLEMENTED,
     "rope_scaling.type: yarn"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":4},"), STATUS_UNIMPLEMENTED,
     "rope_scaling.rope_type: dynamic"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"linear\"},"), STATUS_INVALID,
     "rope_scaling.factor: missing"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8},"), STATUS_INVALID,
     "rope_scaling.low_freq_factor: missing"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
           "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192},"),
     STATUS_INVALID, "rope_scaling.high_freq_factor: 4 is not above low_freq_factor 4"},
    {LLAMA("\"rope_scaling\":{},"), STATUS_INVALID, "rope_scaling.rope_type: missing"},
    {LLAMA("\"rope_scaling\":[],"), STATUS_INVALID, "rope_scaling: not an object"},
    {LLAMA("\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
           "\"rope_parameters\":{\"rope_type\":\"default\"},"),
     STATUS_UNIMPLEMENTED, "rope_scaling: rope_parameters is there too"},
    {LLAMA("\"original_max_position_embeddings\":4096,"
           "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
           "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192},"),
     STATUS_UNIMPLEMENTED,
     "original_max_position_embeddings: not the same as that of rope_scaling"},
    {LLAMA("\"num_experts\":8,"), STATUS_UNIMPLEMENTED, "num_experts: not supported"},
    {LLAMA("\"layer_types\":\"full_attention\","), STATUS_INVALID, "layer_types: not a list"},
    {LLAMA("\"rope_parameters\":{\"rope_type\":\"longrope\"},"), STATUS_UNIMPLEMENTED,
     "rope_parameters.rope_type: longrope"},
    {LLAMA("\"eos_token_id\":512,"), STATUS_INVALID, "eos_token_id: 512"},
    {LLAMA("\"eos_token_id\":[2,-1],"), STATUS_INVALID, "eos_token_id: -1"},
    {LLAMA("\"eos_token_id\":\"</s>\","), STATUS_INVALID, "eos_token_id: not a number"},
    {LLAMA("\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"), STATUS_INVALID,
     "eos_token_id: more than 16 ids"},
    {LLAMA("\"bos_token_id\":512,"), STATUS_INVALID, "bos_token_id: 512"},
    {"{", STATUS_INVALID, "some/model/config.json: not valid JSON at byte"},
    {"[1]", STATUS_INVALID, "not a JSON object"},
    {"", STATUS_INVALID, "not valid JSON at byte 0"},
    {"{} x", STATUS_INVALID, "text after the object"},
    {"{\"model_type\":\"mistral\",\"vocab_size\":32000,\"hidden_size\":4096,"
     "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"intermediate_size\":11008,"
     "\"max_position_embeddings\":4096}",
     STATUS_INVALID, "num_key_value_heads: missing"},
    {MISTRAL(""), STATUS_INVALID, "sliding_window: missing; a number, or null for none"},
};

static void test_what_cannot_be_followed_is_refused_by_file_and_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct model_config c;
        CHECK_FAILS(parse(&c, refused[i].text), refused[i].code, refused[i].words);
    }
}

static void test_harmless_forms_are_accepted(void **state)
{
    static const char *const accepted[] = {
        LLAMA("\"quantization_config\":null,"),
        LLAMA("\"attention_bias\":false,\"mlp_bias\":null,"),
        LLAMA("\"rope_scaling\":{\"rope_type\":\"default\"},"),
        LLAMA("\"partial_rotary_factor\":1.0,"),
        LLAMA("\"sliding_window\":null,"),
        LLAMA("\"layer_types\":[\"full_attention\",\"full_attention\"],"),
        LLAMA("\"num_key_value_heads\":null,"),
        LLAMA("\"head_dim\":null,"),
        LLAMA("\"dtype\":\"float16\","),
        LLAMA("\"architectures\":null,"),
        LLAMA("\"something_new\":{\"a\":[1,2]},"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++) {
        struct model_config c;
        CHECK_OK(parse(&c, accepted[i]));
    }
}

static void test_end_tokens_of_both_files_are_merged_without_duplicates(void **state)
{
    struct model_config c;

    (void)state;
    CHECK_OK(parse_both(&c, LLAMA("\"eos_token_id\":[7,9,7],"), "{\"eos_token_id\":[9,3]}"));
    assert_int_equal(c.n_eos_ids, 3);
    assert_int_equal(c.eos_ids[0], 7);
    assert_int_equal(c.eos_ids[1], 9);
    assert_int_equal(c.eos_ids[2], 3);
    CHECK_OK(parse_both(&c, LLAMA("\"bos_token_id\":null,\"eos_token_id\":null,"),
                        "{\"eos_token_id\":5,\"bos_token_id\":6,\"temperature\":0.6}"));
    assert_int_equal(c.n_eos_ids, 1);
    assert_int_equal(c.eos_ids[0], 5);
    assert_int_equal(c.bos_id, 6);
    CHECK_FAILS(parse_both(&c, LLAMA(""), "{\"eos_token_id\":600}"), STATUS_INVALID,
                "some/model/generation_config.json: eos_token_id: 600");
    CHECK_FAILS(parse_both(&c, LLAMA(""), "{\"eos_token_id\":2"), STATUS_INVALID,
                "some/model/generation_config.json: not valid JSON");
}

static void test_rope_parameters_of_newer_files_are_understood(void **state)
{
    struct model_config c;

    (void)state;
    CHECK_OK(parse(&c, LLAMA("\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.5,"
                             "\"rope_theta\":1000000.0},")));
    assert_int_equal(c.rope, ROPE_LINEAR);
    CHECK(c.rope_factor == 2.5);
    CHECK(c.rope_theta == 1000000.0);
}

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* What PyTorch computes for the same configuration, as float32 bits. */
static const uint32_t plain_24[] = {0x3f800000, 0x3ea1e89b, 0x3dcccccc, 0x3d0186e3,
                                    0x3c23d709, 0x3b4f3e39, 0x3a83126f, 0x39a5cb62,
                                    0x38d1b713, 0x3804a2b2, 0x3727c5b0, 0x36543781};
static const uint32_t llama3_16[] = {0x3f800000, 0x3e4693b0, 0x3c2ca88b, 0x3a6ef74f,
                                     0x39395d21, 0x380fc8f8, 0x36df10c4, 0x35ad07a7};
static const uint32_t llama3_64[] = {
    0x3f800000, 0x3f29e1c6, 0x3ee177bc, 0x3e959ee3, 0x3e4693b0, 0x3e03c6a0, 0x3daee4ad, 0x3d681e67,
    0x3d1a08c8, 0x3ccc6f49, 0x3c87a9c3, 0x3c340d6d, 0x3beef74f, 0x3b9e9402, 0x3b527720, 0x3aa9279b,
    0x39e13620, 0x38cb98f7, 0x37a3418d, 0x3758ac81, 0x370fc8f8, 0x36bed4f4, 0x367d45c3, 0x3628126b,
    0x35df10c4, 0x359406cb, 0x35447610, 0x35025f34, 0x34ad07a7, 0x3465a54d, 0x341864a7, 0x33ca41b0};
static const uint32_t linear_32[] = {
    0x3ecccccd, 0x3e6655c3, 0x3e0186e2, 0x3d91ad39, 0x3d23d70a, 0x3cb8449b, 0x3c4f3e38, 0x3be91528,
    0x3b83126e, 0x3b136a16, 0x3aa5cb60, 0x3a3a7753, 0x39d1b718, 0x396bdcf0, 0x3904a2b3, 0x38952c42};

static void test_inverse_frequencies_agree_bit_for_bit(void **state)
{
    static const struct {
        const uint32_t *expected;
        struct model_config config;
    } cases[] = {
        {plain_24, {.head_dim = 24, .rope_theta = 1e6, .rope = ROPE_PLAIN}},
        {llama3_16,
         {.head_dim = 16,
          .rope_theta = 5e5,
          .rope = ROPE_LLAMA3,
          .rope_factor = 8,
          .rope_low_freq = 1,
          .rope_high_freq = 4,
          .rope_original_positions = 256}},
        {llama3_64,
         {.head_dim = 64,
          .rope_theta = 5e5,
          .rope = ROPE_LLAMA3,
          .rope_factor = 32,
          .rope_low_freq = 1,
          .rope_high_freq = 4,
          .rope_original_positions = 8192}},
        {linear_32, {.head_dim = 32, .rope_theta = 1e4, .rope = ROPE_LINEAR, .rope_factor = 2.5}},
    };

    (void)state;
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        float inv_freq[MODEL_MAX_HEAD_DIM / 2];
        model_config_inv_freq(&cases[c].config, inv_freq);
        for (int i = 0; i < cases[c].config.head_dim / 2; i++) {
            assert_int_equal(bits_of(inv_freq[i]), cases[c].expected[i]);
        }
    }
}

static void test_the_bundled_models_load_by_directory(void **state)
{
    struct model_config c;

    (void)state;
    CHECK_OK(model_config_load(&c, "tests/models/needle-tiny/"));
    assert_string_equal(c.name, "needle-tiny");
    assert_int_equal(c.max_positions, 135168);
    CHECK(c.tied_embeddings);
    CHECK_OK(model_config_load(&c, "tests/goldens/data/mistral-hd/model"));
    assert_int_equal(c.head_dim, 24);
    assert_int_equal(c.sliding_window, 0);
    CHECK_OK(model_config_load(&c, "tests/goldens/data/mistral-sw/model"));
    assert_int_equal(c.sliding_window, 128);
    CHECK_OK(model_config_load(&c, "tests/goldens/data/llama-gqa/model"));
    assert_int_equal(c.rope, ROPE_LLAMA3);
    CHECK_FAILS(model_config_load(&c, "tests/nowhere"), STATUS_NOT_FOUND,
                "tests/nowhere/config.json: ");
}

static void test_dtypes_have_names_and_sizes(void **state)
{
    (void)state;
    assert_string_equal(dtype_name(DTYPE_F32), "float32");
    assert_string_equal(dtype_name(DTYPE_BF16), "bfloat16");
    assert_string_equal(dtype_name(DTYPE_F16), "float16");
    assert_int_equal(dtype_bytes(DTYPE_F32), 4);
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_bytes(DTYPE_F16), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_llama_file_is_read_field_by_field),
        cmocka_unit_test(test_what_may_be_absent_has_the_published_default),
        cmocka_unit_test(test_the_shapes_of_published_models_are_accepted),
        cmocka_unit_test(test_the_files_of_published_models_are_accepted_as_they_are),
        cmocka_unit_test(test_what_cannot_be_followed_is_refused_by_file_and_field),
        cmocka_unit_test(test_harmless_forms_are_accepted),
        cmocka_unit_test(test_end_tokens_of_both_files_are_merged_without_duplicates),
        cmocka_unit_test(test_rope_parameters_of_newer_files_are_understood),
        cmocka_unit_test(test_inverse_frequencies_agree_bit_for_bit),
        cmocka_unit_test(test_the_bundled_models_load_by_directory),
        cmocka_unit_test(test_dtypes_have_names_and_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
