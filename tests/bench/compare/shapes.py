"""What a load must compute and read at least, from a model's config.json."""
from dataclasses import dataclass


@dataclass
class Size:
    """Counts of a model in bfloat16."""
    layers: int
    linear: int           # parameters of all layers' matrices
    output: int           # of the output table
    attention: int        # FLOPs of a causal prompt of n tokens: attention * n^2
    kv_bytes: int         # of a token, all layers

    @property
    def weight_bytes(self):
        """What a decode step reads of the weights."""
        return 2 * (self.linear + self.output)

    def prefill_flops(self, tokens):
        return 2 * self.linear * tokens + self.attention * tokens ** 2

    def decode_bytes(self, batch, depth):
        return self.weight_bytes + batch * depth * self.kv_bytes


def size_of(config):
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head = config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = hidden * (2 * query + 2 * key + 3 * config["intermediate_size"])
    return Size(layers=layers, linear=layers * layer, output=config["vocab_size"] * hidden,
                attention=2 * query * layers, kv_bytes=2 * 2 * key * layers)
