"""Every method that the server lists: alone, in company, and what its usage says."""
import json

import grpc
import pytest

from service import MODELS, Service, api, sampling

TOKENS = 12


def listed(service):
    """What GetModel lists, ready to be sent back; HEADKV has no default table of importance."""
    model = service.model()
    for compression in model.methods:
        if compression.method == api.METHOD_HEADKV:
            compression.headkv.head_scores.extend([1.0] * (model.layers * model.query_heads))
        yield compression


def request_for(compression, case):
    return api.GenerateRequest(text=case["prompt"], sampling=sampling(max_tokens=TOKENS),
                               compression=compression)


def test_the_defaults_that_are_listed_are_those_that_are_used(needle, needle_cases):
    case = needle_cases[512][0]
    for compression in listed(needle):
        bare = api.Compression(method=compression.method)
        if compression.method == api.METHOD_HEADKV:
            bare.headkv.head_scores.extend(compression.headkv.head_scores)
        stated = needle.generate(request_for(compression, case))
        unstated = needle.generate(request_for(bare, case))
        assert unstated.ids == stated.ids, compression.method
        assert unstated.usage == stated.usage, compression.method


def test_all_methods_side_by_side_answer_as_they_do_alone(needle, needle_cases):
    cases = needle_cases[1024] + needle_cases[256]
    requests = [request_for(compression, cases[i % len(cases)])
                for i, compression in enumerate(listed(needle))]
    alone = [needle.generate(request).ids for request in requests]
    calls = [needle.inference.Generate(request, timeout=120) for request in requests]
    together = [[i for r in call if r.WhichOneof("event") == "tokens" for i in r.tokens.ids]
                for call in calls]
    assert together == alone


@pytest.mark.parametrize("capacity", [1, 7, 100000])
def test_any_capacity_serves_any_prompt(needle, capacity):
    """Below the window, and above the prompt, where every method is FULL."""
    prompt = needle.tokenize("Remember this.")
    everything = needle.generate(tokens=api.TokenIds(ids=prompt), compression=api.Compression(
        method=api.METHOD_FULL), sampling=sampling(max_tokens=TOKENS))
    for compression in listed(needle):
        compression.capacity = capacity
        if compression.method == api.METHOD_FASTKV:
            compression.fastkv.tsp_len = capacity
        for ids in (prompt, prompt[:1]):
            answer = needle.generate(tokens=api.TokenIds(ids=ids), compression=compression,
                                     sampling=sampling(max_tokens=TOKENS))
            assert len(answer.ids) == TOKENS
            assert answer.usage.kv_bytes <= answer.usage.kv_bytes_full
            if capacity > len(ids) == len(prompt) and compression.method != api.METHOD_FASTGEN:
                assert answer.ids == everything.ids, compression.method
                assert answer.usage.kv_bytes == answer.usage.kv_bytes_full


def test_progress_counts_both_passes_of_gemfilter(needle, long_prompt):
    model = needle.model()
    compression = api.Compression(method=api.METHOD_GEMFILTER, capacity=200,
                                  gemfilter=api.GemFilter(filter_layer=model.layers - 1))
    answer = needle.generate(tokens=api.TokenIds(ids=long_prompt[:30000]), compression=compression,
                             sampling=sampling(max_tokens=2))
    reports = [p for _, p in answer.progress if p.phase == api.PHASE_PREFILL]
    assert {p.layers for p in reports} == {2 * model.layers}
    order = [(p.layer, p.fraction) for p in reports]
    assert order == sorted(order) and order[-1][0] < 2 * model.layers
    assert answer.usage.prompt_tokens == 30000
    assert answer.usage.propagated_tokens == 200
    assert answer.usage.kv_tokens_kept == 200


def test_a_profile_of_the_server_is_its_table_sent_along(needle, needle_cases, tmp_path):
    """One line of JSON, a list of scores for each "layer-head", as published; their means count."""
    model = needle.model()
    heads = [(layer, head) for layer in range(model.layers) for head in range(model.query_heads)]
    table = {f"{layer}-{head}": [layer + 0.5, head + 0.5] for layer, head in heads}
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "mine.json").write_text(json.dumps(table))
    (tmp_path / "outside.json").write_text(json.dumps(table))

    def ask(service, **headkv):
        compression = api.Compression(method=api.METHOD_HEADKV, capacity=24,
                                      headkv=api.HeadKV(**headkv))
        return service.generate(text=needle_cases[512][0]["prompt"], compression=compression,
                                trace=api.Trace(selected_tokens=True),
                                sampling=sampling(max_tokens=4))

    inline = ask(needle, head_scores=[(layer + head + 1) / 2 for layer, head in heads])
    with Service(MODELS / "needle-tiny", dtype="float32",
                 options=["--enable-trace", "--head-profiles", folder]) as service:
        named = ask(service, profile="mine")
        for name in ("outside", "../outside", str(tmp_path / "outside"), "mine.json"):
            with pytest.raises(grpc.RpcError) as error:
                ask(service, profile=name)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
    assert named.ids == inline.ids and named.trace == inline.trace
    lengths = {len(head.kept) for layer in named.trace.layers for head in layer.heads}
    assert len(lengths) > 3
