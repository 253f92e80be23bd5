"""The goals, each as a sentence with what was measured: a function of the stored results alone."""
import statistics
from dataclasses import dataclass

from . import machine
from .cells import COMPILED, PEERS, all_cells
from .shapes import Size

LLAMACPP = ("llama.cpp", "llama.cpp flash")


@dataclass
class Goal:
    what: str
    wanted: str
    value: float | None = None     # None: not measured
    least: float = 0.0
    at_most: bool = False          # value should be below `least`
    unit: str = "x"                # x: a ratio; %: a share; s: seconds

    @property
    def met(self):
        if self.value is None:
            return None
        return self.value <= self.least if self.at_most else self.value >= self.least

    def shown(self):
        if self.value is None:
            return "not measured"
        if self.unit == "%":
            return f"{100 * self.value:.0f} %"
        return f"{self.value:.2f} s" if self.unit == "s" else f"{self.value:.2f}x"


class Results:
    """Medians of the stored rounds by (load, engine)."""

    def __init__(self, data):
        self.data = data
        self.sizes = {name: Size(**fields) for name, fields in data.get("sizes", {}).items()}
        self.gemm = machine.limit(data["limits"], 2, "gemm_gflops")
        self.read = machine.limit(data["limits"], 2, "read_gbs")
        self.found = {}
        for entry in data["cells"].values():
            if entry["rounds"]:
                self.found[self.name_of(entry["cell"])] = entry

    @staticmethod
    def name_of(cell):
        engine = cell["engine"] if cell["engine"] != "winnow" else f"winnow {cell['method']}"
        if (cell["workers"], cell["threads"]) != (1, 2):
            engine += f" {cell['workers']}x{cell['threads']}"
        engine += "".join(f" {k}={v}" for k, v in sorted(cell["options"].items()))
        return cell["model"], cell["tokens"], cell["new"], cell["batch"], engine

    def values(self, load, engine, name):
        entry = self.found.get((*load, engine))
        rounds = entry["rounds"] if entry else []
        return [found[name] for found in rounds if found.get(name) is not None]

    def median(self, load, engine, name):
        values = self.values(load, engine, name)
        return statistics.median(values) if values else None

    def loads(self):
        """(model, tokens, new, batch) of what was measured, in the order of the cells."""
        order = [(c.model, c.tokens, c.new, c.batch) for c in all_cells()]
        found = {name[:4] for name in self.found}
        return [load for load in dict.fromkeys(order) if load in found]

    def engines(self, load):
        """winnow first."""
        names = [name[4] for name in self.found if name[:4] == load]
        return sorted(names, key=lambda name: (not name.startswith("winnow"), name))

    def best(self, load, name, peers=(*PEERS, COMPILED), most=True):
        values = [v for v in (self.median(load, p, name) for p in peers) if v is not None]
        return (max(values) if most else min(values)) if values else None

    def of_peak(self, load, engine):
        """The prefill's share of the GEMM peak, counted as a full context."""
        seconds, size = self.median(load, engine, "ttft_s"), self.sizes.get(load[0])
        if None in (seconds, size, self.gemm) or load[3] != 1:
            return None
        return size.prefill_flops(load[1]) / seconds / (1e9 * self.gemm)

    def of_bandwidth(self, load, engine):
        """The decode's share of the read bandwidth just after, W + batch * K_full bytes a step."""
        model, tokens, new, batch = load
        entry, size = self.found.get((*load, engine)), self.sizes.get(model)
        if not entry or not size or not self.read:
            return None
        needed = size.decode_bytes(batch, tokens + new // 2) / batch
        shares = [needed * found["decode_tps"] / (1e9 * found.get("read_gbs", self.read))
                  for found in entry["rounds"] if found.get("decode_tps")]
        return statistics.median(shares) if shares else None


def ratio(above, below):
    return above / below if above is not None and below else None


def prefill_goals(r):
    def against(load, least, what):
        best = r.best(load, "ttft_s", most=False)
        value = ratio(best, r.median(load, "winnow FULL", "ttft_s"))
        return Goal(f"prefill {what}", f"{least}x the best peer", value, least)

    yield Goal("prefill 2k, 1B", "88 % of the GEMM peak",
               r.of_peak(("1B", 2048, 32, 1), "winnow FULL"), 0.88, unit="%")
    yield against(("1B", 8192, 32, 1), 1.3, "8k, 1B")
    yield against(("1B", 32768, 256, 1), 1.7, "32k, 1B")
    yield Goal("prefill 32k, 1B", "75 % of the GEMM peak",
               r.of_peak(("1B", 32768, 256, 1), "winnow FULL"), 0.75, unit="%")
    yield against(("160M", 8192, 64, 1), 1.6, "8k, 160M")
    yield against(("160M", 32768, 256, 1), 2.0, "32k, 160M")


def decode_goals(r):
    for load in (("1B", 16, 64, 1), ("160M", 16, 128, 1)):
        yield Goal(f"decode, depth 0, {load[0]}", "92 % of the bandwidth",
                   r.of_bandwidth(load, "winnow FULL"), 0.92, unit="%")
        value = ratio(r.median(load, "winnow FULL", "decode_tps"),
                      r.best(load, "decode_tps", LLAMACPP))
        yield Goal(f"decode, depth 0, {load[0]}", "not behind llama.cpp", value, 1.0)
    for load in (("1B", 16, 64, 1), ("160M", 16, 128, 1)):
        eight = [f"{peer} weights=Q8_0" for peer in LLAMACPP]
        value = ratio(r.median(load, "winnow FULL weights=int8", "decode_tps"),
                      r.best(load, "decode_tps", eight))
        yield Goal(f"decode, depth 0, {load[0]}, weights in int8", "not behind llama.cpp's Q8_0",
                   value, 1.0)
    for load in (("160M", 8192, 64, 1), ("160M", 32768, 256, 1)):
        yield Goal(f"decode, depth {load[1] // 1024}k, 160M", "80 % of the bandwidth over W + K",
                   r.of_bandwidth(load, "winnow FULL"), 0.80, unit="%")
        value = ratio(r.median(load, "winnow FULL", "decode_tps"), r.best(load, "decode_tps"))
        yield Goal(f"decode, depth {load[1] // 1024}k, 160M", "2.3x the best peer", value, 2.3)
    for load in (("160M", 256, 64, 8), ("160M", 256, 64, 32), ("1B", 128, 32, 8),
                 ("1B", 128, 32, 32)):
        value = ratio(r.median(load, "winnow FULL", "decode_tps"), r.best(load, "decode_tps"))
        yield Goal(f"decode, batch {load[3]}, {load[0]}", "1.3x the best peer", value, 1.3)


def fastkv_goals(r):
    for load in (("160M", 32768, 256, 1), ("160M", 131072, 64, 1), ("1B", 32768, 256, 1)):
        work = r.data.get("work", {}).get(f"{load[0]} {load[1]}")
        gain = ratio(r.median(load, "winnow FULL", "ttft_s"),
                     r.median(load, "winnow FASTKV", "ttft_s"))
        allowed = work["FULL"] / work["FASTKV"] if work else None
        yield Goal(f"FASTKV prefill {load[1] // 1024}k, {load[0]}: gain over FULL",
                   f"95 % of the {allowed:.2f}x that FLOPs allow" if allowed else "95 %",
                   ratio(gain, allowed), 0.95, unit="%")
    for load in (("160M", 32768, 256, 1), ("160M", 32768, 64, 8), ("160M", 32768, 64, 32),
                 ("160M", 131072, 64, 1), ("1B", 32768, 256, 1)):
        yield fastkv_decode(r, load)
    full, fast = (r.median(("160M", 32768, 256, n), f"winnow {method} kv-memory=8G", "total_s")
                  for method, n in (("FULL", 19), ("FASTKV", 64)))
    yield Goal("requests of 32k in 8 GB of KV memory, 160M: FASTKV against FULL",
               "5.07x the requests a second (the paper)",
               ratio(64 / fast, 19 / full) if full and fast else None, 5.07)
    yield fastkv_end_to_end(r)
    yield from headkv_goals(r)


def fastkv_decode(r, load):
    model, tokens, _, batch = load
    size = r.sizes.get(model)
    kept = r.median(load, "winnow FASTKV", "kv_bytes")
    gain = ratio(r.median(load, "winnow FASTKV", "decode_tps"),
                 r.median(load, "winnow FULL", "decode_tps"))
    allowed = None
    if size and kept:
        allowed = size.decode_bytes(batch, tokens) / (size.weight_bytes + batch * kept)
    return Goal(f"FASTKV decode {tokens // 1024}k, batch {batch}, {model}: gain over FULL",
                f"92 % of the {allowed:.2f}x that bytes allow" if allowed else "92 %",
                ratio(gain, allowed), 0.92, unit="%")


def fastkv_end_to_end(r):
    load = ("160M", 32768, 256, 1)
    value = ratio(r.best(load, "total_s", most=False), r.median(load, "winnow FASTKV", "total_s"))
    return Goal("FASTKV 32k + 256 end to end, 160M", "3x the best peer", value, 3.0)


def headkv_goals(r):
    load = ("160M", 32768, 256, 1)
    for name, title, least in (("ttft_s", "TTFT", 2.0), ("total_s", "throughput", 1.4)):
        value = ratio(r.median(load, "winnow HEADKV", name), r.median(load, "winnow FASTKV", name))
        yield Goal(f"FASTKV against HEADKV, 32k + 256, 160M: {title}",
                   f"{least:.2f}x (the paper)", value, least)


def other_goals(r):
    for load, metric in ((("160M", 8192, 64, 1), "ttft_s"), (("160M", 8192, 64, 1), "decode_tps"),
                         (("1B", 2048, 32, 1), "ttft_s"), (("1B", 2048, 32, 1), "decode_tps")):
        one, two = (r.median(load, f"winnow FULL{w}", metric) for w in ("", " 2x1"))
        value = ratio(two, one) if metric == "ttft_s" else ratio(one, two)
        title = "prefill" if metric == "ttft_s" else "decode"
        yield Goal(f"two workers x 1 thread against one x 2, {load[0]} {load[1] // 1024}k: {title}",
                   "at most 1.08x the time", value, 1.08, at_most=True)
    yield from memory_goals(r)
    yield Goal("start to ready, 1B", "under 2 s",
               r.median(("1B", 16, 64, 1), "winnow FULL", "ready_s"), 2.0, at_most=True, unit="s")
    load = ("SmolLM2", 6000, 128, 1)
    for method, least in (("FULL", 1.5), ("FASTKV", 2.5)):
        value = ratio(r.best(load, "total_s", LLAMACPP, most=False),
                      r.median(load, f"winnow {method}", "total_s"))
        yield Goal(f"SmolLM2 6,000 + 128 end to end, {method}", f"{least}x llama.cpp", value, least)


def memory_goals(r):
    for load in (("160M", 32768, 256, 1), ("160M", 131072, 64, 1), ("1B", 32768, 256, 1)):
        for method in ("FULL", "FASTKV"):
            grown = r.median(load, f"winnow {method}", "grown_bytes")
            formula = r.median(load, f"winnow {method}", "formula_bytes")
            yield Goal(f"memory of a {load[1] // 1024}k prompt, {load[0]}, {method}",
                       "at most 1.05x the formula", ratio(grown, formula), 1.05, at_most=True)
        value = ratio(r.median(load, "winnow FULL", "peak_bytes"),
                      r.best(load, "peak_bytes", most=False))
        if value is not None:
            yield Goal(f"peak memory {load[1] // 1024}k, {load[0]}, FULL", "below every peer's",
                       value, 1.0, at_most=True)


def all_goals(data):
    r = Results(data)
    return [*prefill_goals(r), *decode_goals(r), *fastkv_goals(r), *other_goals(r)]
