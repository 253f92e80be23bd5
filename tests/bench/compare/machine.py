"""Facts about the machine, and its limits: read bandwidth and GEMM speed, one and two threads."""
import json
import os
import platform
import re
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


def facts(cpuinfo=None, meminfo=None):
    cpu = cpuinfo or Path("/proc/cpuinfo").read_text()
    memory = meminfo or Path("/proc/meminfo").read_text()

    def field(name, text):
        found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.M)
        return found.group(1).strip() if found else "?"

    flags = field("flags", cpu).split()
    return {"processor": field("model name", cpu), "family": field("cpu family", cpu),
            "model": field("model", cpu), "cores": os.cpu_count(),
            "cache": field("cache size", cpu), "flags": [f for f in FLAGS if f in flags],
            "memory_gib": round(int(field("MemTotal", memory).split()[0]) / (1 << 20), 1),
            "kernel": platform.release()}


def merge_limits(ours, theirs):
    """The best of both for each (threads, dtype): what no engine can pass."""
    best = {}
    for found in [*ours, *theirs]:
        key = found["threads"], found["dtype"]
        seen = best.setdefault(key, {"threads": key[0], "dtype": key[1]})
        for name in ("read_gbs", "gemm_gflops"):
            if name in found:
                seen[name] = max(found[name], seen.get(name, 0))
    return [best[key] for key in sorted(best)]


def measure(places, root, execute):
    """The limits, by winnow-bench-kernels and by PyTorch."""
    lines = execute(["taskset", "-c", "0,1", root / "build" / "bin" / "winnow-bench-kernels",
                     "--machine", 1, 2])
    ours = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    script = Path(__file__).with_name("run_limits.py")
    theirs = json.loads(execute(["taskset", "-c", "0,1", places.python("torch"), script]))
    return merge_limits(ours, theirs)


def limit(limits, threads, name, dtype="bfloat16"):
    """Bandwidth does not depend on the dtype: the best of all."""
    values = [found[name] for found in limits if found["threads"] == threads and name in found
              and (name == "read_gbs" or found["dtype"] == dtype)]
    return max(values) if values else None
