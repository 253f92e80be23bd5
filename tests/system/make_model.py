#!/usr/bin/env python3
"""make_model.py - write a Llama or Mistral directory with seeded random weights, of any shape.

    make_model.py DIR --hidden 512 --layers 4 --query-heads 8 --kv-heads 2 --head-dim 64
    make_model.py DIR --dtype bfloat16 --shards 3 --tied --rope llama3 --tokenizer tests/models/needle-tiny

The same seed gives the same numbers whatever the dtype (apart from rounding) and the number of
files: each tensor is drawn by its own name.  Needs numpy only; one tensor is in memory at a time.
"""
import argparse
import json
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass
class Shape:
    """What config.json says, and how the weights are written."""
    hidden: int = 128
    layers: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 256
    vocab: int = 512
    positions: int = 135168
    family: str = "llama"          # or "mistral"
    window: int | None = None      # sliding_window, mistral only
    rope_theta: float = 10000.0
    rope: str | None = None        # None, "linear" or "llama3"
    dtype: str = "float32"
    tied: bool = False
    shards: int = 1
    seed: int = 0

    def config(self):
        names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
        config = {
            "architectures": [names[self.family]], "model_type": self.family,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5, "rope_theta": self.rope_theta, "rope_scaling": self._scaling(),
            "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": self.tied, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": self.dtype,
        }
        if self.family == "mistral":
            config["sliding_window"] = self.window
        return config

    def _scaling(self):
        if self.rope == "llama3":
            return {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        return {"rope_type": "linear", "factor": 4.0} if self.rope == "linear" else None

    def tensors(self):
        """(name, shape) of every tensor, in the order of the file."""
        query, key = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (self.hidden,)
            yield prefix + "self_attn.q_proj.weight", (query, self.hidden)
            yield prefix + "self_attn.k_proj.weight", (key, self.hidden)
            yield prefix + "self_attn.v_proj.weight", (key, self.hidden)
            yield prefix + "self_attn.o_proj.weight", (self.hidden, query)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
            yield prefix + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield prefix + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield prefix + "mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    def draw(self, name, shape):
        """Norms near one, projections of variance 1 / fan-in, embeddings of variance 1."""
        source = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        values = source.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            return 1 + values * np.float32(0.1)
        return values if "embed_tokens" in name else values * np.float32(shape[1] ** -0.5)


def encode(values, dtype):
    """Bytes of float32 `values` in `dtype`; to bfloat16 the nearest, ties to even."""
    if dtype == "float32":
        return values.tobytes()
    if dtype == "float16":
        return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def write_file(path, shape, tensors):
    """One safetensors file; returns the bytes of its data."""
    code, element = DTYPES[shape.dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, sizes in tensors:
        end = offset + int(np.prod(sizes, dtype=np.int64)) * element
        header[name] = {"dtype": code, "shape": sizes, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, sizes in tensors:
            file.write(encode(shape.draw(name, sizes), shape.dtype))
    return offset


def write_model(folder, shape, tokenizer=None):
    """Writes config.json and the weights; `tokenizer`: a directory whose tokenizer is copied."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    tensors = list(shape.tensors())
    if shape.shards == 1:
        write_file(folder / "model.safetensors", shape, tensors)
    else:
        weight_map, total = {}, 0
        for i in range(shape.shards):
            name = f"model-{i + 1:05d}-of-{shape.shards:05d}.safetensors"
            part = tensors[i * len(tensors) // shape.shards:(i + 1) * len(tensors) // shape.shards]
            total += write_file(folder / name, shape, part)
            weight_map.update(dict.fromkeys((tensor for tensor, _ in part), name))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name in TOKENIZER_FILES if tokenizer else ():
        source = Path(tokenizer) / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", metavar="DIR")
    choices = {"family": ("llama", "mistral"), "rope": ("linear", "llama3"), "dtype": DTYPES}
    for name, kind in Shape.__annotations__.items():
        option = "--" + name.replace("_", "-")
        default = getattr(Shape, name)
        if kind is bool:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=float if kind is float else
                                str if name in choices else int,
                                choices=choices.get(name), default=default)
    parser.add_argument("--tokenizer", metavar="DIR", help="copy the tokenizer from there")
    arguments = vars(parser.parse_args())
    folder, tokenizer = arguments.pop("folder"), arguments.pop("tokenizer")
    shape = Shape(**arguments)
    if shape.window is not None and shape.family != "mistral":
        parser.error("--window: only mistral has one")
    if not 1 <= shape.shards <= len(list(shape.tensors())):
        parser.error(f"--shards: 1 to {len(list(shape.tensors()))}")
    write_model(folder, shape, tokenizer)


if __name__ == "__main__":
    main()
