#!/usr/bin/env python3
"""to_gguf.py - write a Llama directory as GGUF for llama.cpp: bfloat16, without a vocabulary.

    to_gguf.py MODEL_DIR OUT.gguf

Prompts of the benchmark are token ids, so the file says only how many there are.
"""
import json
import sys
from pathlib import Path

import gguf
import ml_dtypes  # noqa: F401  (numpy's bfloat16 in safetensors)
import numpy as np
from safetensors import safe_open

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight",
         "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def gguf_name(name):
    if name in WHOLE:
        return WHOLE[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight, heads):
    """Rows i and i + d/2 of a head, which Hugging Face rotates together, side by side."""
    d = weight.shape[0] // heads
    return weight.reshape(heads, 2, d // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def add_config(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")


def add_tensor(writer, name, weight, config):
    if weight.ndim == 1:
        writer.add_tensor(gguf_name(name), weight.astype(np.float32))
        return
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if part in name:
            weight = interleaved(weight, config[key])
    data = np.ascontiguousarray(weight).view(np.uint8)
    writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)


def convert(folder, out):
    config = json.loads((Path(folder) / "config.json").read_text())
    part = Path(f"{out}.part")
    writer = gguf.GGUFWriter(part, "llama", use_temp_file=False)
    add_config(writer, config)
    with safe_open(Path(folder) / "model.safetensors", "numpy") as file:
        for name in file.keys():
            add_tensor(writer, name, file.get_tensor(name), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(out)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2])
