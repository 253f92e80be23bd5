"""What stands beside Generate: Tokenize, GetModel, GetStatus, health, reflection."""
import json
import threading
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import \
    ProtoReflectionDescriptorDatabase

from service import MODELS, SERVING, SHARED, api, grpc

SERVICES = {"winnow.v1.Inference", "winnow.v1.Control", "grpc.health.v1.Health"}


def golden_encodings(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tokenize_and_detokenize_agree_with_the_recorded_encodings(stories):
    for case in golden_encodings(MODELS / "stories260k" / "golden_tokens.jsonl")[:200]:
        if "\0" in case["text"]:
            continue
        assert stories.tokenize(case["text"], special=False) == case["ids"]
        assert stories.tokenize(case["text"]) == case["ids_with_template"]
        assert stories.detokenize(case["ids"]) == case["decoded"]
        assert stories.detokenize(case["ids"], skip_special=True) == case["decoded_skip_special"]


@pytest.mark.skipif(not SHARED, reason="more encodings are in WINNOW_TEST_DATA only")
def test_the_retrieval_models_tokenizer_agrees_with_the_recorded_encodings(needle):
    for case in golden_encodings(Path(SHARED) / "tokenizers" / "needle-tiny" / "golden.jsonl")[:200]:
        if "\0" in case["text"]:
            continue
        assert needle.tokenize(case["text"], special=False) == case["ids"]
        assert needle.detokenize(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("text", ["", " ", "Call sign lemon tango five kilo.", "naïve 東京 🙂\n\n\t x",
                                  "a" * 5000, "\u0301 alone", "line\r\nline"])
def test_text_survives_a_round_trip(needle, text):
    assert needle.detokenize(needle.tokenize(text, special=False)) == text
    ids = needle.tokenize(text)
    assert needle.detokenize(ids, skip_special=True) == text


def test_get_model_describes_the_model(needle):
    config = json.loads((MODELS / "needle-tiny" / "config.json").read_text())
    model = needle.model()
    assert model.architecture == config["architectures"][0]
    assert model.layers == config["num_hidden_layers"]
    assert model.hidden_size == config["hidden_size"]
    assert model.query_heads == config["num_attention_heads"]
    assert model.kv_heads == config["num_key_value_heads"]
    assert model.head_dim == config["head_dim"]
    assert model.vocab_size == config["vocab_size"]
    assert model.max_context == config["max_position_embeddings"]
    assert model.tensor_parallel == 2
    assert model.dtype == "float32"
    assert list(model.eos_ids) == [config["eos_token_id"]]
    assert model.default_method == api.METHOD_FASTKV
    by_method = {chosen.method: chosen for chosen in model.methods}
    chosen = by_method[api.METHOD_FASTKV]
    assert chosen.window == 8 and chosen.kernel == 7 and chosen.pooling == api.POOLING_MAX
    assert chosen.retain_rate == pytest.approx(0.1)
    assert chosen.granularity == api.GRANULARITY_KV
    assert chosen.group_reduce == api.GROUP_SUM and chosen.reduce_stage == api.REDUCE_POST
    assert chosen.fastkv.tsp_layer == (model.layers - 1) // 2
    assert chosen.fastkv.tsp_rate == pytest.approx(0.2)
    assert api.METHOD_FULL in by_method


def test_get_status_lists_the_workers(needle):
    status = needle.status()
    assert status.version and status.uptime_s > 0 and not status.draining
    (group,) = status.groups
    assert group.state == "ready"
    assert [worker.rank for worker in group.workers] == [0, 1]
    for worker in group.workers:
        assert worker.state == "ready" and worker.kv_bytes_total > 0 and worker.host
        assert worker.heartbeat_age_s < 10
    assert len(needle.workers()) == 2, "local workers are direct children"


@pytest.mark.parametrize("name", ["", "liveness", "readiness", "winnow.v1.Inference"])
def test_health_check_knows_the_service(needle, name):
    assert needle.check(name) == SERVING


def test_health_check_of_an_unknown_service_is_not_found(needle):
    with pytest.raises(grpc.RpcError) as error:
        needle.check("no.such.Service")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_watch_begins_with_the_state_and_knows_unknown_services(needle):
    known = needle.health.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=30)
    assert next(iter(known)).status == SERVING
    known.cancel()
    unknown = needle.health.Watch(health_pb2.HealthCheckRequest(service="no.such"), timeout=30)
    assert next(iter(unknown)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_lists_and_describes_every_service(needle):
    database = ProtoReflectionDescriptorDatabase(needle.channel)
    names = set(database.get_services())
    assert SERVICES <= names
    assert {"grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection"} <= names
    pool = descriptor_pool.DescriptorPool(database)
    for name in names:
        service = pool.FindServiceByName(name)
        assert service.methods
        for method in service.methods:
            assert method.input_type.full_name and method.output_type.full_name
    generate = pool.FindServiceByName("winnow.v1.Inference").FindMethodByName("Generate")
    ours = api.DESCRIPTOR.services_by_name["Inference"].methods_by_name["Generate"]
    for got, wanted in ((generate.input_type, ours.input_type),
                        (generate.output_type, ours.output_type)):
        assert [(f.name, f.number, f.type) for f in got.fields] == \
            [(f.name, f.number, f.type) for f in wanted.fields]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_answer_each_kind_of_question(needle, version):
    call = needle.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    ask = reflection_pb2.ServerReflectionRequest
    questions = [ask(list_services=""),
                 ask(file_containing_symbol="winnow.v1.GenerateRequest"),
                 ask(file_containing_symbol="winnow.v1.Inference.Generate"),
                 ask(file_containing_symbol="no.such.Symbol"),
                 ask(file_by_filename="no/such/file.proto")]
    answers = [r.WhichOneof("message_response") for r in call(iter(questions), timeout=30)]
    assert answers == ["list_services_response", "file_descriptor_response",
                       "file_descriptor_response", "error_response", "error_response"]


def test_an_unknown_method_is_unimplemented(needle):
    call = needle.channel.unary_unary("/winnow.v1.Inference/NoSuchMethod")
    with pytest.raises(grpc.RpcError) as error:
        call(b"", timeout=10)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_clients_at_once_are_served(stories):
    failures = []

    def work(number):
        try:
            text = f"Once upon a time {number}"
            for _ in range(5):
                assert stories.detokenize(stories.tokenize(text), skip_special=True) == text
        except Exception as error:  # reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
