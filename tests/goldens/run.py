#!/usr/bin/env python3
"""Compare a running winnow with golden cases, through the public gRPC API.

usage: run.py DIR [--tp 1,2,4] [--method NAME ...] [--dtype float32|bfloat16|float16]
              [--emulated-gpu [WORDS]]
              [--longest N] [--steps N] [--match REGEX]

DIR holds folders <model>/model and <model>/cases in the format of tests/goldens/README.md.  For
each model and each tensor-parallel degree the service is started once and asked every case: 25
greedy tokens with the trace.  A line is printed for every case that fails, and for every case that
the service refuses with UNIMPLEMENTED; a refusal is neither a pass nor a failure.  The last line
is "N passed, N failed", and the exit status says the same.

float32: kept positions, propagated positions and tokens must be the same, logits within 2e-3.

bfloat16: the numbers differ, so the comparison is statistical.  Every product and every stored
activation is rounded to 8 significant bits, an error of at most 2^-9 = 0.2 % of it; the residual
stream collects about ten such independent errors a layer, so after L layers logits should differ
by some 0.2 % * sqrt(10 L) of their spread: 2 % for 8 layers.  BF16_LOGITS allows 4 times that (2 %
is usual, 5 % the most that was measured).  Scores are off by as much, so rankings change among
tokens that lie that close at a boundary: BF16_KEPT and BF16_PROPAGATED are the shares of positions
that must agree, over all heads of a layer (BF16_ALWAYS of a head may differ however few there are).
How many are kept must be as in float32, where scores do not decide that.  Heads of ADAKV divide
places by score and each rounds its number, so the mean lies within half a row of the exact share.
A head of FASTGEN takes the first policy that recovers enough: another one than the golden only if
what it recovers is off the threshold by less than BF16_LOGITS of the mass that may be missing.
Logits are compared where they come from the same tokens: the first
ones if the propagated tokens agree, those of each later step if also everything kept and all
tokens before agree.

float16 (on GPUs) rounds to 11 significant bits, an eighth of that error: F16_LOGITS is an eighth of
BF16_LOGITS, and at least F16_KEPT and F16_PROPAGATED agree.
"""
import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "system"))

from service import BUILD, Service, api, grpc  # noqa: E402

ATOL = 2e-3
BF16_LOGITS = 0.08
BF16_KEPT = 0.8
BF16_PROPAGATED = 0.95
BF16_ALWAYS = 2
F16_LOGITS = BF16_LOGITS / 8
F16_KEPT = 0.95
F16_PROPAGATED = 0.98

SCORED = ("window", "kernel", "pooling", "granularity", "group_reduce", "reduce_stage")
# What belongs to each method beside the budget: fields of Compression, then of its own message.
FIELDS = {
    "full": (False, (), None, ()),
    "fastkv": (True, SCORED, "fastkv", ("tsp_layer",)),
    "gemfilter": (True, (), "gemfilter", ("filter_layer", "gem_kernel", "gem_keep_last")),
    "snapkv": (True, SCORED, None, ()),
    "adakv": (True, SCORED, "adakv", ("floor_alpha",)),
    "headkv": (True, SCORED, "headkv", ("headkv_beta", "headkv_temp")),
    "pyramidkv": (True, SCORED, "pyramidkv", ("pyramid_beta",)),
    "streamingllm": (True, ("granularity",), "streamingllm", ("sinks", "rolling")),
    "h2o": (True, SCORED, "h2o", ("h2o_causal", "h2o_dynamic")),
    "pyramidinfer": (False, (), "pyramidinfer",
                     ("pi_recent_ratio", "pi_decay_ratio", "pi_min_context", "pi_sinks",
                      "pi_distance_weight")),
    "fastgen": (False, ("granularity", "group_reduce", "reduce_stage"), "fastgen",
                ("fg_threshold", "fg_local_ratio", "fg_freq_ratio", "fg_global_tokens")),
}
ENUMS = {
    "pooling": {"max": api.POOLING_MAX, "avg": api.POOLING_AVG},
    "granularity": {"kv": api.GRANULARITY_KV, "q": api.GRANULARITY_Q},
    "group_reduce": {"sum": api.GROUP_SUM, "mean": api.GROUP_MEAN, "max": api.GROUP_MAX},
    "reduce_stage": {"pre": api.REDUCE_PRE, "post": api.REDUCE_POST},
    "pos_mode": {"original": api.POSITION_ORIGINAL, "cache": api.POSITION_CACHE},
}


def compression(params):
    """The Compression message that states every parameter of the case's method."""
    method = params["method"]
    budget, common, own_name, own_fields = FIELDS[method]
    out = api.Compression(method=api.Method.Value("METHOD_" + method.upper()))
    constant = params["mode"] == "constant"
    if budget and constant:
        out.capacity = params["capacity"]
    elif budget:
        out.retain_rate = params["retain_rate"]
    for name in common:
        setattr(out, name, ENUMS[name][params[name]] if name in ENUMS else params[name])
    if own_name is None:
        return out
    own = getattr(out, own_name)
    own.SetInParent()
    for name in own_fields:
        setattr(own, name, params[name])
    if method == "fastkv":
        name = "tsp_len" if constant else "tsp_rate"
        setattr(own, name, params[name])
    elif method == "headkv" and params["head_scores"] is not None:
        own.head_scores.extend(score for row in params["head_scores"] for score in row)
    elif method == "streamingllm":
        own.pos_mode = ENUMS["pos_mode"][params["pos_mode"]]
    elif method == "fastgen":
        for name in ("fg_special_ids", "fg_punct_ids"):
            getattr(own, name).SetInParent()  # an empty list is a choice, too
            getattr(own, name).ids.extend(params[name])
    return out


def shorten(case, golden, steps):
    """Only so many tokens are asked for, unless rows are evicted at every one of them."""
    if any("kept_after_decode" in layer for layer in case["layers"]):
        return
    case["generated_ids"] = case["generated_ids"][:steps]
    golden["logits"] = golden["logits"][:steps + 1]


def ask(service, case):
    steps = len(case["generated_ids"])
    return service.generate(
        tokens=api.TokenIds(ids=case["prompt_ids"]),
        sampling=api.Sampling(max_tokens=steps + 1, temperature=0, ignore_eos=True),
        compression=compression(case["params"]),
        trace=api.Trace(selected_tokens=True, prompt_logits=True, step_logits=True))


def propagated(case):
    choice = case["tsp"] or case["gemfilter"]
    dropped = choice and len(choice["indices"]) < case["n_prompt"]
    return choice["indices"] if dropped else []


def differences(name, got, wanted):
    """Nothing, or one sentence about the first difference of two lists."""
    got, wanted = list(got), list(wanted)
    if got == wanted:
        return []
    at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b),
              min(len(got), len(wanted)))
    return [f"{name}: {len(got)} entries for {len(wanted)}, first difference at entry {at}: "
            f"{got[at:at + 4]} for {wanted[at:at + 4]}"]


def mean_kept(layers):
    """Rows that a cache head keeps, in the mean over layers and heads."""
    kept = [len(head) for heads in layers for head in heads]
    return sum(kept) / len(kept)


def golden_kept(case):
    return mean_kept(layer["kept"] for layer in case["layers"])


def adakv_share(case):
    """What a cache head of ADAKV keeps in the mean before each head's number is rounded."""
    params, n = case["params"], case["n_prompt"]
    rows = params["capacity"] if params["mode"] == "constant" else int(n * params["retain_rate"])
    if rows >= n:
        return n
    chosen = rows - params["window"]
    return (chosen * (1 - params["floor_alpha"]) + int(chosen * params["floor_alpha"])
            + params["window"])


def check_rounded_policies(case, answer, most):
    """A head of FASTGEN takes the first policy that recovers enough: another one than the golden
    only where the earlier of the two recovers just about that much."""
    names = ["+".join(names) for names in case["fastgen"]["policies"]]
    threshold = case["params"]["fg_threshold"]
    found = []
    for layer, recovered, golden in zip(answer.trace.layers, case["fastgen"]["recovery"],
                                        case["fastgen"]["policy"]):
        for head, shares, wanted in zip(sorted(layer.heads, key=lambda head: head.head),
                                        recovered, golden):
            got = names.index(head.policy)
            near = abs(shares[min(got, wanted)] - threshold) if got != wanted else 0
            if near > most * (1 - threshold):
                found.append(f"layer {layer.layer} head {head.head}: {head.policy} for "
                             f"{names[wanted]}, {near:.3g} from the threshold")
    return found


def check_rounded_kept(case, answer, most):
    """How many rows were kept: what scores do not decide is as in float32."""
    said = answer.usage.kv_tokens_kept
    traced = mean_kept([head.kept for head in layer.heads] for layer in answer.trace.layers)
    slack = 1e-6 * case["n_prompt"]
    found = []
    if abs(said - traced) > slack:
        found.append(f"kv_tokens_kept: {said} where the trace has {traced}")
    if case["method"] == "fastgen":
        return found + check_rounded_policies(case, answer, most)
    wanted, off = ((adakv_share(case), 0.5) if case["method"] == "adakv"
                   else (golden_kept(case), 0))
    if abs(said - wanted) > off + slack:
        found.append(f"kv_tokens_kept: {said} for {wanted} +- {off}")
    return found


def check_counts(case, answer):
    """What the usage says has to follow from the trace."""
    usage = answer.usage
    found = differences("prompt_tokens", [usage.prompt_tokens], [case["n_prompt"]])
    found += differences("completion_tokens", [usage.completion_tokens], [len(answer.ids)])
    found += differences("tokens_in", [layer.tokens_in for layer in answer.trace.layers],
                         [layer["n_in"] for layer in case["layers"]])
    found += differences("propagated_tokens", [usage.propagated_tokens],
                         [case["layers"][-1]["n_in"]])
    return found


def logits(answer):
    rows = [answer.trace.prompt_logits, *(row.values for row in answer.trace.step_logits)]
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        return None
    return np.array(rows, np.float32)


def check_float32(case, golden, answer):
    found = check_counts(case, answer)
    if abs(answer.usage.kv_tokens_kept - golden_kept(case)) > 1e-6 * case["n_prompt"]:
        found.append(f"kv_tokens_kept: {answer.usage.kv_tokens_kept} for {golden_kept(case)}")
    for wanted, layer in zip(case["layers"], answer.trace.layers):
        heads = sorted(layer.heads, key=lambda head: head.head)
        where = f"layer {layer.layer}"
        found += differences(f"{where} heads", [head.head for head in heads],
                             range(len(wanted["kept"])))
        for head, kept in zip(heads, wanted["kept"]):
            found += differences(f"{where} head {head.head} kept", head.kept, kept)
        for head, kept in zip(heads, wanted.get("kept_after_decode", [])):
            found += differences(f"{where} head {head.head} kept_after_decode",
                                 head.kept_after_decode, kept)
    if case["method"] == "fastgen":
        names = ["+".join(names) for names in case["fastgen"]["policies"]]
        for wanted, layer in zip(case["fastgen"]["policy"], answer.trace.layers):
            found += differences(f"layer {layer.layer} policies",
                                 [head.policy for head in layer.heads],
                                 [names[policy] for policy in wanted])
    found += differences("propagated", answer.trace.propagated, propagated(case))
    found += differences("tokens", answer.ids[:len(case["generated_ids"])], case["generated_ids"])
    rows = logits(answer)
    if rows is None or rows.shape != golden["logits"].shape:
        return found + [f"logits: shape {None if rows is None else rows.shape} for "
                        f"{golden['logits'].shape}"]
    error = np.abs(rows - golden["logits"]).max(axis=1)
    if not error.max() <= ATOL:  # a NaN fails, too
        worst = int(error.argmax())
        found.append(f"logits: row {worst} is off by {error[worst]:.2e}, allowed {ATOL:.0e}")
    return found


def overlap(name, got, wanted, least):
    """(all agree, nothing or a sentence): lists of positions, one for each head."""
    total = sum(len(w) for w in wanted)
    missing = sum(len(set(w) - set(g)) for g, w in zip(got, wanted))
    if missing > max((1 - least) * total, BF16_ALWAYS * len(wanted)):
        return False, [f"{name}: {total - missing} of {total} agree, at least {least:.0%}"]
    return missing == 0, []


def comparable_rows(case, answer, same_kept):
    """How many rows of logits come from the same tokens as the golden ones."""
    if list(answer.trace.propagated) != propagated(case):
        return 0
    same_tokens = 0
    for got, want in zip(answer.ids, case["generated_ids"]):
        if got != want:
            break
        same_tokens += 1
    return 1 + (same_tokens if same_kept else 0)


def check_rounded(case, golden, answer, most, kept, propagate):
    found = check_counts(case, answer) + check_rounded_kept(case, answer, most)
    same_kept = True
    for wanted, layer in zip(case["layers"], answer.trace.layers):
        heads = sorted(layer.heads, key=lambda head: head.head)
        same, why = overlap(f"layer {layer.layer} kept", [head.kept for head in heads],
                            wanted["kept"], kept)
        same_kept, found = same_kept and same, found + why
    found += overlap("propagated", [answer.trace.propagated], [propagated(case)],
                     propagate)[1]
    rows, wanted = logits(answer), golden["logits"]
    if rows is None or rows.shape != wanted.shape:
        return found + ["logits: wrong shape"]
    for row in range(comparable_rows(case, answer, same_kept)):
        error = np.sqrt(np.mean((rows[row] - wanted[row]) ** 2)) / wanted[row].std()
        if not error <= most:
            found.append(f"logits: row {row} is off by {error:.3f} of the spread, "
                         f"allowed {most}")
    return found


CHECKS = {
    "float32": check_float32,
    "bfloat16": partial(check_rounded, most=BF16_LOGITS, kept=BF16_KEPT,
                        propagate=BF16_PROPAGATED),
    "float16": partial(check_rounded, most=F16_LOGITS, kept=F16_KEPT, propagate=F16_PROPAGATED),
}


class Tally:
    passed = failed = refused = 0

    def add(self, name, found):
        if found:
            self.failed += 1
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            print(f"FAILED  {name}: {'; '.join(found[:3])}{more}", flush=True)
        else:
            self.passed += 1

    def refuse(self, name, why):
        self.refused += 1
        print(f"refused {name}: {why}", flush=True)


def run_case(service, name, path, args, tally):
    case, golden = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    shorten(case, golden, args.steps)
    try:
        answer = ask(service, case)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            tally.refuse(name, error.details())
        else:
            tally.add(name, [f"{error.code().name}: {error.details()}"])
        return
    if answer.done is None:
        tally.add(name, ["the stream ended without Done"])
        return
    tally.add(name, CHECKS[args.dtype](case, golden, answer))


def is_chosen(path, args):
    case = json.loads(path.read_text())
    return ((not args.method or case["method"] in args.method)
            and case["n_prompt"] <= args.longest
            and not (args.match and not re.search(args.match, path.stem)))


def service_options(tp, args):
    """How Service starts the programs: those of build/, or those with the emulated GPU, which lie
    in build/cuda-host/ so that the coordinator finds their worker beside it."""
    options = ["--enable-trace"]
    if not args.emulated_gpu:
        return {"options": options}
    return {"options": options + ["--device", "cuda", "--kv-memory", "4M"],
            "build": BUILD / "cuda-host",
            "env": {"WINNOW_CUDA_HOST": f"devices={tp} {args.emulated_gpu}"}}


def run_model(folder, tp, args, tally):
    paths = [p for p in sorted((folder / "cases").glob("*.json")) if is_chosen(p, args)]
    if not paths:
        return
    before = tally.passed, tally.failed, tally.refused
    heads = json.loads((folder / "model" / "config.json").read_text())["num_attention_heads"]
    if tp > heads:
        for path in paths:
            tally.refuse(f"{folder.name}/{path.stem} tp {tp}", f"the model has {heads} query heads")
        return
    try:
        with Service(folder / "model", workers=tp, dtype=args.dtype,
                     **service_options(tp, args)) as service:
            for path in paths:
                run_case(service, f"{folder.name}/{path.stem} tp {tp}", path, args, tally)
    except RuntimeError as error:
        tally.add(f"{folder.name} tp {tp}", [str(error).strip().splitlines()[-1]])
    now = tally.passed, tally.failed, tally.refused
    passed, failed, refused = (b - a for a, b in zip(before, now))
    print(f"{folder.name} tp {tp} {args.dtype}: {passed} passed, {failed} failed, {refused} refused",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--tp", default="1,2,4", help="degrees, e.g. 1,2,4")
    parser.add_argument("--method", nargs="+", default=[], metavar="NAME",
                        help="only these methods, e.g. full fastkv")
    parser.add_argument("--dtype", default="float32", choices=list(CHECKS))
    parser.add_argument("--emulated-gpu", nargs="?", const="apart lazy", metavar="WORDS",
                        help="--device cuda with the emulated GPU of tests/cuda_host, which the"
                        " words steer (cuda_host.h; default: apart lazy)")
    parser.add_argument("--longest", type=int, default=sys.maxsize, metavar="N",
                        help="only cases with a prompt of up to N tokens")
    parser.add_argument("--steps", type=int, default=sys.maxsize, metavar="N",
                        help="only the first N tokens, where no method evicts by them")
    parser.add_argument("--match", metavar="REGEX", help="only cases with such a name")
    args = parser.parse_args()
    args.method = {name.lower() for name in args.method}
    if args.method - set(FIELDS):
        parser.error(f"unknown method {', '.join(sorted(args.method - set(FIELDS)))}")
    folders = sorted({config.parent.parent for config in args.dir.rglob("model/config.json")
                      if (config.parent.parent / "cases").is_dir()})
    if not folders:
        parser.error(f"no <model>/model/config.json with cases under {args.dir}")
    tally = Tally()
    for folder in folders:
        for tp in (int(degree) for degree in args.tp.split(",")):
            run_model(folder, tp, args, tally)
    if tally.refused:
        print(f"{tally.refused} refused")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
