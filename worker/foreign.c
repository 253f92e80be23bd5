#include "worker/foreign.h"

#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 128 };

/* Names that say that a layer computes something else than winnow does. */
static status refuse_foreign(const struct weights *weights)
{
    static const char *const endings[] = {
        ".bias",          ".qweight",       ".qzeros",           ".scales",
        ".g_idx",         ".weight_scale",  ".weight_scale_inv", ".input_scale",
        ".weight_packed", ".absmax",        ".quant_map",        ".SCB",
        ".q_norm.weight", ".k_norm.weight", ".lora_A.weight",    ".lora_B.weight"};

    for (size_t i = 0; i < weights_count(weights); i++) {
        const struct tensor *tensor = weights_at(weights, i);
        size_t length = strlen(tensor->name);
        for (size_t e = 0; e < sizeof(endings) / sizeof(endings[0]); e++) {
            size_t n = strlen(endings[e]);
            if (length >= n && strcmp(tensor->name + length - n, endings[e]) == 0) {
                return status_fail(STATUS_UNIMPLEMENTED,
                                   "%s: tensor %.128s: bias, quantization and adapter tensors "
                                   "are not supported",
                                   tensor->path, tensor->name);
            }
        }
    }
    return STATUS_OK;
}

/* What model_open() reads of a layer, between "model.layers.N." and ".weight". */
static const char *const layer_names[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
    "mlp.down_proj",    "input_layernorm",  "post_attention_layernorm",
};

static bool is_layer_tensor(const char *name, int layers)
{
    static const char prefix[] = "model.layers.";
    char expected[MAX_NAME];
    int layer = 0;

    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0) {
        return false;
    }
    for (const char *c = name + sizeof(prefix) - 1; *c >= '0' && *c <= '9' && layer < layers; c++) {
        layer = layer * 10 + (*c - '0');
    }
    for (size_t i = 0; layer < layers && i < sizeof(layer_names) / sizeof(layer_names[0]); i++) {
        snprintf(expected, sizeof(expected), "%s%d.%s.weight", prefix, layer, layer_names[i]);
        if (strcmp(name, expected) == 0) {
            return true;
        }
    }
    return false;
}

/* A tensor that the families do not have may say that the model computes something else: more
 * layers, another norm, experts.  Old files carry rotary tables, which the configuration implies.
 */
static status refuse_unknown(const struct weights *weights, const struct model_config *config)
{
    static const char *const others[] = {"model.embed_tokens.weight", "model.norm.weight",
                                         "lm_head.weight"};
    static const char rotary[] = ".rotary_emb.inv_freq";

    for (size_t i = 0; i < weights_count(weights); i++) {
        const struct tensor *tensor = weights_at(weights, i);
        size_t length = strlen(tensor->name);
        bool known = is_layer_tensor(tensor->name, config->layers) ||
                     (length >= sizeof(rotary) - 1 &&
                      strcmp(tensor->name + length - (sizeof(rotary) - 1), rotary) == 0);
        for (size_t o = 0; !known && o < sizeof(others) / sizeof(others[0]); o++) {
            known = strcmp(tensor->name, others[o]) == 0;
        }
        if (!known) {
            return status_fail(STATUS_UNIMPLEMENTED,
                               "%s: tensor %.128s: not part of a %s of %d layers", tensor->path,
                               tensor->name, config->architecture, config->layers);
        }
    }
    return STATUS_OK;
}

status foreign_refuse(const struct weights *weights, const struct model_config *config)
{
    status st = refuse_foreign(weights);

    return st ? st : refuse_unknown(weights, config);
}
