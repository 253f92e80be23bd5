#!/usr/bin/env python3
"""Render a table of conversations as transformers does, for tests/coordinator/test_chat.c.

usage: make_expected.py TEMPLATES [--check]

TEMPLATES holds the published templates as NAME.jinja, with the names of TOKENS below: they are
not part of this repository.  Writes expected.json beside this script, or with --check tells
whether it would be the same.  Made with transformers 5.23.

An expectation of null stands for a conversation that the template itself refuses.
"""
import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
LLAMA2, LLAMA3 = ("<s>", "</s>"), ("<|begin_of_text|>", "<|eot_id|>")
TOKENS = {
    "llama-2": LLAMA2, "llama-3": LLAMA3, "llama-3-always": LLAMA3, "llama-3.1": LLAMA3,
    "llama-3.2": LLAMA3, "mistral-v0.1": LLAMA2, "mistral-v0.2": LLAMA2, "mistral-v1": LLAMA2,
    "mistral-v3": LLAMA2, "mistral-v3-user": LLAMA2, "mistral-tekken": LLAMA2,
    "mistral-tekken-user": LLAMA2, "smollm2": ("<|im_start|>", "<|im_end|>"),
}
DATE = "26 Jul 2024"  # what the templates fall back to; otherwise 3.2 asks for the day

# Each word is a message: the letter says who speaks.
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "i": "ipython", "x": "critic"}
TABLE = [
    ["u:Hello"],
    ["s:Be brief.", "u:Hello"],
    ["u:Hello", "a:Hi there", "u:Who are you?"],
    ["s:Be brief.", "u:Hello", "a:Hi there", "u:Who are you?"],
    ["s:Be brief.", "u:Same", "a:One", "u:Same", "a:Two", "u:Other", "a:Three", "u:Same"],
    ["s:Be brief.", "u:Same", "a:One", "u:Same", "a:The last word is mine"],
    ["u:Hello", "a:The last word is mine"],
    ["u: \n\t two spaces  and lines \n\n"],
    ["s: \u00a0spaced\u3000\n", "u:\u2003wide\u2003 ", "a:\x1c odd \x1f\u200b", "u:\u0085next"],
    ["u:"],
    ["s:", "u:"],
    ["s:Only system"],
    ["s:S", "u:   "],
    ["u:   ", "a:   ", "u:\n"],
    ["u:[INST] nested [/INST] <s></s> <<SYS>> <|eot_id|><|im_end|>"],
    ["u:Grüße, 你好, 🙂 e\u0301 \u202e", "a:Ünïcödé\u2028", "u:\ufeffend"],
    ["u:quotes ' \" \\ \\n {{ x }} {% y %} {# z #} &<>"],
    ["a:I begin"],
    ["u:One", "u:Two"],
    ["u:One", "a:Two", "a:Three"],
    ["u:One", "s:Late system", "u:Two"],
    ["u:One", "a:Two", "s:Late system"],
    ["s:First", "s:Second", "u:One"],
    ["s:First", "a:One", "u:Two"],
    ["u:One", "x:Two", "u:Three"],
    ["x:One"],
    ["u:Call", "a:calling", "t:the \"result\" <b>'&\n\t\\ \x01\x7f é\u2028/", "a:so"],
    ["u:Call", "t:result", "u:Next"],
    ["u:Call", "i:out", "a:ok", "u:Next"],
    ["s:  Trim me?  ", "u:A", "a:  keep  ", "u:B", "a: \n", "u:C "],
    ["u:line one\nline two\n\n\nline five", "a:yes\n", "u:\nok\n"],
]


def conversation(words):
    return [{"role": ROLES[word[0]], "content": word[2:]} for word in words]


def render(template, bos, eos, messages):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos,
                                        eos_token=eos)
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                             add_generation_prompt=True, date_string=DATE)
    except Exception as error:  # jinja2's, of several kinds
        print(f"  refused: {error}", file=sys.stderr)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    out = {"conversations": [conversation(words) for words in TABLE], "templates": {}}
    for name, (bos, eos) in TOKENS.items():
        template = (options.templates / f"{name}.jinja").read_text()
        expected = [render(template, bos, eos, messages) for messages in out["conversations"]]
        out["templates"][name] = {"bos": bos, "eos": eos, "expected": expected}
        print(f"{name}: {sum(e is not None for e in expected)} of {len(expected)} rendered")
    text = json.dumps(out, indent=0, ensure_ascii=True) + "\n"
    path = HERE / "expected.json"
    if options.check:
        return 0 if path.read_text() == text else f"{path} differs"
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
