"""Every option of Sampling against a NumPy reference, at one rank and at two.

The server shows the raw logits of each step in its trace; from these, sampling_reference.py says
which token has to follow, noise included.
"""
import itertools
import random
import threading

import numpy as np
import pytest

import sampling_reference as reference
from service import MODELS, Service, api, fastkv, full, grpc, prompt, sampling

PROMPT = [1, 403, 407, 261, 378, 365, 261, 420]
TRACE = api.Trace(prompt_logits=True, step_logits=True)


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def service(request):
    with Service(MODELS / "stories260k", workers=request.param, dtype="float32",
                 options=["--enable-trace"]) as running:
        yield running


def step_logits(answer):
    return [np.array(answer.trace.prompt_logits, dtype=np.float32),
            *(np.array(row.values, dtype=np.float32) for row in answer.trace.step_logits)]


def check_tokens(answer, chosen, sample=0):
    rows = step_logits(answer)
    assert len(rows) == len(answer.ids) and len(answer.ids) > 0
    for step, row in enumerate(rows):
        expected = reference.choose(row, chosen, PROMPT, answer.ids[:step], sample)
        assert answer.ids[step] == expected, (step, answer.ids)


OPTIONS = {
    "greedy": {},
    "temperature 1": {"temperature": 1},
    "temperature 0.3": {"temperature": 0.3},
    "temperature 100": {"temperature": 100},
    "the largest seed": {"temperature": 1, "seed": 2 ** 64 - 1},
    "top_k 1": {"temperature": 1.5, "top_k": 1},
    "top_k 5": {"temperature": 1.5, "top_k": 5},
    "top_k beyond the vocabulary": {"temperature": 1.5, "top_k": 2 ** 32 - 1},
    "top_p 0.5": {"temperature": 1.5, "top_p": 0.5},
    "top_p 0.95": {"temperature": 1.5, "top_p": 0.95},
    "top_p tiny": {"temperature": 2, "top_p": 1e-6},
    "min_p 0.1": {"temperature": 1.5, "min_p": 0.1},
    "min_p 1": {"temperature": 1.5, "min_p": 1},
    "all filters": {"temperature": 2, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "repetition, greedy": {"repetition_penalty": 1.3},
    "repetition below 1": {"repetition_penalty": 0.8},
    "repetition 100": {"repetition_penalty": 100},
    "frequency, greedy": {"frequency_penalty": 0.7},
    "frequency -2": {"frequency_penalty": -2},
    "presence 2, greedy": {"presence_penalty": 2},
    "presence negative": {"presence_penalty": -0.5},
    "all penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2,
                      "presence_penalty": 0.3},
    "penalties, then filters": {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.01,
                                "repetition_penalty": 1.2, "frequency_penalty": -0.3,
                                "presence_penalty": 0.4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_token_is_the_one_that_the_reference_names(service, name):
    chosen = sampling(max_tokens=40, **{"seed": 1234 + len(name), **OPTIONS[name]})
    answer = service.generate(**prompt(ids=PROMPT), sampling=chosen, compression=full(),
                              trace=TRACE)
    assert len(answer.ids) == 40
    check_tokens(answer, chosen)


def test_any_combination_of_options_is_as_the_reference_says(service):
    draw = random.Random(77)
    calls = []
    for _ in range(40):
        chosen = sampling(
            max_tokens=16, seed=draw.getrandbits(64), temperature=draw.choice([0, 0.5, 1, 3]),
            top_k=draw.choice([0, 0, 1, 7, 50]), top_p=draw.choice([1, 0.99, 0.8, 0.3]),
            min_p=draw.choice([0, 0, 0.05, 0.4]),
            repetition_penalty=draw.choice([1, 1, 0.9, 1.5]),
            frequency_penalty=draw.choice([0, 0, -1, 0.5]),
            presence_penalty=draw.choice([0, 0, -1, 0.5]), n=draw.choice([1, 1, 3]))
        request = api.GenerateRequest(**prompt(ids=PROMPT), sampling=chosen, trace=TRACE,
                                      compression=draw.choice([full(), fastkv()]))
        calls.append((chosen, service.start_samples(request)))
    for chosen, collect in calls:
        answers = collect()
        assert len(answers) == chosen.n
        for sample, answer in enumerate(answers):
            assert answer.done.seed == chosen.seed
            check_tokens(answer, chosen, sample)


@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_logprobs_are_of_the_raw_distribution(service, n):
    chosen = sampling(max_tokens=24, temperature=1.3, top_k=20, repetition_penalty=1.4, seed=5,
                      logprobs=n)
    answer = service.generate(**prompt(ids=PROMPT), sampling=chosen, compression=full(),
                              trace=TRACE)
    check_tokens(answer, chosen)
    assert [entry.id for entry in answer.logprobs] == answer.ids
    for row, entry in zip(step_logits(answer), answer.logprobs):
        expected = reference.logprobs(row)
        best = reference.top_ids(row, n)
        assert entry.logprob == pytest.approx(expected[entry.id], abs=1e-5)
        assert list(entry.top_ids) == best
        assert list(entry.top_logprobs) == pytest.approx(list(expected[best]), abs=1e-5)


def test_no_logprobs_come_unasked(service):
    answer = service.generate(**prompt(ids=PROMPT), sampling=sampling(max_tokens=3))
    assert len(answer.ids) == 3 and not answer.logprobs


def test_draws_are_distributed_as_the_probabilities(service):
    """1,920 first tokens by n and seed: chi-square over the ids that are likely enough."""
    counts, samples, rounds = None, 64, 30
    for seed in range(rounds):
        chosen = sampling(max_tokens=1, temperature=1.2, top_p=0.95, seed=seed, n=samples)
        request = api.GenerateRequest(**prompt(ids=PROMPT[:2]), sampling=chosen,
                                      trace=TRACE if counts is None else None)
        answers = service.start_samples(request)()
        if counts is None:
            expected = reference.probabilities(answers[0].trace.prompt_logits, chosen,
                                               PROMPT[:2], [])
            counts = np.zeros(len(expected))
        for answer in answers:
            counts[answer.ids[0]] += 1
    total = samples * rounds
    assert counts.sum() == total and not counts[expected == 0].any()
    likely = expected * total >= 5
    rest = max(expected[~likely].sum() * total, 1e-9)
    statistic = ((counts[likely] - expected[likely] * total) ** 2
                 / (expected[likely] * total)).sum()
    statistic += (counts[~likely].sum() - rest) ** 2 / max(rest, 1)
    freedom = int(likely.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 10, (statistic, freedom)


def free_run(service, n=60):
    """Ids of a run that nothing stops, and the text after each of them."""
    answer = service.generate(**prompt(ids=PROMPT), sampling=sampling(max_tokens=n),
                              compression=full())
    texts = [service.detokenize(answer.ids[:t], skip_special=True) for t in range(n + 1)]
    assert answer.text == texts[n]
    return answer.ids, texts


def expected_stop(ids, texts, stops, min_tokens):
    """(tokens, text, stop string): the first to be complete at or after min_tokens; of several
    that end there, the longest."""
    for t in range(max(min_tokens, 1), len(ids) + 1):
        for end in range(len(texts[t - 1]) + 1, len(texts[t]) + 1):
            found = [s for s in stops if texts[t][:end].endswith(s)]
            if found:
                best = max(found, key=len)
                return t, texts[t][:end - len(best)], best
    return len(ids), texts[-1], ""


def test_stop_strings_end_the_text_wherever_the_tokens_are_cut(service):
    ids, texts = free_run(service)
    whole, draw = texts[-1], random.Random(3)
    cases = [(["the"], 0), ([whole[30:31]], 0), ([whole[-5:]], 0), (["no such text", "zzz"], 0)]
    for _ in range(24):
        stops = []
        for _ in range(draw.choice([1, 2, 16])):
            begin = draw.randrange(len(whole) - 20)
            stops.append(whole[begin:begin + draw.randrange(1, 20)])
        cases.append((stops, draw.choice([0, 0, 10, 31])))
    for stops, min_tokens in cases:
        n, text, stop = expected_stop(ids, texts, stops, min_tokens)
        answer = service.generate(
            **prompt(ids=PROMPT), compression=full(),
            sampling=sampling(max_tokens=60, min_tokens=min_tokens, stop=stops))
        wanted = api.FINISH_STOP_STRING if stop else api.FINISH_LENGTH
        assert (answer.done.finish_reason, answer.done.stop_string) == (wanted, stop), stops
        assert answer.text == text, stops
        assert answer.ids == ids[:n] and answer.usage.completion_tokens == n


def test_stop_ids_end_it_but_not_before_min_tokens(service):
    ids, texts = free_run(service)
    for stop_at, min_tokens in itertools.product([0, 7, 25], [0, 1, 7, 8, 30, 60]):
        stops = [ids[stop_at], 511]
        ends = [i for i, x in enumerate(ids) if x in stops and i + 1 > min_tokens]
        answer = service.generate(
            **prompt(ids=PROMPT), compression=full(),
            sampling=sampling(max_tokens=60, min_tokens=min_tokens, stop_token_ids=stops))
        if ends:
            assert answer.done.finish_reason == api.FINISH_STOP_TOKEN
            assert answer.ids == ids[:ends[0] + 1] and answer.text == texts[ends[0]]
        else:
            assert answer.done.finish_reason == api.FINISH_LENGTH and answer.ids == ids


def test_the_end_token_counts_unless_it_is_too_early_or_ignored(needle, needle_cases):
    text = needle_cases[512][0]["prompt"]
    eos = list(needle.model().eos_ids)
    free = needle.generate(text=text, sampling=api.Sampling(max_tokens=24, ignore_eos=True))
    assert free.done.finish_reason == api.FINISH_LENGTH and len(free.ids) == 24
    ends = [i for i, x in enumerate(free.ids) if x in eos]
    assert ends and ends[0] < 10
    for min_tokens in (0, ends[0], ends[0] + 1, 24):
        answer = needle.generate(text=text,
                                 sampling=api.Sampling(max_tokens=24, min_tokens=min_tokens))
        later = [i for i in ends if i + 1 > min_tokens]
        wanted = free.ids[:later[0] + 1] if later else free.ids
        assert answer.ids == wanted
    stopped = needle.generate(text=text, sampling=api.Sampling(
        max_tokens=24, ignore_eos=True, stop_token_ids=[free.ids[1]]))
    assert stopped.ids == free.ids[:2], "ignore_eos leaves stop ids alone"


def test_a_seed_that_is_not_given_is_drawn_reported_and_repeats(service):
    chosen = sampling(max_tokens=20, temperature=1.5, n=3)
    first = service.start_samples(api.GenerateRequest(**prompt(ids=PROMPT), sampling=chosen))()
    assert len({answer.done.seed for answer in first}) == 1
    assert len({tuple(answer.ids) for answer in first}) == 3
    chosen.seed = first[0].done.seed
    again = service.start_samples(api.GenerateRequest(**prompt(ids=PROMPT), sampling=chosen))()
    assert [answer.ids for answer in again] == [answer.ids for answer in first]


def test_samples_share_the_pages_of_their_prompt_to_the_last_one():
    """5 layers x 4 heads, pages of 32 rows: of a prompt of 400 tokens 12 are full and shared, and
    with 39 more rows behind 16 each sample has 2 of its own.  4 MiB are 1,927 pages: 42 samples."""
    page = 32 * (2 * 8 * 4 + 4)
    tables, shared, own = 5 * 4, 12, 2
    request = api.GenerateRequest(**prompt(ids=[1, *range(3, 402)]), compression=full(),
                                  sampling=sampling(max_tokens=40, temperature=1, seed=9, n=42))
    assert (4 << 20) // page // tables < shared + 43 * own
    with Service(MODELS / "stories260k", dtype="float32", options=["--kv-memory", "4M"]) as running:
        answers, used = [], []
        reader = threading.Thread(target=lambda: answers.extend(running.start_samples(request)()))
        reader.start()
        while reader.is_alive():
            used.append(sum(running.pages_used()))
        reader.join()
        assert max(used) <= (shared + 42 * own) * tables * page and max(used) > 0
        assert len({tuple(answer.ids) for answer in answers}) == 42
        for answer in answers:
            assert len(answer.ids) == 40 and answer.usage.prompt_tokens == 400
            assert answer.usage.kv_bytes == answer.usage.kv_bytes_full == 400 * tables * 64
        assert not any(running.pages_used())
        request.sampling.n = 43
        with pytest.raises(grpc.RpcError) as error:
            running.start_samples(request)()
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "43 sample(s)" in error.value.details()
        request.sampling.n = 3
        few = running.start_samples(request)()
    assert [a.ids for a in few] == [a.ids for a in answers[:3]]


def test_samples_that_nobody_waits_for_give_their_pages_back(service):
    request = api.GenerateRequest(**prompt(ids=PROMPT), compression=full(),
                                  sampling=sampling(max_tokens=480, temperature=1, n=16))
    call = service.inference.Generate(request, timeout=60)
    for response in call:
        if response.WhichOneof("event") == "tokens":
            break
    call.cancel()
    for _ in range(500):
        if not any(service.pages_used()):
            break
        threading.Event().wait(0.02)
    assert not any(service.pages_used())


# field, value, and the limit as the message says it
OUT_OF_RANGE = [
    ("temperature", -0.5, "at least 0"), ("temperature", 100.5, "at most 100"),
    ("temperature", float("nan"), "at most 100"), ("temperature", float("inf"), "at most 100"),
    ("top_p", 0.0, "above 0"), ("top_p", 1.5, "at most 1"), ("top_p", float("nan"), "at most 1"),
    ("min_p", -0.25, "at least 0"), ("min_p", 1.5, "at most 1"),
    ("repetition_penalty", 0.0, "above 0"), ("repetition_penalty", -1.0, "above 0"),
    ("repetition_penalty", 100.5, "at most 100"),
    ("frequency_penalty", -2.5, "at least -2"), ("frequency_penalty", 2.5, "at most 2"),
    ("presence_penalty", -2.5, "at least -2"), ("presence_penalty", 2.5, "at most 2"),
    ("presence_penalty", float("nan"), "at most 2"),
    ("max_tokens", 0, "at least 1"), ("min_tokens", 9, "max_tokens is 8"),
    ("logprobs", 21, "0 to 20"), ("n", 0, "1 to 64"), ("n", 65, "1 to 64"),
    ("stop", ["x"] * 17, "limit is 16"), ("stop", [""], "1 to 256"),
    ("stop", ["x" * 257], "1 to 256"), ("stop_token_ids", [1] * 65, "limit is 64"),
    ("stop_token_ids", [512], "512"),
]


@pytest.mark.parametrize("field,value,limit", OUT_OF_RANGE)
def test_what_is_out_of_range_is_refused_with_field_value_and_limit(stories, field, value, limit):
    chosen = api.Sampling(**{"max_tokens": 8, field: value})
    with pytest.raises(grpc.RpcError) as error:
        stories.generate(**prompt(ids=PROMPT), sampling=chosen)
    said = error.value.details()
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"sampling.{field}" in said and limit in said
    shown = len(value[0]) if field == "stop" and len(value) == 1 else \
        len(value) if isinstance(value, list) and len(value) > 1 else \
        value[0] if isinstance(value, list) else value
    assert (f"{shown:g}" if isinstance(shown, float) else str(shown)) in said


def mixed_request(i):
    """One of 32: its own prompt length, method and sampling."""
    methods = [full(), fastkv(), fastkv(retain_rate=0.5),
               api.Compression(method=api.METHOD_SNAPKV, retain_rate=0.4),
               api.Compression(method=api.METHOD_H2O, retain_rate=0.5,
                               h2o=api.H2O(h2o_dynamic=True)),
               api.Compression(method=api.METHOD_STREAMINGLLM, capacity=24,
                               streamingllm=api.StreamingLLM(rolling=True))]
    chosen = sampling(max_tokens=12 + i % 20, seed=i, temperature=[0, 0.8, 1.5][i % 3],
                      top_k=[0, 40][i % 2], top_p=[1, 0.9][i % 4 == 1], min_p=[0, 0.02][i % 5 == 2],
                      repetition_penalty=[1, 1.2][i % 7 == 3], logprobs=3 if i % 3 else None)
    ids = [1, *((i * 37 + 11 * t * t) % 500 + 3 for t in range(5 + i * 9))]
    return api.GenerateRequest(**prompt(ids=ids), sampling=chosen,
                               compression=methods[i % len(methods)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_do_not_depend_on_31_others(dtype):
    requests = [mixed_request(i) for i in range(32)]
    with Service(MODELS / "stories260k", workers=2, dtype=dtype) as running:
        alone = [running.generate(request) for request in requests]
        together, gate = [None] * 32, threading.Barrier(32)

        def run(i):
            gate.wait()
            together[i] = running.generate(requests[i])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(alone, together):
        assert one.ids == other.ids and one.text == other.text
        assert one.logprobs == other.logprobs
