"""suites.py - the examples of each evaluation: what is asked, and how an answer is scored.

An example is asked about as text, or as ids where its length matters to the token.  Data come from a
folder laid out as the published ones: longbench/TASK.jsonl with longbench_prompts.json beside it,
ruler/FOLDER/TASK.jsonl, needle_haystack/PaulGrahamEssays/*.txt; and test_public.jsonl, which the
retrieval model brings along.
"""
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import metrics

NEEDLE = ("\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a "
          "sunny day.\n")
NEEDLE_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."
NEEDLE_QUESTION = "The best thing to do in San Francisco is: "
CALLSIGN_TOKENS = 5  # three words, a full stop, the end
NEEDLE_BUFFER = 200  # tokens left for the question, as published


@dataclass
class Example:
    suite: str
    task: str
    name: str
    text: str
    score: Callable[[str], float]
    max_tokens: int
    chat: bool = False  # the text is a user's message, where the model has a template
    stop: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)  # of the cell that it counts in


def _rows(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def shorten(client, text, limit):
    """The first and the last half of a text that has more than `limit` tokens."""
    ids = client.tokenize(text, special=False)
    if len(ids) <= limit:
        return text
    half = limit // 2
    return client.detokenize(ids[:half]) + client.detokenize(ids[-half:])


def longbench(client, data, options):
    """16 tasks of LongBench: those whose files are in the folder."""
    rules = json.loads((data / "longbench_prompts.json").read_text())
    for task in options.tasks or rules["tasks"]:
        path = data / "longbench" / f"{task}.jsonl"
        if not path.exists():
            continue
        budget = rules["max_new_tokens"][task]
        for i, row in enumerate(_rows(path)[:options.limit]):
            text = rules["prompt"][task].format(context=row["context"], input=row["input"])
            yield Example(
                "longbench", task, f"{task}-{row.get('_id', i)}",
                shorten(client, text, options.max_length - budget - options.template_tokens),
                lambda answer, task=task, row=row: metrics.longbench(
                    task, answer, row["answers"], row.get("all_classes")),
                budget, chat=task not in rules["no_chat_template"])


def ruler(client, data, options):
    """RULER's tasks.  The answer's prefix ends the prompt: it is the assistant's first words where
    the model completes text; a chat message has no place for them and goes without.  The published
    rows have it at the end of their input."""
    for path in sorted((data / "ruler").rglob("*.jsonl")):
        rows = _rows(path)
        task = rows[0].get("task", path.stem)
        if options.tasks and task not in options.tasks:
            continue
        for row in rows[:options.limit]:
            if row["length"] + row.get("max_new_tokens", 128) > options.max_length:
                continue
            yield Example("ruler", task, f"{path.parent.name}-{task}-{row['index']}",
                          row["input"] + ("" if options.chat else row.get("answer_prefix", "")),
                          lambda answer, row=row: metrics.contains_all(answer, row["outputs"]),
                          row.get("max_new_tokens", 128), chat=True,
                          labels={"length": path.parent.name})


def _insert(client, haystack, needle, depth):
    """The needle after the last sentence that ends before `depth` percent of the haystack."""
    if depth == 100:
        return haystack + needle
    at = len(haystack) * depth // 100
    stops = {client.tokenize(text, special=False)[-1] for text in (".", "end.")}
    while at > 0 and haystack[at - 1] not in stops:
        at -= 1
    return haystack[:at] + needle + haystack[at:]


def needle(client, data, options):
    """FastKV's needle in a haystack: lengths x depths."""
    essays = sorted((data / "needle_haystack" / "PaulGrahamEssays").glob("*.txt"))
    ids = client.tokenize("".join(p.read_text(encoding="utf-8") for p in essays), special=False)
    planted = client.tokenize(NEEDLE, special=False)
    for length in options.lengths:
        room = length - NEEDLE_BUFFER - len(planted)
        haystack = (ids * (room // len(ids) + 1))[:room]
        for depth in options.depths:
            book = client.detokenize(_insert(client, haystack, planted, depth))
            yield Example("needle", "needle", f"{length}-{depth}",
                          f"<|im_start|> This is a very long story book: <book> {book} </book>.\n "
                          f"Based on the content of the book, Question: {NEEDLE_QUESTION}\nAnswer:",
                          lambda answer: metrics.word_share(answer, NEEDLE_ANSWER),
                          30, chat=True, stop=["\n"],
                          labels={"length": length, "depth": depth})


def callsigns(client, data, options):
    """The retrieval model's own cases: one of many call signs in a text; all of it, or nothing.
    A limit is of each length, from all depths."""
    by_length = defaultdict(list)
    for row in _rows(data / "test_public.jsonl"):
        if row["prompt_tokens"] + CALLSIGN_TOKENS <= options.max_length:
            by_length[row["length"]].append(row)
    for rows in by_length.values():  # in the order of their depth
        step = -(-len(rows) // (options.limit or len(rows)))
        for row in rows[::step]:
            yield Example("callsigns", "callsigns", row["id"], row["prompt"],
                          lambda answer, row=row: float(answer.startswith(row["answer"])),
                          CALLSIGN_TOKENS, labels={"length": row["length"],
                                                   "depth": min(4, int(5 * row["depth"])) * 20})


SUITES = {"longbench": longbench, "ruler": ruler, "needle": needle, "callsigns": callsigns}


def folder(path):
    """A data folder, or the `evals` folder inside it."""
    path = Path(path)
    return path / "evals" if (path / "evals").is_dir() else path
