"""rows.py - small random models with the exact structure of published ones.

configs/ holds the config.json files of the published models, every field as published, and one
(llama-3.1-8b-rope-parameters) as transformers 5 writes them.  A row is one of these with its sizes
shrunk and nothing else changed, and weights that are a function of the row's name alone: hashed
integers and exact float32 arithmetic, the same with every numpy.  make_expected.py asks
transformers what each row answers, tests/system/test_model_rows.py asks winnow.
"""
import hashlib
import json
import math
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "system"))

import make_model  # noqa: E402

EXPECTED = HERE / "expected"
LENGTHS = (40, 300)  # prompts; the window of mistral-7b-v0.1 is between them, all others are larger
STEPS = 8            # greedy tokens, and the logits that each was chosen from
LAYERS = 3
POSITIONS = 512
DTYPES = ("float32", "bfloat16", "float16")
# Scores of random heads are nearly uniform, and then positions hardly matter: sharper ones tell
# a wrong angle or window apart.
GAIN = {"q_proj": 2.0, "k_proj": 2.0}


@dataclass(frozen=True)
class Row:
    """Sizes of one small model; the rest is in configs/NAME.json."""
    name: str
    heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    window: int | None = None
    original_positions: int = 64  # where llama3 scaling begins to bend
    shards: int = 1
    rotary_tensors: bool = False  # the inv_freq of each layer, which old checkpoints carry

    @property
    def published(self):
        return json.loads((HERE / "configs" / f"{self.name}.json").read_text())

    @property
    def dtype(self):
        published = self.published
        return published.get("dtype") or published["torch_dtype"]

    def config(self):
        """What make_model writes: the published fields in their order, smaller."""
        config = self.published
        vocab = config["vocab_size"]
        small = {"hidden_size": self.hidden, "intermediate_size": self.intermediate,
                 "num_hidden_layers": LAYERS, "num_attention_heads": self.heads,
                 "vocab_size": self.vocab, "max_position_embeddings": POSITIONS}
        config.update(small)
        if "num_key_value_heads" in config:
            config["num_key_value_heads"] = self.kv_heads
        if config.get("head_dim"):
            config["head_dim"] = self.head_dim
        if config.get("sliding_window"):
            config["sliding_window"] = self.window
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = self.original_positions
        for name in ("bos_token_id", "eos_token_id"):
            config[name] = _small_ids(config[name], vocab, self.vocab)
        return config

    @property
    def kv_heads(self):
        """As many queries to a key as published."""
        published = self.published
        queries = published["num_attention_heads"]
        return self.heads * published.get("num_key_value_heads", queries) // queries

    def tensors(self):
        shape = make_model.Shape(
            hidden=self.hidden, layers=LAYERS, query_heads=self.heads, kv_heads=self.kv_heads,
            head_dim=self.head_dim, intermediate=self.intermediate, vocab=self.vocab,
            tied=self.published["tie_word_embeddings"])
        yield from shape.tensors()
        for layer in range(LAYERS if self.rotary_tensors else 0):
            yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", (self.head_dim // 2,)

    def draw(self, name, shape):
        """Uniform; norms near one, projections of variance 1 / fan-in, embeddings of variance 1."""
        values = uniform(f"{self.name}/{name}", int(np.prod(shape))).reshape(shape)
        if len(shape) == 1:
            return np.float32(1) + values * np.float32(0.25)
        part = name.split(".")[-2]
        variance = 1.0 if part == "embed_tokens" else GAIN.get(part, 1.0) ** 2 / shape[1]
        return values * np.float32(math.sqrt(3 * variance))

    def prompt(self, length, start):
        """Token ids; `start` tells prompts of one length apart."""
        values = hashed(f"{self.name}/prompt {length} {start}", length)
        return (values % np.uint64(self.vocab)).astype(np.int32)

    def write(self, folder):
        return make_model.write_model(folder, self)

    def fingerprint(self):
        """Of configuration and weights: expected numbers are of these or of no use."""
        digest = hashlib.sha256(json.dumps(self.config()).encode())
        for name, shape in self.tensors():
            digest.update(make_model.encode(self.draw(name, shape), self.dtype))
        return digest.hexdigest()


def _small_ids(ids, vocab, small):
    """Special ids stay where they are, counted from the nearer end of the vocabulary."""
    if isinstance(ids, list):
        return [_small_ids(i, vocab, small) for i in ids]
    return ids if ids < small // 2 else small - min(vocab - ids, small // 2)


def hashed(name, count):
    """`count` 64-bit integers: the finalizer of SplitMix64 over a counter that `name` starts."""
    start = np.uint64(zlib.crc32(name.encode()) << 32)
    x = (start + np.arange(count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(name, count):
    """float32 in [-1, 1), multiples of 2^-23: no rounding anywhere."""
    steps = (hashed(name, count) >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return steps.astype(np.float32) / np.float32(1 << 23)


ROWS = {row.name: row for row in (
    Row("llama-7b", heads=4, head_dim=16, hidden=64, intermediate=172, vocab=320),
    Row("llama-2-7b", heads=4, head_dim=16, hidden=64, intermediate=172, vocab=320, shards=2,
        rotary_tensors=True),
    Row("llama-2-70b", heads=16, head_dim=8, hidden=128, intermediate=448, vocab=320, shards=5),
    Row("vicuna-7b-16k", heads=4, head_dim=16, hidden=64, intermediate=172, vocab=320, shards=2),
    Row("llama-3-8b", heads=8, head_dim=16, hidden=128, intermediate=448, vocab=513, shards=4),
    Row("llama-3.1-8b-instruct", heads=8, head_dim=16, hidden=128, intermediate=448, vocab=513,
        shards=4),
    Row("llama-3.1-8b-rope-parameters", heads=8, head_dim=16, hidden=128, intermediate=448,
        vocab=513, shards=7),
    Row("llama-3.2-1b", heads=8, head_dim=16, hidden=128, intermediate=512, vocab=513),
    Row("llama-3.2-3b", heads=6, head_dim=16, hidden=96, intermediate=256, vocab=513, shards=2),
    Row("mistral-7b-v0.1", heads=8, head_dim=16, hidden=128, intermediate=448, vocab=320,
        window=64, shards=2),
    Row("mistral-7b-instruct-v0.2", heads=8, head_dim=16, hidden=128, intermediate=448, vocab=320,
        shards=3),
    Row("mistral-7b-v0.3", heads=8, head_dim=16, hidden=128, intermediate=448, vocab=328, shards=3),
    Row("mistral-nemo", heads=8, head_dim=16, hidden=160, intermediate=448, vocab=384, shards=5),
    Row("ministral-8b-instruct", heads=8, head_dim=16, hidden=128, intermediate=384, vocab=384,
        window=POSITIONS, shards=4),
)}
