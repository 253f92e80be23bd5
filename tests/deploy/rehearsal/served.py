"""served.py - what a rehearsal serves, and requests whose answers are known."""
import json
import shutil
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file, save_file

from deployment import ROOT

NEEDLE = ROOT / "tests" / "models" / "needle-tiny"
STORIES = ROOT / "tests" / "models" / "stories260k"
HEADS = 16  # most ranks of an overlay


@dataclass
class Case:
    prompt: str
    answer: str  # begins so
    options: tuple = ("--max-tokens", "5")


def widen(source, folder, heads):
    """The same model with more query heads that add nothing, so that more ranks can share it."""
    config = json.loads((source / "config.json").read_text())
    kv, dim = config["num_key_value_heads"], config["head_dim"]
    old, new = config["num_attention_heads"] // kv, heads // kv
    tensors = load_file(source / "model.safetensors")
    for name, value in tensors.items():
        if "q_proj" in name:
            value = value.reshape(kv, old, dim, -1)
            tensors[name] = np.pad(value, ((0, 0), (0, new - old), (0, 0), (0, 0))).reshape(
                heads * dim, -1)
        elif "o_proj" in name:
            value = value.reshape(-1, kv, old, dim)
            tensors[name] = np.pad(value, ((0, 0), (0, 0), (0, new - old), (0, 0))).reshape(
                -1, heads * dim)
    shutil.copytree(source, folder)
    config["num_attention_heads"] = heads
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def for_cpus(folder):
    """A short request, and one that is read for seconds."""
    shutil.copytree(NEEDLE, folder)
    cases = {}
    for line in (NEEDLE / "test_public.jsonl").read_text().splitlines():
        case = json.loads(line)
        cases.setdefault(case["length"], Case(case["prompt"], case["answer"].strip()))
    return cases[1024], cases[32768]


def for_emulated_gpus(folder):
    """The same for a GPU that is a thousand times slower."""
    widen(STORIES, folder, HEADS)
    stories = [json.loads(line) for line in (STORIES / "golden_generate.jsonl").read_text().splitlines()]
    prompt, text = stories[0]["prompt"], stories[0]["text"]
    answer = text[len(prompt):].strip()
    return (Case(prompt, answer[:15], ("--max-tokens", "8", "--method", "FULL")),
            Case(" ".join(s["text"] for s in stories[:4]), "", ("--max-tokens", "2", "--method", "FULL")))
