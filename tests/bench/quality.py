#!/usr/bin/env python3
"""quality.py - which answers each method still finds, against the full context.

    quality.py                                 # both models, the whole grid: most of an hour
    quality.py --counts 1024:2 --only needle-tiny    # a taste of it
    quality.py --write docs/quality.md         # and put the tables into the document

Every cell asks for one fact in a long document, through the public API of a service with one
worker, in the model's own precision, greedily; right is an answer that begins with the fact.  The
cases are the same for all methods.  What was answered is kept in --cache, so a run that was
stopped goes on where it was, and more --counts measure only what is new; --fresh asks again.
SmolLM2-135M-Instruct comes from PyPI (tests/models/make_smollm2.py).
"""
import argparse
import functools
import hashlib
import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "system"),
                str(Path(__file__).resolve().parent)]

import needles  # noqa: E402
from service import MODELS, ROOT, Service, api, full, sampling  # noqa: E402

# A method with its parameters: what the table says of it, and the request's fields.
Config = namedtuple("Config", "method budget detail compression")
FASTGEN_TOKENS = 256
CALIBRATION_CASES, CALIBRATION_RATE = 6, 0.05


class Subject:
    """A model, its cases, and the grid that suits it."""

    def __init__(self, name, folder, cases, counts, budgets, tsp, thresholds):
        self.name, self.folder, self.cases, self.counts = name, folder, cases, counts
        self.budgets, self.tsp, self.thresholds = budgets, tsp, thresholds


SUBJECTS = [
    Subject("needle-tiny", MODELS / "needle-tiny", needles.call_signs,
            counts={1024: 16, 4096: 10, 8192: 6},
            budgets=(0.05, 0.1, 0.2), thresholds=(0.95, 0.8, 0.6),
            tsp=((2, 0.2, (0.05, 0.1, 0.2)), (1, 0.2, (0.1,)), (3, 0.2, (0.1,)),
                 (2, 0.1, (0.1,)))),
    Subject("SmolLM2-135M-Instruct", ROOT / ".cache" / "smollm2", needles.numbers,
            counts={1000: 8, 2000: 6, 4000: 4, 6000: 2},
            budgets=(0.1, 0.2, 0.4), thresholds=(0.999, 0.99, 0.95, 0.8),
            tsp=((14, 0.2, (0.1, 0.2, 0.4)), (14, 0.4, (0.2, 0.4)), (10, 0.2, (0.2,)),
                 (20, 0.2, (0.2,)), (20, 0.4, (0.2, 0.4)))),
]


# ---- the grid

def compression(method, rate=None, **own):
    """A request's compression; `own` are the fields of the method's own message."""
    message = api.Compression(method=api.Method.Value(f"METHOD_{method}"))
    if rate is not None:
        message.retain_rate = rate
    for name, value in own.items():
        field = getattr(getattr(message, method.lower()), name)
        if isinstance(value, list):
            field.extend(value)
        else:
            setattr(getattr(message, method.lower()), name, value)
    return message


def percent(share):
    return f"{100 * share:.0f} %"


def grid(subject, head_scores):
    """Every configuration, the most telling first."""
    yield Config("FULL", "", "", full())
    for layer, tsp_rate, rates in subject.tsp:
        for rate in rates:
            yield Config("FASTKV", percent(rate), f"TSP layer {layer}, {percent(tsp_rate)}",
                         compression("FASTKV", rate, tsp_layer=layer, tsp_rate=tsp_rate))
    for method in ("SNAPKV", "STREAMINGLLM", "GEMFILTER", "ADAKV", "PYRAMIDKV", "H2O"):
        for rate in subject.budgets:
            yield Config(method, percent(rate), "", compression(method, rate))
    for rate in subject.budgets:
        yield Config("HEADKV", percent(rate), "measured table",
                     compression("HEADKV", rate, head_scores=head_scores))
    yield Config("PYRAMIDINFER", "", "", compression("PYRAMIDINFER"))
    for threshold in subject.thresholds:
        yield Config("FASTGEN", "", f"threshold {threshold:g}",
                     compression("FASTGEN", fg_threshold=threshold))


def head_importance(service, subject):
    """HEADKV's table: how much of the needle each query head would keep of its own accord, over
    cases that are not asked about later."""
    model = service.model()
    scores = [[0.0] * model.query_heads for _ in range(model.layers)]
    snapkv = compression("SNAPKV", CALIBRATION_RATE)
    snapkv.granularity = api.GRANULARITY_Q
    for case in subject.cases(service, min(subject.counts), CALIBRATION_CASES, held_out=True):
        answer = service.generate(tokens=api.TokenIds(ids=case.ids), compression=snapkv,
                                  sampling=sampling(max_tokens=1),
                                  trace=api.Trace(selected_tokens=True))
        for layer in answer.trace.layers:
            for head in layer.heads:
                kept = len(set(head.kept) & set(case.needle))
                scores[layer.layer][head.head] += kept / len(case.needle)
    return [value for row in scores for value in row]


# ---- asking, and remembering

def cpu_seconds(pid):
    """Of all threads: the first number of schedstat is nanoseconds."""
    return sum(int(path.read_text().split()[0])
               for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def stream(service, request, pid, timeout):
    """(Done, the worker's CPU seconds up to the first token, and up to the end)."""
    begin, first, done = cpu_seconds(pid), None, None
    for reply in service.inference.Generate(request, timeout=timeout):
        if reply.WhichOneof("event") == "tokens" and first is None:
            first = cpu_seconds(pid) - begin
        if reply.WhichOneof("event") == "done":
            done = reply.done
    return done, first, cpu_seconds(pid) - begin


class Answers:
    """Results by request, in a file of JSON lines that outlives the run."""

    def __init__(self, service, subject, folder, fresh):
        self.service = service
        self.path = Path(folder) / f"{subject.name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
        self.known = {}
        if self.path.exists():
            for entry in map(json.loads, self.path.read_text().splitlines()):
                self.known[entry["key"]] = entry

    def ask(self, key, measure):
        """measure()'s result under a key, from the file if it is there."""
        key = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
        if key not in self.known:
            self.known[key] = {"key": key, **measure()}
            with open(self.path, "a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]

    def find(self, case, config):
        """One question, one answer."""
        request = api.GenerateRequest(tokens=api.TokenIds(ids=case.ids),
                                      sampling=sampling(max_tokens=case.max_tokens),
                                      compression=config.compression)

        def measure():
            answer = self.service.generate(request, timeout=3600)
            usage = answer.usage
            return {"case": case.name, "method": config.method, "budget": config.budget,
                    "detail": config.detail, "text": answer.text,
                    "right": answer.text.strip().startswith(case.answer),
                    "kv": usage.kv_bytes / usage.kv_bytes_full,
                    "propagated": usage.propagated_tokens / usage.prompt_tokens}
        return self.ask(request.SerializeToString(deterministic=True), measure)

    def long_answer(self, case, config):
        """What a generation of 256 tokens takes; the time of the scores is in the service's log."""
        name = f"{case.name}-{config.method}-{config.detail}-cpu".replace(" ", "-")
        request = api.GenerateRequest(request_id=name, tokens=api.TokenIds(ids=case.ids),
                                      sampling=sampling(max_tokens=FASTGEN_TOKENS),
                                      compression=config.compression)

        def measure():
            done, first, total = stream(self.service, request, self.service.workers()[0], 3600)
            return {"case": case.name, "method": config.method, "detail": config.detail,
                    "scoring": float(self.service.log_field(name, "scoring_ms")) /
                    done.timing.prefill_ms, "prefill_s": first, "decode_s": total - first}
        return self.ask(request.SerializeToString(deterministic=True), measure)


# ---- tables

def accuracy_table(subject, configs, results):
    """results[config index][length] is a list of entries."""
    lines = [["method", "budget", "parameters", *(f"{n:,}" for n in subject.counts), "all",
              "KV bytes", "into the last layer"]]
    for config, by_length in zip(configs, results):
        entries = [entry for length in subject.counts for entry in by_length[length]]
        lines.append([config.method, config.budget, config.detail,
                      *(score(by_length[length]) for length in subject.counts), score(entries),
                      share(entries, "kv"), share(entries, "propagated")])
    return markdown(lines)


def score(entries):
    return f"{sum(entry['right'] for entry in entries)}/{len(entries)}"


def share(entries, name):
    return percent(sum(entry[name] for entry in entries) / len(entries))


def markdown(lines):
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def window_table(subject, configs, cases, results):
    """STREAMINGLLM by whether the needle lies among the rows that it keeps."""
    lines = [["budget", "needle inside the window", "outside"]]
    for config, by_length in zip(configs, results):
        if config.method != "STREAMINGLLM":
            continue
        inside, outside = [], []
        for length in subject.counts:
            for case, entry in zip(cases[length], by_length[length]):
                kept = int(len(case.ids) * config.compression.retain_rate) - 4  # its sinks
                near = case.needle.start >= len(case.ids) - kept
                (inside if near else outside).append(entry)
        lines.append([config.budget, score(inside), score(outside)])
    return markdown(lines)


def match_table(configs, results):
    """From which budget on a method answers as often as FULL, give or take one case."""
    def right(by_length):
        return sum(entry["right"] for entries in by_length.values() for entry in entries)

    wanted, found = right(results[0]), {}
    for config, by_length in list(zip(configs, results))[1:]:
        by_budget = config.method in ("PYRAMIDINFER", "FASTGEN")
        name = config.method if by_budget or config.method == "HEADKV" else \
            " ".join(filter(None, (config.method, config.detail)))
        found.setdefault(name, [])
        if right(by_length) >= wanted - 1:
            found[name].append(config.detail or "as it is" if by_budget else config.budget)
    return markdown([["method", "matches FULL at"],
                     *([name, ", ".join(budgets) or "none of these"]
                       for name, budgets in found.items())])


def fastgen_table(answers, subject, configs, cases, results):
    """What FASTGEN costs and saves: decode time and profiling beside FULL's."""
    case = cases[max(subject.counts)][0]
    lines = [["parameters", "right", "KV bytes", "prefill, CPU s", "profiling, of the prefill",
              "decode, CPU ms a token", f"profiling, of all for {FASTGEN_TOKENS} tokens"]]
    for config, by_length in zip(configs, results):
        if config.method not in ("FULL", "FASTGEN"):
            continue
        long = answers.long_answer(case, config)
        entries = [entry for part in by_length.values() for entry in part]
        profiling = long["scoring"] * long["prefill_s"]
        lines.append([" ".join(filter(None, (config.method, config.detail))), score(entries),
                      share(entries, "kv"), f"{long['prefill_s']:.2f}", percent(long["scoring"]),
                      f"{1000 * long['decode_s'] / (FASTGEN_TOKENS - 1):.2f}",
                      percent(profiling / (long["prefill_s"] + long["decode_s"]))])
    return markdown(lines)


def tables(subject, options):
    """{name: markdown} of one model."""
    # quietly waiting threads: a service that shares its cores would burn them otherwise
    with Service(subject.folder, workers=1, options=["--enable-trace"],
                 env={"OMP_WAIT_POLICY": "passive"}) as service:
        answers = Answers(service, subject, options.cache, options.fresh)
        scores = answers.ask(("importance", options.digits, CALIBRATION_CASES, CALIBRATION_RATE),
                             lambda: {"scores": head_importance(service, subject)})["scores"]
        configs = list(grid(subject, scores))
        cases = {n: list(subject.cases(service, n, count)) for n, count in subject.counts.items()}
        results = [{n: [] for n in cases} for _ in configs]
        # every configuration is asked about a case before the next case, so that a run that is
        # stopped has spent its time evenly
        for i in range(max(subject.counts.values())):
            for config, by_length in zip(configs, results):
                for n, some in cases.items():
                    by_length[n] += [answers.find(case, config) for case in some[i:i + 1]]
            print(f"{subject.name}: {i + 1} documents at each length", file=sys.stderr, flush=True)
        return {f"{subject.name} accuracy": accuracy_table(subject, configs, results),
                f"{subject.name} match": match_table(configs, results),
                f"{subject.name} window": window_table(subject, configs, cases, results),
                f"{subject.name} fastgen":
                    fastgen_table(answers, subject, configs, cases, results)}


def write(path, made):
    """Puts each table between its two marks in the document."""
    text = Path(path).read_text()
    for name, table in made.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"quality: {path} has no place for the table \"{name}\"")
        text = head + begin + table + "\n" + end + tail
    Path(path).write_text(text)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--counts", metavar="TOKENS:N,...",
                        help="documents at each length, instead of the model's own")
    parser.add_argument("--only", help="one of: " + ", ".join(s.name for s in SUBJECTS))
    parser.add_argument("--digits", type=int, help="of the numbers to find, instead of 4")
    parser.add_argument("--cache", default=ROOT / ".cache" / "quality",
                        help="where answers are kept")
    parser.add_argument("--fresh", action="store_true", help="forget them first")
    parser.add_argument("--write", metavar="FILE", help="put the tables into this document")
    options = parser.parse_args(argv)
    options.subjects = [s for s in SUBJECTS if options.only in (None, s.name)]
    if not options.subjects:
        parser.error(f"--only: no model \"{options.only}\"")
    return options


def main(argv=None):
    options = parse(argv)
    for subject in options.subjects:
        if options.digits and subject.cases == needles.numbers:
            subject.cases = functools.partial(needles.numbers, digits=options.digits)
        if options.counts:
            subject.counts = {int(n): int(count) for n, _, count in
                              (part.partition(":") for part in options.counts.split(","))}
        if subject.folder == ROOT / ".cache" / "smollm2":
            make = ROOT / "tests" / "models" / "make_smollm2.py"
            subprocess.run([sys.executable, make], check=True)
        made = tables(subject, options)
        for name, table in made.items():
            print(f"\n{name}\n\n{table}")
        if options.write:
            write(options.write, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
