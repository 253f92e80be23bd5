#!/usr/bin/env python3
"""int8.py - which answers are still found with weights, or keys and values, in int8.

    int8.py [--only needle-tiny]       # prints a Markdown table; docs/bench/int8.md has one

The models and documents are those of quality.py: right is an answer that begins with the fact.
"""
import argparse

from quality import SUBJECTS, compression
from service import Service, api, full, sampling

FORMS = {"as they are": [], "weights": ["--weights", "int8"], "K/V": ["--kv", "int8"],
         "both": ["--weights", "int8", "--kv", "int8"]}


def methods(subject):
    layer = subject.tsp[0][0]
    rate = subject.budgets[-1]
    return {"FULL": full(),
            f"FASTKV {100 * rate:.0f} %": compression("FASTKV", rate, tsp_layer=layer, tsp_rate=0.4)}


def right(service, subject, wanted):
    """Right answers, cases, and the answers themselves."""
    answers = []
    for length, count in subject.counts.items():
        for case in subject.cases(service, length, count):
            said = service.generate(tokens=api.TokenIds(ids=case.ids), compression=wanted,
                                    sampling=sampling(max_tokens=case.max_tokens)).text
            answers.append((said, said.strip().startswith(case.answer)))
    return sum(ok for _, ok in answers), len(answers), [said for said, _ in answers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=[s.name for s in SUBJECTS])
    options = parser.parse_args()
    print("| model | in int8 | method | right | answers as without |\n|---|---|---|---|---|")
    for subject in SUBJECTS:
        if options.only not in (None, subject.name):
            continue
        before = {}
        for form, given in FORMS.items():
            with Service(subject.folder, options=given) as service:
                for name, wanted in methods(subject).items():
                    n, of, said = right(service, subject, wanted)
                    same = sum(a == b for a, b in zip(said, before.setdefault(name, said)))
                    print(f"| {subject.name} | {form} | {name} | {n}/{of} | {same}/{of} |",
                          flush=True)


if __name__ == "__main__":
    main()
