/* GenerateRequest bytes from any client: a refusal with a sentence, or a request within all limits.
 */
#include "coordinator/frontend_request.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { MAX_CONTEXT = 4096 };

/* a..h are 1..8; every other byte falls back to <0xNN>, which is not there, so to <unk>. */
static const char tokenizer_json[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],"
    "\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":null,"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,"
    "\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"ab\":9},\"merges\":[\"a b\"]}}";

static struct model_config model = {
    .name = "fuzz",
    .architecture = "LlamaForCausalLM",
    .layers = 4,
    .hidden = 64,
    .intermediate = 128,
    .query_heads = 4,
    .kv_heads = 2,
    .head_dim = 16,
    .vocab = 16,
    .max_positions = MAX_CONTEXT,
};

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check(const struct request *request, const struct stop_set *stops)
{
    const struct sampling *sampling = &request->sampling;

    require(request->n_prompt >= 1 && request->n_prompt + sampling->max_tokens <= MAX_CONTEXT);
    for (uint32_t i = 0; i < request->n_prompt; i++) {
        require(request->prompt[i] < (uint32_t)model.vocab);
    }
    for (uint32_t i = 0; i < request->n_stop_ids; i++) {
        require(request->stop_ids[i] < (uint32_t)model.vocab);
    }
    require(sampling->max_tokens >= 1 && sampling->min_tokens <= sampling->max_tokens);
    require(sampling->temperature >= 0 && isfinite(sampling->temperature));
    require(sampling->top_p > 0 && sampling->top_p <= 1);
    require(sampling->min_p >= 0 && sampling->min_p <= 1);
    require(strlen(request->request_id) <= REQUEST_MAX_ID);
    require(stops->n <= STOP_MAX_STRINGS);
    for (int i = 0; i < stops->n; i++) {
        require(stops->strings[i].bytes >= 1 && stops->strings[i].bytes <= STOP_MAX_BYTES);
    }
    require(request->n_samples >= 1 && request->n_samples <= REQUEST_MAX_SAMPLES);
    struct layer_rows rows = method_layer_rows(&request->params, &model, (int)request->n_prompt, 0,
                                               (int)request->n_prompt);
    require(rows.kept >= 0 && rows.kept <= (int)request->n_prompt);
    require(rows.propagated >= 1 && rows.propagated <= (int)request->n_prompt);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct tokenizer *tokenizer;
    static struct chat *chat;
    struct frontend_rules rules = {.model = &model,
                                   .max_context = MAX_CONTEXT,
                                   .default_method = METHOD_FASTKV,
                                   .enable_trace = true};
    struct request *request = NULL;
    struct stop_set stops;

    if (!tokenizer && tokenizer_parse(&tokenizer, "fuzz", tokenizer_json,
                                      sizeof(tokenizer_json) - 1) != STATUS_OK) {
        abort();
    }
    if (!chat && chat_open(&chat, 0x69526fb0ac2aab27U, "<s>", "</s>") != STATUS_OK) {
        abort();
    }
    rules.tokenizer = bytes % 4 ? tokenizer : NULL;
    rules.chat = chat;
    if (frontend_request_decode(&rules, data, bytes, &request, &stops) == STATUS_OK) {
        check(request, &stops);
    } else {
        require(strlen(status_text()) > 0);
    }
    request_free(request);
    return 0;
}
