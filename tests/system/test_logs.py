"""The log as JSON: every line parses, and each request has its lines, whatever its client sent."""
import threading

import grpc
import pytest

from seen import closing_lines, log_lines, until
from service import MODELS, Service, api, control, fastkv, full, prompt, sampling

TRACE = "0af7651916cd43dd8448eb211c80319c"
PHASES = ["tokenize_ms", "queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "total_ms",
          "collective_ms", "scoring_ms"]


@pytest.fixture(scope="module")
def logged():
    with Service(MODELS / "needle-tiny", workers=2, dtype="float32",
                 options=["--log-format", "json", "--log-level", "debug"]) as service:
        yield service


def metadata(traceparent=f"00-{TRACE}-b7ad6b7169203331-01"):
    return [("traceparent", traceparent)]


def closed(service, **wanted):
    (line,) = until(lambda: closing_lines(service, **wanted))
    return line


def test_a_request_ends_with_one_line_of_all_its_phases(logged, needle_cases):
    request = api.GenerateRequest(request_id="phases", text=needle_cases[4096][0]["prompt"],
                                  sampling=sampling(max_tokens=8), compression=fastkv())
    done = [r.done for r in logged.inference.Generate(request, timeout=60, metadata=metadata())
            if r.WhichOneof("event") == "done"][0]
    line = closed(logged, id="phases")
    assert line["trace_id"] == TRACE and line["status"] == "OK" and line["finish"] == "length"
    assert line["method"] == "FASTKV" and line["phase"] == "decode" and line["level"] == "info"
    assert line["prompt_tokens"] == done.usage.prompt_tokens and line["tokens"] == 8
    assert line["propagated_tokens"] == done.usage.propagated_tokens
    assert line["kv_bytes"] == done.usage.kv_bytes
    assert line["kv_bytes_full"] == done.usage.kv_bytes_full
    assert all(line[phase] > 0 for phase in PHASES)
    for phase in ("prefill_ms", "ttft_ms", "decode_ms", "total_ms", "collective_ms"):
        assert line[phase] == pytest.approx(getattr(done.timing, phase), rel=0.2, abs=50), phase
    assert line["tokenize_ms"] + line["queue_ms"] + line["prefill_ms"] == \
        pytest.approx(line["ttft_ms"], abs=1)
    assert line["ttft_ms"] + line["decode_ms"] == pytest.approx(line["total_ms"], abs=1)


def test_every_line_of_a_request_has_its_id_and_its_trace(logged):
    request = api.GenerateRequest(request_id="both", **prompt(ids=[1, 2, 3]),
                                  sampling=sampling(max_tokens=2))
    list(logged.inference.Generate(request, timeout=60, metadata=metadata()))
    handle = closed(logged, id="both")["handle"]
    lines = [line for line in log_lines(logged) if line.get("handle") == handle]
    assert len(lines) >= 2
    assert all(line["id"] == "both" and line["trace_id"] == TRACE for line in lines)


@pytest.mark.parametrize("bad", ["", "x", f"00-{TRACE}-b7ad6b7169203331", f"00-{'0' * 32}-b7ad6b7169203331-01",
                                 f"00-{TRACE.upper()}-b7ad6b7169203331-01",
                                 f'00-{TRACE[:-1]}"-b7ad6b7169203331-01'])
def test_a_trace_that_is_none_is_not_logged(logged, bad):
    name = f"bad-trace-{hash(bad)}"
    request = api.GenerateRequest(request_id=name, **prompt(ids=[1, 2]),
                                  sampling=sampling(max_tokens=1))
    list(logged.inference.Generate(request, timeout=60, metadata=metadata(bad)))
    assert closed(logged, id=name)["trace_id"] == ""


def test_a_request_id_cannot_forge_a_key_or_a_line(logged):
    evil = '","status":"INTERNAL","x":"\\'
    request = api.GenerateRequest(request_id=evil, **prompt(ids=[1, 2]),
                                  sampling=sampling(max_tokens=1))
    list(logged.inference.Generate(request, timeout=60))
    line = closed(logged, id=evil)
    assert line["status"] == "OK" and "x" not in line
    bad = api.GenerateRequest(request_id="a\nb", **prompt(ids=[1, 2]))
    with pytest.raises(grpc.RpcError):
        list(logged.inference.Generate(bad, timeout=60))
    with pytest.raises(grpc.RpcError):  # unknown names of a client are told in the reason
        logged.generate(request_id="profile", **prompt(ids=[1, 2]), compression=api.Compression(
            method=api.METHOD_HEADKV, headkv=api.HeadKV(profile='x","status":"OK\n\x1b[2J')))
    assert closed(logged, id="profile")["status"] == "UNIMPLEMENTED"


def test_refused_cancelled_late_and_aborted_requests_have_their_line(logged, needle_cases):
    text = needle_cases[32768][0]["prompt"]

    def start(name, **fields):
        return logged.inference.Generate(api.GenerateRequest(
            request_id=name, text=text, compression=full(), **fields), timeout=60)

    with pytest.raises(grpc.RpcError):
        list(start("refused", sampling=sampling(max_tokens=0)))
    call = start("cancelled")
    for response in call:
        if response.progress.phase == api.PHASE_PREFILL:
            break
    call.cancel()
    call = start("aborted")
    next(iter(call))
    logged.control.Abort(control.AbortRequest(request_id="aborted"), timeout=10)
    list(call)
    with pytest.raises(grpc.RpcError):
        logged.generate(request_id="late", text=text, sampling=sampling(max_tokens=100000),
                        timeout=0.3)
    line = closed(logged, id="refused")
    assert line["status"] == "INVALID_ARGUMENT" and "max_tokens" in line["reason"]
    assert line["phase"] == "intake" and line["prefill_ms"] == 0
    line = closed(logged, id="cancelled")
    assert line["status"] == "CANCELLED" and line["phase"] == "prefill" and line["prefill_ms"] > 0
    assert line["decode_ms"] == 0 and line["ttft_ms"] == 0 and line["tokens"] == 0
    line = closed(logged, id="aborted")
    assert line["status"] == "OK" and line["finish"] == "aborted"
    assert closed(logged, id="late")["status"] == "DEADLINE_EXCEEDED"


def test_under_load_each_request_is_closed_once(logged):
    def work(i):
        logged.generate(request_id=f"load-{i}", **prompt(ids=[i + 1, 2, 3]),
                        sampling=sampling(max_tokens=3, n=1 + i % 2))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(16):
        line = closed(logged, id=f"load-{i}")
        assert line["samples"] == 1 + i % 2 and line["tokens"] == 3 * (1 + i % 2)


def test_local_workers_log_in_the_same_form(logged):
    assert "winnow-worker" in {line["program"] for line in log_lines(logged)}


def test_text_lines_are_keys_and_values():
    with Service(MODELS / "needle-tiny", dtype="float32") as service:
        service.generate(request_id='a "b', **prompt(ids=[1, 2]), sampling=sampling(max_tokens=1))
        (line,) = until(lambda: [text for text in service.log_text(0).splitlines()
                                 if "generate: closed" in text])
        assert ' info winnow-coordinator generate: closed id="a \\"b" trace_id="" handle=' in line
        assert ' status="OK" ' in line and " total_ms=" in line
