/* Any bytes as config.json, and after a NUL as generation_config.json: refused, or within limits.
 */
#include "common/model_config.h"

#include <assert.h>
#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_limits(const struct model_config *config)
{
    float inv_freq[MODEL_MAX_HEAD_DIM / 2];

    assert(config->layers >= 1 && config->layers <= MODEL_MAX_LAYERS);
    assert(config->hidden >= 1 && config->hidden <= MODEL_MAX_WIDTH);
    assert(config->intermediate >= 1 && config->intermediate <= MODEL_MAX_WIDTH);
    assert(config->kv_heads >= 1 && config->query_heads % config->kv_heads == 0);
    assert(config->query_heads <= MODEL_MAX_HEADS);
    assert(config->head_dim >= 8 && config->head_dim <= MODEL_MAX_HEAD_DIM);
    assert(config->vocab >= 1 && config->vocab <= MODEL_MAX_VOCAB);
    assert(config->max_positions >= 1 && config->max_positions <= MODEL_MAX_POSITIONS);
    assert(config->bos_id >= -1 && config->bos_id < config->vocab);
    assert(config->n_eos_ids >= 0 && config->n_eos_ids <= MODEL_MAX_EOS);
    for (int i = 0; i < config->n_eos_ids; i++) {
        assert(config->eos_ids[i] >= 0 && config->eos_ids[i] < config->vocab);
    }
    model_config_inv_freq(config, inv_freq);
    for (int i = 0; i < config->head_dim / 2; i++) {
        assert(isfinite(inv_freq[i]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *split = size ? memchr(data, 0, size) : NULL;
    size_t config_bytes = split ? (size_t)(split - data) : size;
    struct model_config config;

    if (model_config_parse(&config, "input", (const char *)data, config_bytes,
                           split ? (const char *)split + 1 : NULL,
                           split ? size - config_bytes - 1 : 0)) {
        assert(status_text()[0] != '\0');
        return 0;
    }
    check_limits(&config);
    return 0;
}
