"""service.py - start winnow, talk to it through the public API with stock grpcio, stop it.

The client code is generated from proto/winnow/v1 when first imported and kept in .cache/protos.
A Service never outlives the program that started it: the coordinator is told to stop when its
parent dies, and its local workers do the same.
"""
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
BUILD = Path(os.environ.get("WINNOW_BUILD", ROOT / "build"))
SHARED = os.environ.get("WINNOW_TEST_DATA")  # more models, goldens and tokenizers, where they exist
REPLY_LIMIT = 256 << 20
START_S, STOP_S = 120, 15


def _generate_protos():
    """Python modules of proto/winnow/v1, made again whenever a file there changes."""
    sources = sorted((ROOT / "proto" / "winnow" / "v1").glob("*.proto"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    out = ROOT / ".cache" / "protos" / digest
    if not out.exists():
        from grpc_tools import protoc

        out.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=out.parent)
        code = protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={made}",
                            f"--grpc_python_out={made}", *map(str, sources)])
        if code != 0:
            raise RuntimeError("protoc refused proto/winnow/v1")
        with contextlib.suppress(OSError):  # another process may have been quicker
            os.rename(made, out)
    sys.path.insert(0, str(out))


_generate_protos()

import grpc  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from winnow.v1 import control_pb2 as control  # noqa: E402
from winnow.v1 import control_pb2_grpc  # noqa: E402
from winnow.v1 import inference_pb2 as api  # noqa: E402
from winnow.v1 import inference_pb2_grpc  # noqa: E402

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Answer:
    """What a Generate stream said, with the moment at which each event arrived."""
    ids: list = field(default_factory=list)
    text: str = ""
    done: api.Done = None
    progress: list = field(default_factory=list)  # (seconds since the call, Progress)
    token_times: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)

    @property
    def usage(self):
        return self.done.usage

    @property
    def timing(self):
        return self.done.timing

    @property
    def trace(self):
        return self.done.trace


def sampling(**fields):
    """Greedy and of an exact length, unless fields say otherwise."""
    return api.Sampling(**{"temperature": 0, "ignore_eos": True, **fields})


def fastkv(window=None, tsp_rate=None, tsp_layer=None, **fields):
    """Compression parameters of FASTKV; what is not given is the server's default."""
    own = {"tsp_rate": tsp_rate, "tsp_layer": tsp_layer}
    return api.Compression(method=api.METHOD_FASTKV, window=window, **fields,
                           fastkv=api.FastKV(**{k: v for k, v in own.items() if v is not None}))


def full():
    return api.Compression(method=api.METHOD_FULL)


def prompt(ids=None, text=None):
    """The prompt fields of a GenerateRequest."""
    return {"text": text} if text is not None else {"tokens": api.TokenIds(ids=ids)}


class Client:
    """A channel to a running service; with credentials, over TLS."""

    def __init__(self, address, credentials=None):
        self.address = address
        limits = [("grpc.max_receive_message_length", REPLY_LIMIT),
                  ("grpc.max_send_message_length", REPLY_LIMIT),
                  ("grpc.use_local_subchannel_pool", 1)]  # no connection of another Client
        self.channel = (grpc.secure_channel(address, credentials, options=limits) if credentials
                        else grpc.insecure_channel(address, options=limits))
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def close(self):
        self.channel.close()

    def generate(self, request=None, timeout=600, **fields):
        """Sends a request and collects the whole answer."""
        request = request or api.GenerateRequest(**fields)
        answer, begin = Answer(), time.monotonic()
        for response in self.inference.Generate(request, timeout=timeout):
            now = time.monotonic() - begin
            kind = response.WhichOneof("event")
            if kind == "progress":
                answer.progress.append((now, response.progress))
            elif kind == "tokens":
                answer.ids.extend(response.tokens.ids)
                answer.text += response.tokens.text
                answer.logprobs.extend(response.tokens.logprobs)
                answer.token_times.append(now)
            elif kind == "done":
                answer.done = response.done
        return answer

    def start_samples(self, request, timeout=600):
        """Sends a request; what is returned collects its n answers, each with its own Done."""
        call = self.inference.Generate(request, timeout=timeout)

        def collect():
            answers = {}
            for response in call:
                kind = response.WhichOneof("event")
                if kind == "progress":
                    continue
                event = getattr(response, kind)
                answer = answers.setdefault(event.index, Answer())
                if kind == "tokens":
                    answer.ids.extend(event.ids)
                    answer.text += event.text
                    answer.logprobs.extend(event.logprobs)
                else:
                    answer.done = event
            return [answers[i] for i in sorted(answers)]

        return collect

    def tokenize(self, text, special=True):
        request = api.TokenizeRequest(text=text, add_special_tokens=special)
        return list(self.inference.Tokenize(request, timeout=60).ids)

    def detokenize(self, ids, skip_special=False):
        request = api.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special)
        return self.inference.Detokenize(request, timeout=60).text

    def model(self):
        return self.inference.GetModel(api.GetModelRequest(), timeout=60)

    def status(self):
        return self.control.GetStatus(control.GetStatusRequest(), timeout=10)

    def check(self, service=""):
        request = health_pb2.HealthCheckRequest(service=service)
        return self.health.Check(request, timeout=10).status

    def wait_for_health(self, wanted=SERVING, timeout=START_S, alive=lambda: True):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and alive():
            with contextlib.suppress(grpc.RpcError):
                if self.check() == wanted:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"health did not become {wanted} within {timeout} s")


class Service(Client):
    """winnow-coordinator with local workers on a free port of the loopback interface.

    with Service(MODELS / "needle-tiny", workers=2) as service:
        service.generate(...)
    """

    def __init__(self, model, workers=1, dtype=None, options=(), build=None, wait=True, env=None,
                 credentials=None, prefix=()):
        self.credentials = credentials
        # setpriv: the coordinator gets SIGTERM when this program dies, however it dies
        self.prefix = [*prefix, "setpriv", "--pdeathsig", "TERM", "--"]
        self.program = Path(build or BUILD) / "bin" / "winnow-coordinator"
        self.command = [str(self.program), "--model", str(model), "--listen", "127.0.0.1:0",
                        "--local-workers", str(workers), "--tp", str(workers), *map(str, options)]
        if dtype:
            self.command += ["--dtype", dtype]
        self.wait = wait
        # a stop that waits for nobody, unless a test is about just that
        self.env = {**os.environ, "WINNOW_DRAIN_WINDOW_MS": "0", "WINNOW_DRAIN_TIMEOUT_MS": "3000",
                    **(env or {})}
        self.process = None
        self.log = tempfile.TemporaryFile(mode="w+", prefix="winnow-log-")

    def __enter__(self):
        self.process = subprocess.Popen([*self.prefix, *self.command],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, env=self.env)
        try:
            super().__init__(self._read_address(), self.credentials)
            if self.wait:
                self.wait_for_health(alive=self.alive)
        except BaseException:
            self.stop()
            print(self.log_text(), file=sys.stderr)
            raise
        return self

    def __exit__(self, kind, *_):
        code = self.stop()
        if kind is not None:
            print(f"--- log of {' '.join(self.command)}\n{self.log_text()}", file=sys.stderr)
        elif code != 0:
            raise RuntimeError(f"the coordinator ended with status {code}:\n{self.log_text()}")

    def _read_address(self):
        """The one line that the coordinator prints once its port accepts calls."""
        lines = []
        reader = threading.Thread(target=lambda: lines.append(self.process.stdout.readline()),
                                  daemon=True)
        reader.start()
        reader.join(START_S)
        line = lines[0] if lines else ""
        prefix = "winnow-coordinator: listening on "
        if not line.startswith(prefix):
            raise RuntimeError(f"the coordinator did not start: {line!r}\n{self.log_text()}")
        return line[len(prefix):].strip()

    def alive(self):
        return self.process.poll() is None

    def log_text(self, most=20000):
        """The end of what the programs logged; most=0: all of it."""
        self.log.flush()
        with open(f"/proc/self/fd/{self.log.fileno()}", errors="replace") as log:
            return log.read()[-most:]

    def log_field(self, request_id, name):
        """A field of the line with which the coordinator closed a request, the last of this id."""
        line = re.findall(rf'generate: closed id="?{re.escape(request_id)}"? .*', self.log_text())[-1]
        return re.search(rf" {name}=(\S+)", line).group(1)

    def workers(self):
        """Process ids of the local workers: the coordinator's children named winnow-worker."""
        pids = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                pids += [int(pid) for pid in (task / "children").read_text().split()]
        return sorted(pid for pid in pids if _process_name(pid).startswith("winnow-worker"))

    def pages_used(self):
        """Bytes of KV pages in use, one number for each worker."""
        return [w.kv_bytes_used for g in self.status().groups for w in g.workers]

    def stop(self):
        """Asks politely, then firmly; returns the exit status."""
        with contextlib.suppress(AttributeError):
            self.close()
        children = self.workers() if self.alive() else []
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = f"killed: it did not stop within {STOP_S} s"
        self.process.stdout.close()
        _await_end(children)
        return code


def _process_name(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _await_end(pids, timeout=5):
    """Local workers die with their parent; one that does not is an error of its own."""
    deadline = time.monotonic() + timeout
    while any(_process_name(pid).startswith("winnow-worker") for pid in pids):
        if time.monotonic() > deadline:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"workers {pids} outlived their coordinator by {timeout} s")
        time.sleep(0.02)
