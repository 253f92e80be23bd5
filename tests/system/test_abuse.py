"""What no honest client does, at both ports: the service stays, and answers the next one."""
import contextlib
import os
import random
import resource
import socket
import threading
import time
import zlib

import pytest

from http2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM,
                   SETTINGS, Connection, frame, message, request_headers, literal)
from service import MODELS, NOT_SERVING, Client, Service, api, grpc, prompt, sampling
from winnow.v1 import worker_pb2 as fleet

STORIES = MODELS / "stories260k"
GENERATE, GET_MODEL = "/winnow.v1.Inference/Generate", "/winnow.v1.Inference/GetModel"
CLOSED_S = 60  # in which a connection that says nothing is closed: 10 s or 30 s, and patience


def worker_address(service):
    line = "worker plane listens on "
    deadline = time.monotonic() + 10
    while line not in service.log_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return service.log_text().split(line)[1].split()[0]


@pytest.fixture(scope="module")
def victim():
    with Service(STORIES, workers=1, options=["--worker-listen", "127.0.0.1:0"]) as service:
        service.worker_plane = worker_address(service)
        service.wanted = service.generate(**prompt(ids=[1, 5]), sampling=sampling(max_tokens=4)).ids
        yield service


def still_serves(service):
    assert service.alive() and len(service.workers()) == 1
    with contextlib.closing(Client(service.address)) as client:  # over a connection of its own
        answer = client.generate(**prompt(ids=[1, 5]), sampling=sampling(max_tokens=4), timeout=60)
    assert answer.ids == service.wanted


def drain(connection):
    with contextlib.suppress(OSError):
        connection.read_until_closed()


def memory_mib(service):
    with open(f"/proc/{service.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


# Connections that say too little, opened first and looked at last: waiting for their end is free.
SLOW = {
    "nothing": b"",
    "half a greeting": PREFACE[:10],
    "half a frame": PREFACE + frame(SETTINGS, 0, 0)[:5],
    "a header without an end": PREFACE + frame(SETTINGS, 0, 0)
    + frame(HEADERS, 0, 1, request_headers(GET_MODEL)),
    "half a message": PREFACE + frame(SETTINGS, 0, 0)
    + frame(HEADERS, END_HEADERS, 1, request_headers(GENERATE)) + frame(DATA, 0, 1, b"\0\0"),
}


@pytest.fixture(scope="module", autouse=True)
def slow(victim):
    connections = {}
    for plane in ("client", "worker"):
        address = victim.address if plane == "client" else victim.worker_plane
        for name, begin in SLOW.items():
            connection = Connection(address, hello=False, timeout=CLOSED_S)
            connection.send(begin)
            connections[plane, name] = connection
    yield connections
    for connection in connections.values():
        connection.socket.close()


@pytest.mark.parametrize("plane", ["client", "worker"])
def test_bytes_of_any_kind_end_their_connection_only(victim, plane):
    address = victim.address if plane == "client" else victim.worker_plane
    noise = random.Random(7)
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
                 b"\0" * 1000, noise.randbytes(5000), PREFACE + noise.randbytes(5000),
                 PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1,
                                                         noise.randbytes(500))):
        with Connection(address, hello=False) as connection:
            with contextlib.suppress(ConnectionError):
                connection.send(data)
                connection.socket.shutdown(socket.SHUT_WR)
                connection.read_until_closed()
    still_serves(victim)


METHODS = [f"/winnow.v1.Inference/{m}" for m in ("Generate", "Tokenize", "Detokenize", "GetModel")]
METHODS += [f"/winnow.v1.Control/{m}" for m in ("Abort", "GetStatus")]
METHODS += ["/grpc.health.v1.Health/Check"]


def test_messages_of_random_bytes_are_refused_or_answered(victim):
    noise = random.Random(11)
    with contextlib.closing(Client(victim.address)) as client:
        for i in range(400):
            call = client.channel.unary_stream(METHODS[i % len(METHODS)])
            with contextlib.suppress(grpc.RpcError):
                list(call(noise.randbytes(noise.choice([1, 2, 3, 10, 100, 3000])), timeout=60))
    still_serves(victim)


def test_a_small_message_does_not_unpack_to_a_large_one(victim):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(56 << 20)) + packer.flush()
    data = message(bomb, compressed=True)
    assert len(data) < 65535  # the window of a connection: all of it can be sent
    before = memory_mib(victim)
    with Connection(victim.address) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1,
                              request_headers(GENERATE, ("grpc-encoding", "gzip"))))
        for at in range(0, len(data), 16000):
            connection.send(frame(DATA, 0, 1, data[at:at + 16000]))
        connection.send(frame(DATA, END_STREAM, 1))
        reply = b""
        while b"grpc-status" not in reply:
            chunk = connection.socket.recv(65536)
            assert chunk, "closed without a status"
            reply += chunk
    assert b"grpc-status\x010" not in reply
    assert memory_mib(victim) - before < 30
    still_serves(victim)


@pytest.mark.parametrize("fields", [[("te", "x")], [("grpclb_client_stats", "x")], [(":scheme", "x")],
                                    []])
def test_metadata_over_the_limit_ends_the_call(victim, fields):
    with Connection(victim.address) as connection:
        connection.socket.recv(65536)
        connection.send(frame(SETTINGS, 1, 0))
        headers = request_headers(GET_MODEL, *fields) + b"".join(
            literal(f"pad{i}", "p" * 1000) for i in range(15))
        connection.send(frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1,
                                                                       message(b"")))
        reply = b""
        with contextlib.suppress(ConnectionError):
            while b"grpc-status" not in reply:
                chunk = connection.socket.recv(65536)
                if not chunk:
                    break
                reply += chunk
        assert b"grpc-status\x010" not in reply
    still_serves(victim)


def test_a_flood_of_headers_is_gone_with_its_connection(victim):
    flood = frame(CONTINUATION, 0, 1, literal("pad", "p" * 16000)) * 64
    with Connection(victim.address) as connection:
        connection.send(frame(HEADERS, 0, 1, request_headers(GET_MODEL)))
        with contextlib.suppress(ConnectionError):
            for _ in range(32):  # 32 MiB
                connection.send(flood)
        still_serves(victim)
    still_serves(victim)


def test_calls_that_are_reset_at_once_leave_nothing(victim):
    headers = request_headers(GENERATE)
    before = victim.status().running_requests
    with Connection(victim.address) as connection:
        threading.Thread(target=drain, args=(connection,), daemon=True).start()
        request = api.GenerateRequest(**prompt(ids=[1]), sampling=sampling(max_tokens=200))
        body = message(request.SerializeToString())
        for batch in range(100):
            out = b""
            for i in range(100):
                stream = 2 * (100 * batch + i) + 1
                out += frame(HEADERS, END_HEADERS, stream, headers)
                if i % 2:
                    out += frame(DATA, END_STREAM, stream, body)
                out += frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
            connection.send(out)
        still_serves(victim)
    deadline = time.monotonic() + 60
    while victim.status().running_requests > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    still_serves(victim)


def test_a_flood_of_pings_is_answered_and_harms_nobody(victim):
    with Connection(victim.address) as connection:
        for _ in range(100):
            connection.send(frame(PING, 0, 0, b"12345678") * 100)
            connection.socket.recv(1 << 20)
        still_serves(victim)


@pytest.mark.parametrize("timeout", ["0n", "1n", "1u", "99999999H", "-1S", "1"])
def test_deadlines_of_any_kind_end_in_a_status_or_an_answer(victim, timeout):
    request = api.GenerateRequest(**prompt(ids=[1]), sampling=sampling(max_tokens=2))
    with Connection(victim.address) as connection:
        connection.send(
            frame(HEADERS, END_HEADERS, 1, request_headers(GENERATE, ("grpc-timeout", timeout)))
            + frame(DATA, END_STREAM, 1, message(request.SerializeToString())))
        reply = b""
        while b"grpc-status" not in reply and b"\x00\x00\x04\x03" not in reply:  # or RST_STREAM
            chunk = connection.socket.recv(65536)
            if not chunk:
                break
            reply += chunk
    still_serves(victim)


def test_when_descriptors_run_out_only_the_newest_connections_suffer(victim):
    pid, (soft, hard) = victim.process.pid, resource.prlimit(victim.process.pid,
                                                             resource.RLIMIT_NOFILE)
    assert soft == min(hard, 65536)  # what the coordinator asks for at its start
    victim.status()  # over a connection that is there
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (128, hard))
    host, port = victim.address.rsplit(":", 1)
    crowd = [socket.create_connection((host, int(port)), 10) for _ in range(300)]
    try:
        with pytest.raises(grpc.RpcError), contextlib.closing(Client(victim.address)) as late:
            late.inference.GetModel(api.GetModelRequest(), timeout=5)
        assert victim.status().uptime_s > 0
    finally:
        for connection in crowd:
            connection.close()
    deadline = time.monotonic() + 30
    while len(os.listdir(f"/proc/{pid}/fd")) > 90:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    still_serves(victim)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert "too few descriptors left" in victim.log_text()


# ---- a worker that is none

HELLO = {"host": "here", "device": "cpu", "process": 1}


def join(address, *messages):
    """What the coordinator answers to a stream of these messages, and how it ends."""
    over = threading.Event()

    def keep_open():
        yield from messages
        over.wait(60)

    with contextlib.closing(Client(address)) as client:
        call = client.channel.stream_stream("/winnow.v1.Fleet/Join")(keep_open(), timeout=60)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        over.set()
        return error.value.code(), error.value.details()


def hello(**fields):
    return fleet.WorkerMessage(
        hello=fleet.WorkerHello(**{**HELLO, **fields})).SerializeToString()


@pytest.mark.parametrize("messages", [
    [b"\xff" * 100], [b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"], [b""], [b"\x0a\x05\x0a"],
    [b"\x7a\x00"],
    [hello(build="other")], [hello(host="h" * (8 << 20), device="\x1b[31m", build="b" * 5000)],
    [fleet.WorkerMessage(beat=fleet.WorkerBeat(epoch=1)).SerializeToString(),
     fleet.WorkerMessage(result=fleet.StepResult(epoch=1, number=1)).SerializeToString(),
     fleet.WorkerMessage(fault=fleet.WorkerFault(epoch=1, message="x")).SerializeToString(),
     hello(build="other")],
    [fleet.WorkerMessage(store=fleet.StoreEntry(epoch=1, key="k" * 5000)).SerializeToString()],
], ids=range(9))
def test_what_is_no_worker_is_told_so_and_changes_nothing(victim, messages):
    code, text = join(victim.worker_plane, *messages)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED,
                    grpc.StatusCode.FAILED_PRECONDITION), text
    assert text and "\x1b" not in victim.log_text()
    still_serves(victim)


def test_a_hello_with_the_build_but_another_model_is_refused(victim):
    version = victim.status().version
    code, text = join(victim.worker_plane, hello(build=version, fixed_rank=0, model_fingerprint=5))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "model" in text, text
    still_serves(victim)


# ---- the end of the slow ones

@pytest.mark.parametrize("plane", ["client", "worker"])
@pytest.mark.parametrize("name", SLOW)
def test_a_connection_that_says_too_little_is_closed(victim, slow, plane, name):
    assert victim.check() != NOT_SERVING
    slow[plane, name].read_until_closed()  # TimeoutError: it was not
