"""Abort in every phase, names that are taken, GetStatus under load, and clients that do not read."""
import os
import time

import grpc
import pytest

from seen import closing_lines, metrics, until
from service import (MODELS, REPLY_LIMIT, Client, Service, api, control, full, inference_pb2_grpc,
                     prompt, sampling)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def one():
    """One worker with room for one request at a time, and a JSON log."""
    with Service(MODELS / "needle-tiny", dtype="float32",
                 options=["--kv-memory", "400M", "--log-format", "json"]) as service:
        yield service


def generate(service, name, ids, max_tokens, **fields):
    request = api.GenerateRequest(request_id=name, **prompt(ids=ids), compression=full(),
                                  sampling=sampling(max_tokens=max_tokens), **fields)
    return service.inference.Generate(request, timeout=300)


def abort(service, name):
    return service.control.Abort(control.AbortRequest(request_id=name), timeout=10).found


def rest(call):
    """The Done of an aborted request, which is the last that comes, and what came before it."""
    responses = list(call)
    assert responses[-1].WhichOneof("event") == "done"
    return responses[-1].done, responses[:-1]


def await_phase(call, phase):
    for response in call:
        if response.progress.phase == phase:
            return
    raise AssertionError(f"it ended before phase {phase}")


def await_token(call):
    return next(response.tokens for response in call if response.WhichOneof("event") == "tokens")


def test_an_abort_in_the_queue_ends_what_never_ran(one, needle_cases):
    ids = one.tokenize(needle_cases[131072][0]["prompt"])
    first = generate(one, "runs", ids, 2)
    await_phase(first, api.PHASE_PREFILL)
    waiting = generate(one, "waits", ids, 2)
    assert next(iter(waiting)).progress.queue_position == 1
    until(lambda: one.status().queued_requests == 1)
    assert one.status().queued_tokens == len(ids)
    begin = time.monotonic()
    assert abort(one, "waits")
    done, _ = rest(waiting)
    assert time.monotonic() - begin < 3
    assert done.finish_reason == api.FINISH_ABORTED and done.usage.completion_tokens == 0
    assert done.timing.queue_ms > 0 and done.timing.prefill_ms == 0
    assert one.status().queued_requests == 0 and one.status().queued_tokens == 0
    assert not abort(one, "waits"), "it is gone"
    assert abort(one, "runs")
    done, _ = rest(first)
    assert done.finish_reason == api.FINISH_ABORTED and done.usage.completion_tokens == 0
    assert done.timing.prefill_ms > 0
    until(lambda: not any(one.pages_used()))
    phases = {line["id"]: line["phase"] for line in closing_lines(one, finish="aborted")}
    assert phases["waits"] == "queue" and phases["runs"] == "prefill"


def test_an_abort_while_decoding_keeps_what_was_said(one):
    call = generate(one, "talks", [5] * 50, 100000)
    tokens = list(await_token(call).ids)
    assert abort(one, "talks")
    done, before = rest(call)
    tokens += [i for r in before for i in r.tokens.ids]
    assert done.finish_reason == api.FINISH_ABORTED
    assert done.usage.completion_tokens == len(tokens) < 100000
    until(lambda: not any(one.pages_used()))


def test_an_abort_ends_every_sample(one):
    request = api.GenerateRequest(request_id="many", **prompt(ids=[5] * 50),
                                  sampling=sampling(max_tokens=20000, n=4, temperature=1.0))
    call = one.inference.Generate(request, timeout=300)
    await_token(call)
    assert abort(one, "many")
    dones = [r.done for r in call if r.WhichOneof("event") == "done"]
    assert sorted(done.index for done in dones) == [0, 1, 2, 3]
    assert {done.finish_reason for done in dones} == {api.FINISH_ABORTED}


@pytest.mark.parametrize("name,word", [("", "empty"), ("x" * 129, "129"), ("tab\t", "printable"),
                                       ("père", "printable")])
def test_an_abort_of_no_possible_name_is_invalid(one, name, word):
    with pytest.raises(grpc.RpcError) as error:
        abort(one, name)
    assert error.value.code() == INVALID and word in error.value.details()


def test_a_name_is_taken_in_the_queue_and_while_decoding_and_free_afterwards(one, needle_cases):
    ids = one.tokenize(needle_cases[131072][0]["prompt"])
    long = generate(one, "long", ids, 2)
    await_phase(long, api.PHASE_PREFILL)
    queued = generate(one, "name", ids, 2)
    next(iter(queued))

    def is_refused():
        with pytest.raises(grpc.RpcError) as error:
            list(generate(one, "name", [1, 2], 1))
        return error.value.code() == INVALID and '"name"' in error.value.details()

    assert is_refused()
    abort(one, "name")
    rest(queued)
    decoding = None
    assert abort(one, "long")
    rest(long)
    decoding = generate(one, "name", [5] * 50, 100000)
    await_token(decoding)
    assert is_refused()
    abort(one, "name")
    rest(decoding)
    assert len(one.generate(request_id="name", **prompt(ids=[1, 2]),
                            sampling=sampling(max_tokens=1)).ids) == 1


def test_get_status_counts_what_runs_waits_ended_and_failed(one, needle_cases):
    ids = one.tokenize(needle_cases[131072][0]["prompt"])
    before = one.status()
    assert before.version and before.uptime_s > 0 and not before.draining
    running = generate(one, "", ids, 2)
    await_phase(running, api.PHASE_PREFILL)
    waiting = generate(one, "", ids, 2)
    next(iter(waiting))
    until(lambda: one.status().queued_requests == 1)
    now = one.status()
    assert now.running_requests == 1 and now.queued_tokens == len(ids)
    (group,) = now.groups
    assert group.running_requests == 1 and group.state == "ready" and group.epoch >= 1
    (worker,) = group.workers
    assert worker.state == "ready" and worker.host and worker.device.startswith("cpu")
    assert worker.memory_peak_bytes == 0 or 1 << 20 < worker.memory_peak_bytes < 8 << 30
    assert 0 <= worker.heartbeat_age_s < 5 and 0 < worker.kv_bytes_total <= 400 << 20
    assert worker.last_error == ""
    waiting.cancel()
    running.cancel()
    one.generate(**prompt(ids=[1, 2]), sampling=sampling(max_tokens=1))
    with pytest.raises(grpc.RpcError):
        one.generate(**prompt(ids=[5] * 50), sampling=sampling(max_tokens=100000), timeout=0.3)
    after = until(lambda: (s := one.status()).running_requests == s.queued_requests == 0 and s)
    assert after.completed_requests == before.completed_requests + 1
    assert after.failed_requests <= before.failed_requests + 1, "cancels are nobody's failure"
    assert after.uptime_s > before.uptime_s


# ---- clients that do not read ----


class Narrow:
    """A channel that takes little ahead of its reader."""

    def __init__(self, service):
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535),
                   ("grpc.max_receive_message_length", REPLY_LIMIT)]
        self.channel = grpc.insecure_channel(service.address, options=options)
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)


def resident(service):
    with open(f"/proc/{service.process.pid}/statm") as pages:
        return int(pages.read().split()[1]) * PAGE


def talk(client, name, **fields):
    """With the likeliest tokens, unless told otherwise: half a KiB for each token."""
    chosen = sampling(**{"max_tokens": 4000, "logprobs": 20, **fields})
    request = api.GenerateRequest(request_id=name, **prompt(ids=[5] * 20), compression=full(),
                                  sampling=chosen)
    return client.inference.Generate(request, timeout=300)


def deaf_options(send_timeout_ms):
    return ["--http", "127.0.0.1:0", "--log-format", "json", "--send-timeout-ms", send_timeout_ms]


def test_a_client_that_is_far_behind_is_refused_the_rest_and_its_memory_is_bounded():
    with Service(MODELS / "stories260k", dtype="float32", options=deaf_options(100000)) as service:
        service.generate(**prompt(ids=[1, 2]), sampling=sampling(max_tokens=2))
        before = resident(service)
        narrow = Narrow(service)
        call = talk(narrow, "deaf", n=64, max_tokens=480, logprobs=0)
        line = until(lambda: closing_lines(service, id="deaf"), 120)[0]
        assert line["status"] == "RESOURCE_EXHAUSTED" and "unread" in line["reason"]
        assert resident(service) - before < 64 << 20
        until(lambda: not any(service.pages_used()))
        assert service.status().running_requests == 0
        with pytest.raises(grpc.RpcError) as error:
            list(call)  # now it listens: to what was sent, and why no more came
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "unread" in error.value.details()
        assert metrics(service).value("winnow:request_outcomes_total",
                                      code="RESOURCE_EXHAUSTED") == 1
        narrow.channel.close()


def test_a_client_that_never_reads_is_cut_off_in_time():
    with Service(MODELS / "needle-tiny", dtype="float32", options=deaf_options(500)) as service:
        narrow = Narrow(service)
        call = talk(narrow, "deaf")
        line = until(lambda: closing_lines(service, id="deaf"), 120)[0]
        assert line["status"] == "CANCELLED" and line["phase"] == "decode"
        assert "its client reads nothing" in service.log_text(0)
        until(lambda: not any(service.pages_used()))
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                      grpc.StatusCode.CANCELLED)
        assert len(service.generate(**prompt(ids=[1, 2]), sampling=sampling(max_tokens=2)).ids) == 2
        narrow.channel.close()


def test_a_client_that_reads_slowly_but_keeps_up_gets_everything():
    with Service(MODELS / "needle-tiny", dtype="float32",
                 options=["--send-timeout-ms", 2000]) as service:
        narrow = Narrow(service)
        request = api.GenerateRequest(**prompt(ids=[5] * 20), compression=full(),
                                      sampling=sampling(max_tokens=700, logprobs=20))
        ids = []
        for i, response in enumerate(narrow.inference.Generate(request, timeout=300)):
            ids.extend(response.tokens.ids)
            if i in (100, 400):
                time.sleep(1)  # it is slow: that is what is tested
        assert len(ids) == 700
        narrow.channel.close()


def test_a_second_client_is_not_held_up_by_one_that_does_not_read(one):
    narrow, other = Narrow(one), Client(one.address)
    deaf = talk(narrow, "deaf-too", n=4)
    until(lambda: one.status().running_requests == 1)
    for _ in range(2):
        answer = other.generate(**prompt(ids=[1, 2, 3]), sampling=sampling(max_tokens=10))
        assert len(answer.ids) == 10
    deaf.cancel()
    until(lambda: one.status().running_requests == 0)
    narrow.channel.close()
    other.close()
