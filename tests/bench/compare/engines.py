"""One interface to all engines: run(cell, places) starts one, measures one round, and stops it.

A result has ready_s (start to ready), ttft_s, decode_tps (tokens/s of all sequences together while
all of them decode), total_s (prompts and answers) and peak_bytes (VmHWM of its processes).
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .shapes import size_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parent), str(ROOT / "tests" / "system")]
SEED = 7
DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")


@dataclass
class Places:
    """Where models and peers are (models.py, peers.py)."""
    cache: Path

    def model(self, name):
        return self.cache / "models" / name

    def gguf(self, name, kind="bf16"):
        return self.cache / "gguf" / f"{name}-{kind}.gguf"

    def python(self, peer):
        return self.cache / "peers" / peer / "bin" / "python"

    def batched_bench(self):
        return self.cache / "peers" / "llamacpp" / "build" / "bin" / "llama-batched-bench"


def config_of(cell, places):
    return json.loads((places.model(cell.model) / "config.json").read_text())


def prompts(cell, places):
    vocab = config_of(cell, places)["vocab_size"]
    source = np.random.default_rng([SEED, cell.tokens])
    return source.integers(3, vocab - 8, (cell.batch, cell.tokens)).tolist()


def last_json(text):
    """The last line of an engine's output that is JSON."""
    for line in reversed(text.splitlines()):
        if line.startswith(("{", "[")):
            return json.loads(line)
    raise ValueError(f"no result in: {text[-400:]!r}")


def execute(command, environment=None, given=None):
    """stdout; the program ends when this one does, however that is."""
    done = subprocess.run([*DIES_WITH_US, *(str(part) for part in command)], input=given,
                          text=True, capture_output=True,
                          env={**os.environ, **(environment or {})})
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise RuntimeError(f"{Path(command[0]).name}: exit status {done.returncode}: {said[-300:]}")
    return done.stdout


# ---- winnow

def window(starts, ttfts, gaps):
    """Tokens a second of all sequences while all decode: from the last one's first token to the
    first one's last."""
    times = [np.cumsum([start + first, *gap]) for start, first, gap in zip(starts, ttfts, gaps)]
    begun, ended = max(t[0] for t in times), min(t[-1] for t in times)
    made = sum(int(((t > begun) & (t <= ended)).sum()) for t in times)
    return made / (ended - begun) if ended > begun else None


def send_load(service, cell):
    """The bundled load generator: it costs the server little (docs/benchmarking.md)."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        execute([ROOT / "build" / "bin" / "winnow", "bench", "serve", "--server", service.address,
                 "--num-prompts", cell.batch, "--random-input-len", cell.tokens,
                 "--random-output-len", cell.new, "--ignore-eos", "--seed", SEED, "--quiet",
                 "--method", cell.method, "--save-detailed", "--result-filename", out.name])
        result = json.loads(Path(out.name).read_text())
    if result["failed"]:
        raise RuntimeError(f"winnow: {result['failed']} requests failed: {result['errors'][0]}")
    starts, ttfts, gaps = (result[name] for name in ("start_times", "ttfts", "itls"))
    return {"ttft_s": ttfts[0], "decode_tps": window(starts, ttfts, gaps),
            "total_s": max(s + t + sum(g) for s, t, g in zip(starts, ttfts, gaps)) - min(starts),
            "kv_bytes": result["kv_bytes_each"][0]}


def send_headkv(service, cell, places):
    """HEADKV needs a table of heads, which the load generator does not send: all are equal."""
    from service import api, sampling

    config = config_of(cell, places)
    heads = config["num_hidden_layers"] * config["num_attention_heads"]
    compression = api.Compression(method=api.METHOD_HEADKV,
                                  headkv=api.HeadKV(head_scores=[1.0] * heads))
    answer = service.generate(tokens=api.TokenIds(ids=prompts(cell, places)[0]), timeout=3600,
                              compression=compression, sampling=sampling(max_tokens=cell.new))
    timing = answer.timing
    return {"ttft_s": timing.ttft_ms / 1000, "total_s": timing.total_ms / 1000,
            "decode_tps": 1000 * (cell.new - 1) / timing.decode_ms,
            "kv_bytes": answer.usage.kv_bytes}


def formula_bytes(cell, places):
    """What the prompt adds to a worker by docs/architecture.md: all workers together."""
    from memory import predict

    config = config_of(cell, places)
    parts = [predict(config, cell.method, cell.tokens, cell.new, rank, cell.workers, 2)
             for rank in range(cell.workers)]
    return sum(sum(part.values()) for part in parts)


def run_winnow(cell, places):
    from memory import growth, memory
    from service import Service

    context = cell.tokens + cell.new + 64
    pages = cell.batch * context * size_of(config_of(cell, places)).kv_bytes
    limits = ["--threads", cell.threads, "--max-context", context, "--queue-requests", 1024,
              "--kv-memory", cell.options.get("kv-memory", pages * 11 // 10 + (64 << 20))]
    if cell.batch > 1:
        limits += ["--itl-target-ms", 60000]  # prompts first, as the peers' benchmarks do
    for option in ("weights", "kv"):
        if option in cell.options:
            limits += [f"--{option}", cell.options[option]]
    begin = time.monotonic()
    with Service(places.model(cell.model), workers=cell.workers, options=limits,
                 prefix=("taskset", "-c", "0,1")) as service:
        ready = time.monotonic() - begin
        idle = {pid: memory(pid) for pid in service.workers()}
        headkv = cell.method == "HEADKV"
        result = send_headkv(service, cell, places) if headkv else send_load(service, cell)
        after = {pid: memory(pid) for pid in idle}
        peak = memory(service.process.pid)["VmHWM"] + sum(m["VmHWM"] for m in after.values())
        grown = sum(growth(idle[pid], after[pid], 0) for pid in idle)
    return {"ready_s": ready, "peak_bytes": peak, "grown_bytes": grown,
            "formula_bytes": formula_bytes(cell, places), **result}


# ---- peers

def run_llamacpp(cell, places):
    model = places.gguf(cell.model, cell.options.get("weights", "bf16"))
    context = cell.batch * (cell.tokens + cell.new) + 256
    flash = "on" if cell.engine.endswith("flash") else "off"
    text = execute(["taskset", "-c", "0,1", places.batched_bench(), "-m", model, "-c", context,
                    "-npp", cell.tokens, "-ntg", cell.new, "-npl", cell.batch, "-fa", flash,
                    "-b", 2048, "-ub", cell.options.get("ub", 512), "-t", cell.threads,
                    "-tb", cell.threads, "--output-format", "jsonl"])
    found = last_json(text)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    return {"ttft_s": found["t_pp"], "decode_tps": found["speed_tg"], "total_s": found["t"],
            "peak_bytes": peak}


def run_script(cell, places, peer, script, environment, **more):
    given = json.dumps({**cell.as_json(), "folder": str(places.model(cell.model)),
                        "ids": prompts(cell, places), **more})
    return last_json(execute(["taskset", "-c", "0,1", places.python(peer), HERE / script],
                             {"OMP_NUM_THREADS": str(cell.threads), **environment}, given))


def run_transformers(cell, places):
    return run_script(cell, places, "torch", "run_transformers.py", {"HF_HUB_OFFLINE": "1"})


def run_vllm(cell, places):
    openmp = places.python("vllm").parents[1] / "lib" / "libiomp5.so"
    gib = 1 + cell.batch * (cell.tokens + cell.new) // 24576  # the 1B shape's K/V, 32 KiB a token
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": str(gib),
                   "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "1",
                   "LD_PRELOAD": str(openmp), "VLLM_LOGGING_LEVEL": "WARNING",
                   "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(places.cache / "vllm")}
    return run_script(cell, places, "vllm", "run_vllm.py", environment,
                      eager=not cell.engine.endswith("compiled"), chunk=2048)


ENGINES = {"winnow": run_winnow, "llama.cpp": run_llamacpp, "llama.cpp flash": run_llamacpp,
           "transformers": run_transformers, "vLLM": run_vllm,
           "vLLM compiled": run_vllm}


def read_speed(threads):
    """The machine's read bandwidth just now: on a shared host it changes.  After the engine's run,
    whose memory is measured as the largest of this process's children."""
    text = execute(["taskset", "-c", "0,1", ROOT / "build" / "bin" / "winnow-bench-kernels",
                    "--read", threads])
    return last_json(text)["read_gbs"]


def run(cell, places):
    result = ENGINES[cell.engine](cell, places)
    return {**result, "read_gbs": read_speed(cell.workers * cell.threads)}
