"""A model that winnow does not run exactly is refused by the name of what differs.

Cases are changes of the small models of tests/models/rows, which are accepted as they are.  Broken
files are the subject of test_bad_models.py, and of single fields tests/common/test_model_config.c.
"""
import subprocess
import sys

import numpy as np
import pytest

from service import BUILD, MODELS, Service

sys.path.insert(0, str(MODELS / "rows"))

import make_model  # noqa: E402
from rows import ROWS  # noqa: E402

LLAMA, TIED, MISTRAL = (ROWS[name] for name in ("llama-3.1-8b-instruct", "llama-3.2-1b",
                                                "mistral-7b-v0.1"))
NEWER = ROWS["llama-3.1-8b-rope-parameters"]
HEAD = "lm_head.weight"
Q = "model.layers.0.self_attn.q_proj"


class Changed:
    """A row with other fields of config.json, more tensors or fewer."""

    def __init__(self, row, fields=(), without=(), more=(), absent=()):
        self.row, self.fields, self.absent = row, dict(fields), absent
        self.without, self.more = without, dict(more)
        self.dtype, self.shards = row.dtype, row.shards

    def config(self):
        merged = {**self.row.config(), **self.fields}
        return {name: value for name, value in merged.items() if name not in self.absent}

    def tensors(self):
        yield from ((n, shape) for n, shape in self.row.tensors() if n not in self.without)
        yield from ((name, values.shape) for name, values in self.more.items())

    def draw(self, name, shape):
        return self.more[name] if name in self.more else self.row.draw(name, shape)


def fields(row=LLAMA, **changed):
    return Changed(row, fields=changed)


def tensor(name, *shape, row=LLAMA, fields=()):
    return Changed(row, fields, more={name: np.zeros(shape, np.float32)})


def rope(kind, row=LLAMA, key="rope_type", **more):
    return fields(row, rope_scaling={key: kind, "factor": 4.0, **more})


YARN = {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64}
GPTQ = {"bits": 4, "group_size": 128, "quant_method": "gptq"}
FP8 = {"activation_scheme": "dynamic", "quant_method": "fp8"}
CASES = {
    # what is not supported: (words of the sentence, the model)
    "Mixtral": (["model_type", "mixtral"], fields(
        MISTRAL, architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=8,
        num_experts_per_tok=2)),
    "Qwen2": (["model_type", "qwen2"], fields(architectures=["Qwen2ForCausalLM"],
                                              model_type="qwen2")),
    "Ministral with attention of its own": (["model_type", "ministral"], fields(
        MISTRAL, architectures=["MinistralForCausalLM"], model_type="ministral")),
    "Ministral 3": (["model_type", "ministral3"], fields(
        MISTRAL, architectures=["Ministral3ForCausalLM"], model_type="ministral3")),
    "Llama 4": (["model_type", "llama4_text"], fields(architectures=["Llama4ForCausalLM"],
                                                      model_type="llama4_text")),
    "a classifier": (["architectures", "LlamaForSequenceClassification"],
                     fields(architectures=["LlamaForSequenceClassification"])),
    "a body without a head": (["architectures", "LlamaModel"],
                              fields(architectures=["LlamaModel"])),
    "two architectures": (["architectures"], fields(architectures=["LlamaForCausalLM", "Other"])),

    "rope dynamic": (["rope_scaling.rope_type", "dynamic"], rope("dynamic")),
    "rope dynamic, old word": (["rope_scaling.type", "dynamic"], rope("dynamic", key="type")),
    "rope yarn": (["rope_scaling.rope_type", "yarn"], rope("yarn", **YARN)),
    "rope longrope": (["rope_scaling.rope_type", "longrope"], rope("longrope", **LONG)),
    "rope su": (["rope_scaling.type", "su"], rope("su", key="type", **LONG)),
    "rope mrope": (["rope_scaling.type", "mrope"], rope("mrope", key="type")),
    "rope of Mistral": (["rope_scaling.rope_type", "yarn"], rope("yarn", MISTRAL, **YARN)),
    "rope parameters yarn": (["rope_parameters.rope_type", "yarn"], fields(
        NEWER, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, **YARN})),
    "rope parameters of each kind of layer": (["rope_parameters.rope_type"], fields(
        NEWER, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}})),
    "both rope objects": (["rope_scaling", "rope_parameters"], fields(
        NEWER, rope_scaling={"rope_type": "linear", "factor": 2.0})),
    "a part of each head rotated": (["partial_rotary_factor"], fields(partial_rotary_factor=0.5)),
    "a part rotated, newer": (["rope_parameters.partial_rotary_factor"], fields(
        NEWER, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})),

    "windows in some layers": (["layer_types"], fields(
        MISTRAL, layer_types=["full_attention", "sliding_attention", "sliding_attention"])),
    "windows that layer_types denies": (["layer_types"], fields(
        MISTRAL, layer_types=["full_attention"] * 3)),
    "a window of Llama": (["sliding_window"], fields(sliding_window=64)),
    "a list of windows": (["sliding_window"], fields(MISTRAL, sliding_window=[64, None])),
    "Mistral that does not speak of windows": (["sliding_window", "missing"],
                                               Changed(MISTRAL, absent=["sliding_window"])),
    "Mistral that does not speak of key heads": (["num_key_value_heads", "missing"],
                                                 Changed(MISTRAL, absent=["num_key_value_heads"])),

    "GPTQ": (["quantization_config"], fields(quantization_config=GPTQ)),
    "FP8": (["quantization_config"], fields(MISTRAL, quantization_config=FP8)),
    "compressed tensors": (["compression_config"], fields(compression_config={"format": "dense"})),
    "float64": (["torch_dtype", "float64"], fields(torch_dtype="float64")),
    "bias of attention": (["attention_bias"], fields(attention_bias=True)),
    "bias of the MLP": (["mlp_bias"], fields(mlp_bias=True)),
    "gelu": (["hidden_act", "gelu"], fields(hidden_act="gelu")),
    "gelu of Mistral": (["hidden_act", "gelu_pytorch_tanh"],
                        fields(MISTRAL, hidden_act="gelu_pytorch_tanh")),
    "experts": (["num_local_experts"], fields(num_local_experts=8)),
    "experts, another word": (["num_experts"], fields(num_experts=8)),
    "capped logits": (["final_logit_softcapping"], fields(final_logit_softcapping=30.0)),
    "scaled logits": (["logits_scaling"], fields(logits_scaling=8.0)),
    "scaled residuals": (["residual_multiplier"], fields(residual_multiplier=0.22)),
    "heads of 20": (["head_dim", "20"], fields(head_dim=20)),

    "a bias tensor": ([f"{Q}.bias", "bias"], tensor(f"{Q}.bias", 128)),
    "a bias tensor of the MLP": (["mlp.down_proj.bias"],
                                 tensor("model.layers.2.mlp.down_proj.bias", 128)),
    "a packed tensor": ([f"{Q}.qweight"], tensor(f"{Q}.qweight", 16, 128)),
    "a scale": ([f"{Q}.weight_scale"], tensor(f"{Q}.weight_scale", 1)),
    "norms of queries": (["self_attn.q_norm.weight"],
                         tensor("model.layers.0.self_attn.q_norm.weight", 16)),
    "another norm": (["pre_feedforward_layernorm.weight", "not part of"],
                     tensor("model.layers.0.pre_feedforward_layernorm.weight", 128)),
    "experts without a word": (["block_sparse_moe.gate.weight", "not part of"],
                               tensor("model.layers.0.block_sparse_moe.gate.weight", 8, 128)),
    "a layer more than configured": (["model.layers.3.input_layernorm.weight", "3 layers"],
                                     tensor("model.layers.3.input_layernorm.weight", 128)),
    "an adapter": (["q_proj.lora_A.weight"], tensor(f"{Q}.lora_A.weight", 8, 128)),
    "no output and not tied": ([HEAD, "missing"], Changed(LLAMA, without=[HEAD])),
    "not tied after all": ([HEAD, "missing"], fields(TIED, tie_word_embeddings=False)),
    "tied with an output of its own": ([HEAD, "tie_word_embeddings"],
                                       tensor(HEAD, TIED.vocab, TIED.hidden, row=TIED)),
    "a layer less than configured": (["model.layers.3."], fields(num_hidden_layers=4)),
    "heads of another size": ([f"{Q}.weight", "shape"], fields(head_dim=32)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_supported_is_refused_by_name(tmp_path, name):
    words, model = CASES[name]
    make_model.write_model(tmp_path, model)
    done = subprocess.run([BUILD / "bin" / "winnow-coordinator", "--model", tmp_path, "--listen",
                           "127.0.0.1:0", "--local-workers", "1", "--dtype", "float32"],
                          capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), \
        done.stderr


HARMLESS = {
    "tied, and the embedding once more": Changed(
        TIED, more={HEAD: TIED.draw("model.embed_tokens.weight", (TIED.vocab, TIED.hidden))}),
    "layer_types that says what sliding_window says": fields(
        MISTRAL, layer_types=["sliding_attention"] * 3),
    "null where the default is meant": fields(
        rope_scaling=None, head_dim=None, quantization_config=None, sliding_window=None),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_accepted(tmp_path, name):
    make_model.write_model(tmp_path, HARMLESS[name])
    with Service(tmp_path, workers=2, dtype="float32") as service:
        assert service.model().layers == 3
