"""needles.py - documents with one fact to find, for quality.py.

Two kinds.  `call_signs`: the test cases of the bundled retrieval model, whose answers are three
words among many of the same kind.  `numbers`: English text (the log in tests/data, from a place
that differs by case, around and around) with one sentence about a number, and a question whose
last words begin the answer, as the RULER benchmark does it.  A digit is a token to SmolLM2.
Depth is where the needle is: 0 at the start of the document, 1 at its end.
"""
import itertools
import json
import random
import re
from dataclasses import dataclass

from service import MODELS, ROOT

HELD_OUT = 20  # from this number on, cases of `numbers` are held out
THINGS = ("lantern anchor harbor barrel ladder candle compass kettle blanket hammer window basket "
          "needle mirror saddle bottle").split()
NEEDLE = "The special number for the {} is {}. "
QUESTION = ("\n\nQuestion: What is the special number for the {0}?\n"
            "Answer: The special number for the {0} is")


@dataclass
class Case:
    name: str
    length: int        # nominal
    depth: float
    text: str
    ids: list
    needle: range      # its tokens
    answer: str        # what the answer begins with, white space aside
    max_tokens: int


def depths():
    """0.5, 0.25, 0.75, 0.125, ...: the first n are spread evenly for n = 1, 3, 7, ..."""
    n = 1
    while True:
        yield from (i / (2 * n) for i in range(1, 2 * n, 2))
        n *= 2


def call_signs(service, length, count, held_out=False):
    """Cases of the retrieval model, spread over the depths; the held out ones are others."""
    with open(MODELS / "needle-tiny" / "test_public.jsonl") as lines:
        found = [case for case in map(json.loads, lines) if case["length"] == length]
    found = found[held_out::2]
    for case in (found[i * len(found) // count] for i in range(min(count, len(found)))):
        begin = case["needle_token_start"]
        needle = f"Call sign {case['key']}{case['answer']}."
        yield Case(name=case["id"], length=length, depth=case["depth"], text=case["prompt"],
                   ids=service.tokenize(case["prompt"]),
                   needle=range(begin, begin + len(service.tokenize(needle, special=False))),
                   answer=case["answer"].strip(), max_tokens=4)


def sentences(start):
    """The sentences of the log from its paragraph `start` on, and then from the beginning."""
    log = (ROOT / "tests" / "data" / "keepers_log.txt").read_text()
    paragraphs = [p for p in log.split("\n\n") if p.strip()]
    start %= len(paragraphs)
    for paragraph in paragraphs[start:] + paragraphs[:start]:
        parts = re.split(r"(?<=[.!?]) ", paragraph.strip())
        yield from (part + " " for part in parts[:-1])
        yield parts[-1] + "\n\n"


def take(service, start, budget):
    """As many sentences as `budget` tokens hold."""
    taken, used, again = [], 0, 0
    while True:
        for sentence in sentences(start + again):
            used += len(service.tokenize(sentence, special=False))
            if used > budget:
                return taken
            taken.append(sentence)
        again += 1


def number_case(service, length, index, depth, digits):
    chance = random.Random(f"{length} {index}")
    thing = THINGS[(index + length // 1000) % len(THINGS)]
    number = "".join(chance.choices("0123456789", k=digits))
    needle, question = NEEDLE.format(thing, number), QUESTION.format(thing)
    rest = len(service.tokenize(needle)) + len(service.tokenize(question))
    around = take(service, chance.randrange(1000), length - rest)
    at = round(depth * len(around))
    before = "".join(around[:at])
    text = (before + needle + "".join(around[at:])).rstrip() + question
    begin = len(service.tokenize(before))
    return Case(name=f"{length}-{index}", length=length, depth=depth, text=text,
                ids=service.tokenize(text),
                needle=range(begin, begin + len(service.tokenize(needle.strip(), special=False))),
                answer=number, max_tokens=digits + 2)


def numbers(service, length, count, held_out=False, digits=4):
    """Cases in English; those of a larger `count` begin with those of a smaller one.  The held out
    ones are others."""
    first = HELD_OUT if held_out else 0
    for index, depth in enumerate(itertools.islice(depths(), first + count)):
        if index >= first:
            yield number_case(service, length, index, depth, digits)
