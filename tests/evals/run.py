#!/usr/bin/env python3
"""Evaluate a model behind winnow: LongBench, RULER, a needle in a haystack, or call signs, by method.

usage: run.py SUITE --model DIR --data DIR [--method SPEC...]      starts a service of its own
       run.py SUITE --server HOST:PORT --data DIR [...]            asks one that runs

SUITE is longbench, ruler, needle or callsigns.  A SPEC is a method of the API with parameters:
    FULL   FASTKV   FASTKV:retain_rate=0.2,tsp_rate=0.4,tsp_layer=20,window=32   SNAPKV:capacity=512
Answers are kept in --out, a line each, so a run that was stopped goes on where it was.  At the end stand
SUITE.md, SUITE.json and SUITE.svg in the same folder.
"""
import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "system")]

import report  # noqa: E402
import suites  # noqa: E402
from service import Client, Service, api  # noqa: E402


def compression(spec):
    """The message of a SPEC; a parameter is a field of Compression or of the method's own part."""
    name, _, parameters = spec.partition(":")
    message = api.Compression(method=api.Method.Value(f"METHOD_{name}"))
    for parameter in filter(None, parameters.split(",")):
        key, _, text = parameter.partition("=")
        if key in api.Compression.DESCRIPTOR.fields_by_name:
            target = message
        else:
            target = getattr(message, name.lower())
        value = json.loads(text) if text[:1] in "-0123456789tf" else text
        if isinstance(value, str):  # the name of an enum's value
            value = target.DESCRIPTOR.fields_by_name[key].enum_type.values_by_name[value].number
        setattr(target, key, value)
    return message


class Answers:
    """What was answered, by (method, example), in a file of JSON lines."""

    def __init__(self, path):
        self.path = path
        self.known = {}
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["method"], entry["name"]] = entry

    def add(self, entry):
        self.known[entry["method"], entry["name"]] = entry
        with open(self.path, "a") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def ask(client, example, spec, chat):
    """One answer with its score and what it cost."""
    if chat and example.chat:
        prompt = {"chat": api.Chat(messages=[api.ChatMessage(role="user", content=example.text)])}
    else:
        prompt = {"text": example.text}
    answer = client.generate(api.GenerateRequest(
        **prompt, compression=compression(spec),
        sampling=api.Sampling(max_tokens=example.max_tokens, temperature=0, stop=example.stop)))
    return {"method": spec, "suite": example.suite, "task": example.task, "name": example.name,
            **example.labels, "score": example.score(answer.text), "answer": answer.text,
            "prompt_tokens": answer.usage.prompt_tokens,
            "kept": answer.usage.kv_bytes / max(1, answer.usage.kv_bytes_full),
            "ttft_ms": answer.timing.ttft_ms}


def evaluate(client, examples, options, answers):
    """Asks what is not known yet, method by method for each example; shows how far it is."""
    todo = [(e, m) for e in examples for m in options.method if (m, e.name) not in answers.known]
    begin = time.monotonic()
    for done, (example, spec) in enumerate(todo, 1):
        answers.add(ask(client, example, spec, options.chat))
        left = (time.monotonic() - begin) / done * (len(todo) - done)
        print(f"\r{done}/{len(todo)} {spec} {example.name}, {left / 60:.1f} min left\x1b[K",
              end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def numbers(text):
    return [int(n) for n in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage=__doc__)
    parser.add_argument("suite", choices=suites.SUITES)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", type=Path)
    where.add_argument("--server")
    parser.add_argument("--data", type=suites.folder, required=True)
    parser.add_argument("--out", type=Path, default=Path("evals"))
    parser.add_argument("--method", nargs="+", default=["FULL", "FASTKV"])
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--limit", type=int, help="examples of each task")
    parser.add_argument("--max-length", type=int, help="of prompt and answer; the model's context")
    parser.add_argument("--lengths", type=numbers, default=list(range(16000, 128001, 16000)))
    parser.add_argument("--depths", type=numbers, default=[0, 11, 22, 33, 44, 56, 67, 78, 89, 100])
    parser.add_argument("--chat", action="store_true", help="the model has a chat template")
    parser.add_argument("--template-tokens", type=int, default=64, help="room for the template")
    parser.add_argument("--workers", type=int, default=1, help="of the service started for --model")
    return parser.parse_args()


def main():
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    answers = Answers(options.out / f"{options.suite}.jsonl")
    with contextlib.ExitStack() as stack:
        if options.model:
            client = stack.enter_context(Service(options.model, workers=options.workers))
        else:
            client = Client(options.server)
            stack.callback(client.close)
        context = client.model().max_context
        options.max_length = min(options.max_length or context, context)
        examples = list(suites.SUITES[options.suite](client, options.data, options))
        if not examples:
            sys.exit(f"run.py: no data of {options.suite} in {options.data}")
        evaluate(client, examples, options, answers)
    names = {e.name for e in examples}
    entries = [e for e in answers.known.values() if e["name"] in names and e["method"]
                                               in options.method]
    report.write(options.out / options.suite, options.suite, entries, options.method)
    print((options.out / f"{options.suite}.md").read_text())


if __name__ == "__main__":
    main()
