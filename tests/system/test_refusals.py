"""Every refusal of the contract: its status, and a message that names the field."""
import math
import threading

import pytest

from service import MODELS, ROOT, Service, api, control, fastkv, full, grpc, prompt, sampling

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OK_PROMPT = prompt(ids=[1, 403, 407, 261, 378])
VOCAB, LAYERS, CONTEXT = 512, 5, 512  # of stories260k


def refused(service, request, code=INVALID):
    """Sends the request; it must end with `code`.  Returns the message."""
    with pytest.raises(grpc.RpcError) as error:
        service.generate(request, timeout=60)
    assert error.value.code() == code, error.value.details()
    return error.value.details()


def with_sampling(**fields):
    return dict(OK_PROMPT, sampling=api.Sampling(**fields))


def with_compression(**fields):
    return dict(OK_PROMPT, compression=api.Compression(**fields))


def with_fastkv(own=None, **fields):
    return with_compression(method=api.METHOD_FASTKV, fastkv=api.FastKV(**(own or {})), **fields)


BAD = {
    # the prompt
    "no prompt": ("prompt", {}),
    "no tokens": ("prompt", prompt(ids=[])),
    "no text": ("prompt", dict(prompt(text=""), add_special_tokens=False)),
    "an id of the vocabulary's size": ("512", prompt(ids=[1, VOCAB])),
    "an enormous id": ("4294967295", prompt(ids=[2 ** 32 - 1])),
    "a NUL in the text": ("text", prompt(text="a\0b")),
    "a request_id of 129 bytes": ("request_id", dict(OK_PROMPT, request_id="r" * 129)),
    "a request_id with a space in it": ("request_id", dict(OK_PROMPT, request_id="tab\there")),
    "a request_id beyond ASCII": ("request_id", dict(OK_PROMPT, request_id="père")),
    # sampling
    "temperature NaN": ("temperature", with_sampling(temperature=math.nan)),
    "temperature infinite": ("temperature", with_sampling(temperature=math.inf)),
    "temperature negative": ("temperature", with_sampling(temperature=-0.1)),
    "top_p NaN": ("top_p", with_sampling(top_p=math.nan)),
    "top_p above 1": ("top_p", with_sampling(top_p=1.01)),
    "top_p negative": ("top_p", with_sampling(top_p=-0.5)),
    "min_p above 1": ("min_p", with_sampling(min_p=1.5)),
    "min_p NaN": ("min_p", with_sampling(min_p=math.nan)),
    "repetition_penalty 0": ("repetition_penalty", with_sampling(repetition_penalty=0)),
    "repetition_penalty NaN": ("repetition_penalty", with_sampling(repetition_penalty=math.nan)),
    "frequency_penalty infinite": ("frequency_penalty",
                                   with_sampling(frequency_penalty=math.inf)),
    "presence_penalty NaN": ("presence_penalty", with_sampling(presence_penalty=math.nan)),
    "max_tokens 0": ("max_tokens", with_sampling(max_tokens=0)),
    "min_tokens above max_tokens": ("min_tokens", with_sampling(max_tokens=3, min_tokens=4)),
    "17 stop strings": ("stop", with_sampling(stop=[str(i) for i in range(17)])),
    "an empty stop string": ("stop", with_sampling(stop=[""])),
    "a stop string of 257 bytes": ("stop", with_sampling(stop=["x" * 257])),
    "65 stop ids": ("stop_token_ids", with_sampling(stop_token_ids=range(65))),
    "a stop id outside the vocabulary": ("stop_token_ids", with_sampling(stop_token_ids=[VOCAB])),
    "logprobs 21": ("logprobs", with_sampling(logprobs=21)),
    "n 0": ("n", with_sampling(n=0)),
    "n 65": ("n", with_sampling(n=65)),
    # compression
    "an unknown method": ("method", with_compression(method=99)),
    "an unknown pooling": ("pooling", with_fastkv(pooling=9)),
    "an unknown granularity": ("granularity", with_fastkv(granularity=9)),
    "an unknown group_reduce": ("group_reduce", with_fastkv(group_reduce=9)),
    "an unknown reduce_stage": ("reduce_stage", with_fastkv(reduce_stage=9)),
    "retain_rate 0": ("retain_rate", with_fastkv(retain_rate=0)),
    "retain_rate above 1": ("retain_rate", with_fastkv(retain_rate=1.0001)),
    "retain_rate NaN": ("retain_rate", with_fastkv(retain_rate=math.nan)),
    "retain_rate negative": ("retain_rate", with_fastkv(retain_rate=-0.1)),
    "capacity 0": ("capacity", with_fastkv(capacity=0)),
    "window 0": ("window", with_fastkv(window=0)),
    "kernel even": ("kernel", with_fastkv(kernel=4)),
    "kernel 0": ("kernel", with_fastkv(kernel=0)),
    "kernel 65": ("kernel", with_fastkv(kernel=65)),
    "tsp_rate 0": ("tsp_rate", with_fastkv({"tsp_rate": 0})),
    "tsp_rate above 1": ("tsp_rate", with_fastkv({"tsp_rate": 1.5})),
    "tsp_rate NaN": ("tsp_rate", with_fastkv({"tsp_rate": math.nan})),
    "tsp_len 0": ("tsp_len", with_fastkv({"tsp_len": 0}, capacity=8)),
    "tsp_layer of the layer count": ("tsp_layer", with_fastkv({"tsp_layer": LAYERS})),
    "a rate with a length": ("tsp_len", with_fastkv({"tsp_len": 64}, retain_rate=0.1)),
    "a capacity with a rate": ("tsp_rate", with_fastkv({"tsp_rate": 0.2}, capacity=64)),
    "parameters of FASTKV for FULL": ("fastkv", with_compression(method=api.METHOD_FULL,
                                                                 fastkv=api.FastKV())),
    "parameters of H2O for FASTKV": ("h2o", with_compression(method=api.METHOD_FASTKV,
                                                             h2o=api.H2O())),
    "parameters of ADAKV for FASTKV": ("adakv", with_compression(method=api.METHOD_FASTKV,
                                                                 adakv=api.AdaKV())),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_invalid_and_its_field_is_named(stories, name):
    word, fields = BAD[name]
    assert word in refused(stories, api.GenerateRequest(**fields))


def test_after_all_refusals_the_service_still_answers(stories):
    assert len(stories.generate(**OK_PROMPT, sampling=sampling(max_tokens=3)).ids) == 3
    assert stories.status().running_requests == 0


def test_limits_themselves_are_accepted(stories):
    for fields in (
            dict(OK_PROMPT, request_id="r" * 128),
            dict(prompt(ids=[VOCAB - 1])),
            with_sampling(stop=["\x7f" * 256] * 16, stop_token_ids=[VOCAB - 1] * 64),
            with_fastkv({"tsp_rate": 1, "tsp_layer": LAYERS - 1}, retain_rate=1, kernel=63),
            with_fastkv({"tsp_len": 1}, capacity=1, window=1, kernel=1)):
        request = api.GenerateRequest(**fields)
        request.sampling.max_tokens = 2
        request.sampling.ignore_eos = True
        assert len(stories.generate(request).ids) == 2


def test_fields_of_the_shared_part_are_ignored_by_full(stories):
    chosen = api.Compression(method=api.METHOD_FULL, retain_rate=0.5, window=4, kernel=3)
    answer = stories.generate(**OK_PROMPT, sampling=sampling(max_tokens=2), compression=chosen)
    assert answer.usage.kv_bytes == answer.usage.kv_bytes_full


def raw_generate(service, data):
    call = service.channel.unary_stream("/winnow.v1.Inference/Generate",
                                        request_serializer=lambda b: b,
                                        response_deserializer=api.GenerateResponse.FromString)
    with pytest.raises(grpc.RpcError) as error:
        list(call(data, timeout=60))
    return error.value


def test_invalid_utf8_is_invalid(stories):
    error = raw_generate(stories, b"\x12\x03a\xff\xfe")  # field 2, text, of three bytes
    assert error.code() == INVALID and "UTF-8" in error.details()


@pytest.mark.parametrize("data", [b"\x1a\x05\x0a\x09\x01", b"\xff" * 40, b"\x12\xff\xff\xff\xff\x0f"])
def test_a_message_that_does_not_parse_is_refused(stories, data):
    assert raw_generate(stories, data).code() in (INVALID, grpc.StatusCode.INTERNAL)
    assert stories.check() == 1


def test_bad_text_is_refused_by_tokenize_and_bad_ids_by_detokenize(stories):
    with pytest.raises(grpc.RpcError) as error:
        stories.tokenize("a\0b")
    assert error.value.code() == INVALID and "text" in error.value.details()
    with pytest.raises(grpc.RpcError) as error:
        stories.detokenize([1, VOCAB])
    assert error.value.code() == INVALID and "512" in error.value.details()


def test_a_live_request_id_cannot_be_used_twice(needle, long_prompt):
    request = api.GenerateRequest(request_id="twice", tokens=api.TokenIds(ids=long_prompt),
                                  sampling=sampling(max_tokens=2))
    call = needle.inference.Generate(request, timeout=60)
    next(iter(call))
    short = api.GenerateRequest(request_id="twice", **prompt(ids=[1, 2, 3]))
    assert "request_id" in refused(needle, short)
    call.cancel()
    short.sampling.max_tokens = 1
    for _ in range(100):  # once the first is gone the name is free
        try:
            assert len(needle.generate(short).ids) == 1
            return
        except grpc.RpcError as error:
            assert error.code() == INVALID
            threading.Event().wait(0.05)
    pytest.fail("the name of a cancelled request stays taken")


@pytest.mark.parametrize("n,max_tokens", [(CONTEXT, 1), (CONTEXT - 8, 9), (CONTEXT + 1, 1),
                                          (10, 2 ** 32 - 1)])
def test_beyond_the_models_context_is_out_of_range(stories, n, max_tokens):
    request = api.GenerateRequest(tokens=api.TokenIds(ids=[5] * n),
                                  sampling=sampling(max_tokens=max_tokens))
    assert "512" in refused(stories, request, grpc.StatusCode.OUT_OF_RANGE)


def test_the_whole_context_can_be_used(stories):
    answer = stories.generate(tokens=api.TokenIds(ids=[5] * (CONTEXT - 8)),
                              sampling=sampling(max_tokens=8))
    assert len(answer.ids) == 8


def test_the_servers_own_context_limit_is_out_of_range():
    with Service(MODELS / "stories260k", options=["--max-context", 100]) as service:
        assert service.model().max_context == 100
        request = api.GenerateRequest(tokens=api.TokenIds(ids=[5] * 99),
                                      sampling=sampling(max_tokens=2))
        assert "100" in refused(service, request, grpc.StatusCode.OUT_OF_RANGE)
        request.sampling.max_tokens = 1
        assert len(service.generate(request).ids) == 1


def test_traces_need_the_servers_permission(stories):
    for trace in (api.Trace(selected_tokens=True), api.Trace(prompt_logits=True),
                  api.Trace(step_logits=True)):
        message = refused(stories, api.GenerateRequest(**OK_PROMPT, trace=trace),
                          grpc.StatusCode.PERMISSION_DENIED)
        assert "--enable-trace" in message


def test_what_the_server_cannot_do_is_unimplemented_and_named(stories):
    supported = {chosen.method for chosen in stories.model().methods}
    assert {api.METHOD_FULL, api.METHOD_FASTKV} <= supported
    for name, number in api.Method.items():
        if number != api.METHOD_UNSPECIFIED and number not in supported:
            message = refused(stories, api.GenerateRequest(**with_compression(method=number)),
                              grpc.StatusCode.UNIMPLEMENTED)
            assert name.removeprefix("METHOD_") in message


def test_a_full_queue_is_refused_at_once(needle_cases):
    with Service(MODELS / "needle-tiny", options=["--queue-requests", 1]) as service:
        ids = service.tokenize(needle_cases[131072][0]["prompt"])
        request = api.GenerateRequest(tokens=api.TokenIds(ids=ids), compression=full(),
                                      sampling=sampling(max_tokens=2))
        calls = [service.inference.Generate(request, timeout=120) for _ in range(12)]
        codes = []
        for call in reversed(calls):
            call.add_done_callback(lambda c: codes.append(c.code()))
        for _ in range(200):
            if grpc.StatusCode.RESOURCE_EXHAUSTED in codes:
                break
            threading.Event().wait(0.05)
        refusals = [c for c in calls if not c.is_active()]
        for call in calls:
            call.cancel()
        assert refusals, "twelve long prompts fitted into a queue of one"
        assert all(c.code() == grpc.StatusCode.RESOURCE_EXHAUSTED for c in refusals)
        assert "queue" in refusals[0].details()


def test_what_can_never_fit_is_refused(needle_cases):
    with Service(MODELS / "needle-tiny", options=["--kv-memory", "4M"]) as service:
        ids = service.tokenize(needle_cases[131072][0]["prompt"])
        request = api.GenerateRequest(tokens=api.TokenIds(ids=ids), compression=full(),
                                      sampling=sampling(max_tokens=2))
        assert refused(service, request, grpc.StatusCode.RESOURCE_EXHAUSTED)
        small = fastkv(capacity=64)
        request.tokens.CopyFrom(api.TokenIds(ids=ids[:8000]))
        request.compression.CopyFrom(small)
        assert len(service.generate(request).ids) == 2, "compressed, a long prompt fits"


def test_a_model_without_tokenizer_serves_tokens_only():
    model = ROOT / "tests" / "goldens" / "data" / "llama-gqa" / "model"
    with Service(model, dtype="float32") as service:
        for fields in (prompt(text="hello"),
                       {"chat": api.Chat(messages=[api.ChatMessage(role="user", content="hi")])}):
            assert "tokenizer" in refused(service, api.GenerateRequest(**fields))
        answer = service.generate(tokens=api.TokenIds(ids=[1, 2, 3]),
                                  sampling=sampling(max_tokens=4))
        assert len(answer.ids) == 4 and answer.text == ""


def test_draining_refuses_new_work_and_ends():
    with Service(MODELS / "stories260k") as service:
        left = service.control.Drain(control.DrainRequest(timeout_s=5), timeout=30).unfinished
        assert left == 0 and service.status().draining
        refused(service, api.GenerateRequest(**OK_PROMPT), grpc.StatusCode.UNAVAILABLE)
