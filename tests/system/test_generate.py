"""Generate as a client sees it: the stream, seeds, deadlines, cancellation, progress."""
import json
import time
from pathlib import Path

import pytest

from service import MODELS, Answer, Service, api, control, fastkv, full, grpc, prompt, sampling

PROGRESS_S = 0.5  # the contract
SLACK_S = 0.3     # what a busy machine may add on the way, usually
LONGEST_SLACK_S = 2


def wait_until_idle(service, timeout):
    """Waits until nothing runs and no page is in use; returns how long that took."""
    begin = time.monotonic()
    while True:
        status = service.status()
        idle = status.running_requests == 0 and status.queued_requests == 0
        if idle and not any(service.pages_used()):
            return time.monotonic() - begin
        assert time.monotonic() - begin < timeout, f"still busy after {timeout} s: {status}"
        time.sleep(0.02)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def first_prefill(call):
    """Reads the stream until the prompt is being worked on."""
    for response in call:
        if response.progress.phase == api.PHASE_PREFILL:
            return response.progress
    raise AssertionError("the stream ended before the prefill began")


def test_the_stream_is_progress_then_tokens_then_one_done(needle, needle_cases):
    request = api.GenerateRequest(text=needle_cases[1024][0]["prompt"],
                                  sampling=sampling(max_tokens=12))
    kinds, responses = [], []
    for response in needle.inference.Generate(request, timeout=60):
        kinds.append(response.WhichOneof("event"))
        responses.append(response)
    assert kinds[-1] == "done" and kinds.count("done") == 1
    first_token = kinds.index("tokens")
    assert "progress" in kinds[:first_token] and "progress" not in kinds[first_token:]
    ids = [i for r in responses if r.WhichOneof("event") == "tokens" for i in r.tokens.ids]
    text = "".join(r.tokens.text for r in responses if r.WhichOneof("event") == "tokens")
    assert len(ids) == 12 and text == needle.detokenize(ids, skip_special=True)
    done = responses[-1].done
    assert done.finish_reason == api.FINISH_LENGTH
    assert done.usage.completion_tokens == 12
    assert done.usage.prompt_tokens == needle_cases[1024][0]["prompt_tokens"]
    assert done.timing.ttft_ms > 0 and done.timing.total_ms >= done.timing.ttft_ms
    assert kinds.count("tokens") > 1, "the tokens should come one by one"


def test_the_model_stops_at_its_end_token(needle, needle_cases):
    case = needle_cases[512][0]
    answer = needle.generate(text=case["prompt"], sampling=api.Sampling(max_tokens=20))
    assert answer.done.finish_reason == api.FINISH_STOP_TOKEN
    assert answer.text == case["completion"]
    assert answer.usage.completion_tokens == len(answer.ids)


@pytest.mark.parametrize("length", [256, 4096, 32768])
@pytest.mark.parametrize("method", ["FULL", "FASTKV"])
def test_needles_are_found(needle, needle_cases, length, method):
    chosen = {"FULL": full(), "FASTKV": fastkv(retain_rate=0.1, tsp_rate=0.2, tsp_layer=2)}[method]
    for case in needle_cases[length][:2]:
        answer = needle.generate(text=case["prompt"], sampling=api.Sampling(max_tokens=5),
                                 compression=chosen)
        assert answer.ids[:3] == case["answer_ids"], (case["id"], answer.text)
        usage = answer.usage
        if method == "FULL":
            assert usage.kv_bytes == usage.kv_bytes_full
            assert usage.propagated_tokens == usage.prompt_tokens
        else:
            assert usage.kv_bytes < 0.2 * usage.kv_bytes_full
            assert usage.propagated_tokens == int(usage.prompt_tokens * 0.2)


def test_the_default_method_is_fastkv(needle, needle_cases):
    case = needle_cases[4096][0]
    default = needle.generate(text=case["prompt"], sampling=api.Sampling(max_tokens=5))
    chosen = needle.generate(text=case["prompt"], sampling=api.Sampling(max_tokens=5),
                             compression=fastkv())
    assert default.ids == chosen.ids
    assert default.usage == chosen.usage
    assert default.usage.kv_bytes < default.usage.kv_bytes_full


def test_stories_come_out_as_recorded():
    lines = (MODELS / "stories260k" / "golden_generate.jsonl").read_text().splitlines()
    for workers in (1, 2):
        with Service(MODELS / "stories260k", workers=workers, dtype="float32") as service:
            for case in map(json.loads, lines):
                wanted = case["greedy_ids"]
                answer = service.generate(tokens=api.TokenIds(ids=case["prompt_ids"]),
                                          sampling=sampling(max_tokens=len(wanted)),
                                          compression=full())
                assert answer.ids == wanted, (workers, case["prompt"])


def test_a_seed_gives_the_same_tokens_at_every_tensor_parallel_degree():
    def run(service, seed):
        chosen = sampling(max_tokens=48, temperature=0.9, top_p=0.95, seed=seed)
        return service.generate(text="Once upon a time", sampling=chosen, compression=full()).ids

    seeds = (1, 2, 3 << 40)
    told = []
    for workers in (1, 2, 4):
        with Service(MODELS / "stories260k", workers=workers, dtype="float32") as service:
            told.append([run(service, seed) for seed in seeds])
            assert run(service, seeds[0]) == told[-1][0], "the same seed, asked twice"
    assert told[0] == told[1] == told[2]
    assert len({tuple(ids) for ids in told[0]}) == len(seeds)


def test_a_seed_that_was_drawn_is_reported_and_can_be_used_again(stories):
    chosen = sampling(max_tokens=32, temperature=1.0)
    first = stories.generate(text="The dog", sampling=chosen)
    again = stories.generate(text="The dog", sampling=sampling(max_tokens=32, temperature=1.0,
                                                               seed=first.done.seed))
    assert again.ids == first.ids and again.done.seed == first.done.seed
    other = stories.generate(text="The dog", sampling=chosen)
    assert other.done.seed != first.done.seed


def test_requests_in_company_answer_as_they_do_alone(needle, needle_cases):
    cases = [needle_cases[length][3] for length in (256, 1024, 2048, 512)]
    requests = [api.GenerateRequest(text=case["prompt"], sampling=sampling(max_tokens=16),
                                    compression=full() if i % 2 else fastkv())
                for i, case in enumerate(cases)]
    alone = [needle.generate(request).ids for request in requests]
    calls = [needle.inference.Generate(request, timeout=120) for request in requests]
    together = [[i for r in call if r.WhichOneof("event") == "tokens" for i in r.tokens.ids]
                for call in calls]
    assert together == alone


def test_progress_comes_at_least_every_half_second(needle, needle_cases, long_prompt):
    """Also for the request that waits behind another."""
    ids = needle.tokenize(needle_cases[32768][0]["prompt"])
    chosen = {"sampling": sampling(max_tokens=2), "compression": fastkv()}
    first = needle.inference.Generate(api.GenerateRequest(**prompt(ids=long_prompt), **chosen),
                                      timeout=600)
    first_prefill(first)
    waiting = needle.inference.Generate(api.GenerateRequest(**prompt(ids=ids), **chosen),
                                        timeout=600)
    times, fractions = [time.monotonic()], [0.0]
    for response in waiting:
        times.append(time.monotonic())
        kind = response.WhichOneof("event")
        if times[-1] - times[0] > 3:
            first.cancel()
        if kind == "progress" and response.progress.phase == api.PHASE_PREFILL:
            assert response.progress.prompt_tokens == len(ids)
            assert response.progress.layers == needle.model().layers
            fractions.append(response.progress.fraction)
        if kind == "tokens":
            break
    waiting.cancel()
    silences = sorted(b - a for a, b in zip(times, times[1:]))
    assert silences[len(silences) * 95 // 100] <= PROGRESS_S + SLACK_S, silences
    assert silences[-1] <= PROGRESS_S + LONGEST_SLACK_S, silences
    assert len(fractions) > 3 and fractions == sorted(fractions) and fractions[-1] <= 1
    wait_until_idle(needle, timeout=10)


def test_a_cancelled_prefill_stops_and_frees_its_pages(needle, long_prompt):
    call = needle.inference.Generate(
        api.GenerateRequest(**prompt(ids=long_prompt), sampling=sampling(max_tokens=5),
                            compression=full()), timeout=600)
    progress = first_prefill(call)
    assert progress.fraction < 0.9
    call.cancel()
    assert wait_until_idle(needle, timeout=5) < 2
    before = [cpu_seconds(pid) for pid in needle.workers()]
    time.sleep(1)
    after = [cpu_seconds(pid) for pid in needle.workers()]
    assert all(b - a < 0.3 for a, b in zip(before, after)), "workers still compute"


def test_a_cancelled_decode_frees_its_pages(needle, needle_cases):
    call = needle.inference.Generate(
        api.GenerateRequest(text=needle_cases[1024][0]["prompt"],
                            sampling=sampling(max_tokens=100000)), timeout=600)
    for response in call:
        if response.WhichOneof("event") == "tokens":
            break
    assert any(needle.pages_used())
    call.cancel()
    wait_until_idle(needle, timeout=5)


def test_a_deadline_ends_the_work(needle, long_prompt):
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        needle.generate(tokens=api.TokenIds(ids=long_prompt), sampling=sampling(max_tokens=5),
                        compression=full(), timeout=1.0)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 3
    wait_until_idle(needle, timeout=5)


def test_a_deadline_ends_a_sequence_that_decodes(needle):
    request = api.GenerateRequest(**prompt(ids=[5, 6, 7]), sampling=sampling(max_tokens=100000))
    kinds, begin = [], time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        for response in needle.inference.Generate(request, timeout=1.0):
            kinds.append(response.WhichOneof("event"))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 3
    assert "tokens" in kinds and "done" not in kinds
    wait_until_idle(needle, timeout=5)


def test_abort_ends_a_request_by_its_name(needle, long_prompt):
    call = needle.inference.Generate(
        api.GenerateRequest(request_id="to-be-aborted", **prompt(ids=long_prompt),
                            sampling=sampling(max_tokens=5), compression=full()), timeout=600)
    first_prefill(call)
    abort = needle.control.Abort
    assert abort(control.AbortRequest(request_id="to-be-aborted"), timeout=10).found
    assert not abort(control.AbortRequest(request_id="nobody"), timeout=10).found
    answer = Answer()
    try:
        for response in call:
            if response.WhichOneof("event") == "done":
                answer.done = response.done
        assert answer.done.finish_reason == api.FINISH_ABORTED
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)
    wait_until_idle(needle, timeout=5)


def test_the_trace_says_what_was_kept_and_propagated(needle, needle_cases):
    case = needle_cases[2048][0]
    answer = needle.generate(
        text=case["prompt"], sampling=sampling(max_tokens=4),
        compression=fastkv(retain_rate=0.1, tsp_rate=0.2, tsp_layer=2),
        trace=api.Trace(selected_tokens=True, prompt_logits=True, step_logits=True))
    model, n = needle.model(), case["prompt_tokens"]
    layers = answer.trace.layers
    assert [layer.layer for layer in layers] == list(range(model.layers))
    assert [layer.tokens_in for layer in layers] == [n, n, n] + [int(n * 0.2)] * 2
    for layer in layers:
        assert [head.head for head in layer.heads] == list(range(model.kv_heads))
        for head in layer.heads:
            assert list(head.kept) == sorted(set(head.kept)) and max(head.kept) < n
            assert set(range(n - 8, n)) <= set(head.kept), "the window is always kept"
    assert len(answer.trace.propagated) == int(n * 0.2)
    assert len(answer.trace.prompt_logits) == model.vocab_size
    assert [len(row.values) for row in answer.trace.step_logits] == [model.vocab_size] * 3
    best = max(range(model.vocab_size), key=lambda i: answer.trace.prompt_logits[i])
    assert best == answer.ids[0]


def test_a_chat_without_a_template_is_refused_with_the_way_out(needle):
    chat = api.Chat(messages=[api.ChatMessage(role="user", content="Hello")])
    with pytest.raises(grpc.RpcError) as error:
        needle.generate(chat=chat, sampling=sampling(max_tokens=2))
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "no chat_template" in error.value.details() and "send text" in error.value.details()
