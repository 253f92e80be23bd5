"""/metrics under load: it parses, and its numbers are those that the client saw."""
import re
import threading

import grpc
import pytest

from seen import fetch, http_port, metrics, until
from service import MODELS, Service, api, control, fastkv, full, prompt, sampling

VLLM_NAMES = {  # of what dashboards for vLLM plot
    "num_requests_running": "gauge", "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge", "cache_config_info": "gauge",
    "prompt_tokens": "counter", "generation_tokens": "counter", "request_success": "counter",
    "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram", "request_decode_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram", "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram", "request_params_max_tokens": "histogram",
    "request_params_n": "histogram", "iteration_tokens_total": "histogram"}
OWN_NAMES = {
    "request_outcomes": "counter", "propagated_token_ratio": "histogram",
    "kept_kv_ratio": "histogram", "rank_step_seconds": "counter",
    "rank_collective_seconds": "counter", "rank_scoring_seconds": "counter",
    "collective_time_share": "gauge", "scoring_time_share": "gauge",
    "rank_step_skew_seconds": "gauge", "step_skew_seconds": "histogram",
    "worker_heartbeat_age_seconds": "gauge", "worker_ready": "gauge",
    "kv_cache_promised_perc": "gauge", "groups_ready": "gauge", "draining": "gauge"}
CODES = {"OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
         "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
         "UNAVAILABLE", "UNAUTHENTICATED"}


@pytest.fixture(scope="module")
def watched():
    with Service(MODELS / "needle-tiny", workers=2, dtype="float32",
                 options=["--http", "127.0.0.1:0"]) as service:
        yield service


def outcomes(seen):
    return {code: seen.value("winnow:request_outcomes_total", code=code) for code in CODES}


def run_load(service, requests):
    """All at once, each on a thread; what each ended with: an Answer or a status code."""
    ends = [None] * len(requests)

    def work(i):
        try:
            ends[i] = service.generate(requests[i])
        except grpc.RpcError as error:
            ends[i] = error.code().name

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(metrics(service))
    return ends, seen


def test_every_name_is_there_with_its_type_and_the_models_name(watched):
    watched.generate(**prompt(ids=[1, 2, 3]), sampling=sampling(max_tokens=2))
    seen = metrics(watched)
    for name, kind in {**VLLM_NAMES, **OWN_NAMES}.items():
        assert seen.families[f"winnow:{name}"].type == kind, name
    assert all(dict(labels)["model_name"] == "needle-tiny" for _, labels in seen.samples)
    (cache,) = [dict(labels) for name, labels in seen.samples if name == "winnow:cache_config_info"]
    assert cache["block_size"] == "32" and int(cache["num_blocks"]) > 0
    assert cache["cache_dtype"] == "float32" and cache["tensor_parallel_size"] == "2"


def test_what_is_counted_is_what_the_client_saw(watched, needle_cases):
    before = metrics(watched)
    requests = []
    for i in range(12):
        case = needle_cases[(256, 512, 1024)[i % 3]][i]
        requests.append(api.GenerateRequest(
            text=case["prompt"], sampling=sampling(max_tokens=4 + i, n=2 if i == 5 else 1),
            compression=full() if i % 2 else fastkv(tsp_rate=0.2, retain_rate=0.1)))
    bad = api.GenerateRequest(**prompt(ids=[]))
    late = api.GenerateRequest(**prompt(ids=[5] * 100), sampling=sampling(max_tokens=1 << 20))
    ends, during = run_load(watched, requests + [bad, late])
    answers, codes = ends[:12], ends[12:]
    assert codes == ["INVALID_ARGUMENT", "OUT_OF_RANGE"]
    after = metrics(watched)

    def grew(name, **labels):
        return after.value(name, **labels) - before.value(name, **labels)

    samples = 13  # one request had two
    assert grew("winnow:prompt_tokens_total") == sum(a.usage.prompt_tokens for a in answers)
    assert grew("winnow:generation_tokens_total") == sum(len(a.ids) for a in answers)
    assert grew("winnow:request_success_total", finished_reason="length") == samples
    assert grew("winnow:request_outcomes_total", code="OK") == 12
    assert grew("winnow:request_outcomes_total", code="INVALID_ARGUMENT") == 1
    assert grew("winnow:request_outcomes_total", code="OUT_OF_RANGE") == 1
    assert sum(outcomes(after).values()) - sum(outcomes(before).values()) == 14
    assert grew("winnow:time_to_first_token_seconds_count") == 12
    assert grew("winnow:inter_token_latency_seconds_count") == \
        sum(len(a.ids) for a in answers) - samples
    assert grew("winnow:request_generation_tokens_sum") == sum(len(a.ids) for a in answers)
    assert grew("winnow:iteration_tokens_total_sum") >= sum(len(a.ids) for a in answers)
    assert grew("winnow:propagated_token_ratio_count", method="FASTKV") == 6
    assert grew("winnow:propagated_token_ratio_sum", method="FULL") == 7
    assert grew("winnow:kept_kv_ratio_sum", method="FULL") == pytest.approx(7)
    fast = [a.usage for a in answers[::2]]
    assert grew("winnow:kept_kv_ratio_sum", method="FASTKV") == \
        pytest.approx(sum(u.kv_bytes / u.kv_bytes_full for u in fast))
    single = [a for i, a in enumerate(answers) if i != 5]
    ttft = sum(a.timing.ttft_ms for a in answers) / 1000
    assert grew("winnow:time_to_first_token_seconds_sum") == pytest.approx(ttft, rel=0.2, abs=0.1)
    total = sum(a.timing.total_ms for a in single + 2 * [answers[5]]) / 1000
    assert grew("winnow:e2e_request_latency_seconds_sum") == pytest.approx(total, rel=0.2, abs=0.1)
    assert max(m.value("winnow:num_requests_running") for m in during) >= 2
    assert after.value("winnow:num_requests_running") == 0
    assert after.value("winnow:num_requests_waiting") == 0


def test_counters_and_buckets_never_fall_while_they_are_read(watched, needle_cases):
    requests = [api.GenerateRequest(text=needle_cases[256][i]["prompt"],
                                    sampling=sampling(max_tokens=30)) for i in range(6)]
    _, during = run_load(watched, requests)
    for earlier, later in zip(during, during[1:]):
        for name, family in later.families.items():
            if family.type == "gauge":
                continue
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert sample.value >= earlier.samples.get(key, 0), key
    for name, family in during[-1].families.items():
        if family.type == "histogram":
            buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
            assert buckets and all(value >= 0 for value in buckets)


def test_each_rank_tells_its_times_its_skew_and_its_heartbeat(watched, needle_cases):
    watched.generate(text=needle_cases[4096][0]["prompt"], sampling=sampling(max_tokens=8),
                     compression=fastkv())
    seen = metrics(watched)
    for rank in "01":
        steps = seen.value("winnow:rank_step_seconds_total", group="0", rank=rank)
        collective = seen.value("winnow:rank_collective_seconds_total", group="0", rank=rank)
        scoring = seen.value("winnow:rank_scoring_seconds_total", group="0", rank=rank)
        assert 0 < collective < steps and 0 < scoring < steps
        assert 0 < seen.value("winnow:collective_time_share", rank=rank) < 1
        assert 0 < seen.value("winnow:scoring_time_share", rank=rank) < 1
        assert 0 <= seen.value("winnow:worker_heartbeat_age_seconds", rank=rank) < 5
        assert seen.value("winnow:worker_ready", rank=rank) == 1
    assert min(seen.series("winnow:rank_step_skew_seconds")) >= 0
    assert seen.value("winnow:step_skew_seconds_count") > 0


def test_kv_in_use_is_seen_and_given_back(watched, needle_cases):
    call = watched.inference.Generate(
        api.GenerateRequest(text=needle_cases[4096][1]["prompt"], compression=full(),
                            sampling=sampling(max_tokens=100000)), timeout=600)
    for response in call:
        if response.WhichOneof("event") == "tokens":
            break
    until(lambda: 0 < metrics(watched).value("winnow:kv_cache_usage_perc") < 1)
    assert 0 < metrics(watched).value("winnow:kv_cache_promised_perc") < 1
    call.cancel()
    until(lambda: metrics(watched).value("winnow:kv_cache_usage_perc") == 0)
    until(lambda: metrics(watched).value("winnow:kv_cache_promised_perc") == 0)
    assert outcomes(metrics(watched))["CANCELLED"] == 1


def test_an_aborted_and_a_late_request_are_counted_as_what_they_are(watched, needle_cases):
    before = metrics(watched)
    text = needle_cases[32768][0]["prompt"]
    call = watched.inference.Generate(api.GenerateRequest(request_id="gone", text=text), timeout=60)
    next(iter(call))
    assert watched.control.Abort(control.AbortRequest(request_id="gone"), timeout=10).found
    list(call)
    with pytest.raises(grpc.RpcError) as error:
        watched.generate(text=text, sampling=sampling(max_tokens=100000), timeout=0.3)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: outcomes(metrics(watched))["DEADLINE_EXCEEDED"] ==
          outcomes(before)["DEADLINE_EXCEEDED"] + 1)
    after = metrics(watched)
    assert outcomes(after)["OK"] == outcomes(before)["OK"] + 1
    name = "winnow:request_success_total"
    assert after.value(name, finished_reason="abort") == before.value(name,
                                                                      finished_reason="abort") + 1


def test_no_label_is_what_a_client_sent(watched):
    watched.generate(request_id="very-special", **prompt(ids=[1, 2, 3]),
                     sampling=sampling(max_tokens=1))
    seen = metrics(watched)
    assert "very-special" not in seen.text
    names = {label for _, labels in seen.samples for label, _ in labels}
    assert names <= {"model_name", "le", "group", "rank", "method", "code", "finished_reason",
                     "block_size", "num_blocks", "tensor_parallel_size", "max_model_len",
                     "cache_dtype"}
    before = len(seen.samples)
    for i in range(20):
        watched.generate(request_id=f"r{i}", **prompt(ids=[i + 1, 2, 3]),
                         sampling=sampling(max_tokens=1))
    assert len(metrics(watched).samples) == before


def test_probes_over_http_say_what_health_says(watched):
    port = http_port(watched)
    assert fetch(port, "/health/live") == (200, "alive\n")
    assert fetch(port, "/health/ready") == (200, "ready\n")
    assert fetch(port, "/no/such")[0] == 404


def test_without_the_option_nothing_listens(needle):
    assert not re.search("web: listening", needle.log_text(0))
