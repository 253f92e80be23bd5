/*
 * model_config.h - what config.json and generation_config.json say about a model.
 *
 * Both programs read it: the coordinator to check requests and to plan memory, the
 * worker to run the model.  Only families that winnow runs exactly are accepted;
 * anything else is refused by the name of the field that differs.
 */
#ifndef COMMON_MODEL_CONFIG_H
#define COMMON_MODEL_CONFIG_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum model_limits {
    MODEL_MAX_LAYERS = 1024,
    MODEL_MAX_HEADS = 1024,
    MODEL_MAX_HEAD_DIM = 256, /* and a multiple of 8 */
    MODEL_MAX_WIDTH = 1 << 20,
    MODEL_MAX_VOCAB = 1 << 22,
    MODEL_MAX_POSITIONS = 1 << 24,
    MODEL_MAX_EOS = 16,
};

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_config {
    char name[128];        /* last component of the directory */
    char architecture[64]; /* "LlamaForCausalLM" or "MistralForCausalLM" */
    enum dtype dtype;      /* torch_dtype (or dtype); F32 when absent */
    int layers;
    int hidden;
    int intermediate;
    int query_heads;
    int kv_heads; /* divides query_heads */
    int head_dim;
    int vocab;
    int max_positions;
    float rms_eps;
    double rope_theta;
    enum rope_kind rope;
    double rope_factor;
    double rope_low_freq; /* ROPE_LLAMA3 only, like the next two */
    double rope_high_freq;
    double rope_original_positions;
    int sliding_window; /* tokens visible to a query, itself included; 0: all */
    bool tied_embeddings;
    int bos_id;                 /* -1: none */
    int eos_ids[MODEL_MAX_EOS]; /* of config.json and generation_config.json, no duplicates */
    int n_eos_ids;
};

/* Reads DIR/config.json and, where it exists, DIR/generation_config.json. */
status model_config_load(struct model_config *out, const char *dir);

/* Fills out->name alone: the directory's last component. */
void model_config_name(struct model_config *out, const char *dir);

/* The same from text already in memory: `generation` may be NULL.  `what` names it in errors. */
status model_config_parse(struct model_config *out, const char *what, const char *config,
                          size_t config_bytes, const char *generation, size_t generation_bytes);

/* inv_freq (head_dim / 2): radians per position, scaling applied, computed as float32 like the
 * published implementations do, so that index lists agree with them. */
void model_config_inv_freq(const struct model_config *config, float *inv_freq);

const char *dtype_name(enum dtype dtype); /* "float32", "bfloat16", "float16" */
size_t dtype_bytes(enum dtype dtype);

#endif
