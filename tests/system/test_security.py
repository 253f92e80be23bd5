"""Who may talk to whom: TLS, certificates, tokens and the secret of the cluster."""
import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pki import Authority
from service import BUILD, MODELS, SERVING, Client, Service, api, control, grpc, prompt, sampling

NEEDLE, STORIES = MODELS / "needle-tiny", MODELS / "stories260k"
LONG = prompt(ids=[5] * 100_000)  # its prefill takes as long as any test here needs a live request
ALICE, BOB, ADMIN = "alice-0123456789abcdef", "bob-0123456789abcdef", "admin-0123456789abcdef"
TOKENS = f"# who may call\nalice {ALICE}\nbob {BOB}\nroot {ADMIN} admin\n"
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"), "theirs")


def secret_file(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def credentials(ca, pair=None):
    cert, key = (p.read_bytes() for p in pair) if pair else (None, None)
    return grpc.ssl_channel_credentials(ca.pem.read_bytes(), key, cert)


def bearer(token, scheme="Bearer"):
    return [("authorization", f"{scheme} {token}")]


def refusal(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def get_model(client, metadata=None, timeout=60):
    return client.inference.GetModel(api.GetModelRequest(), metadata=metadata, timeout=timeout)


def abort(client, request_id, metadata=None):
    return client.control.Abort(control.AbortRequest(request_id=request_id), metadata=metadata,
                                timeout=60).found


@contextlib.contextmanager
def live_request(client, request_id, metadata=None):
    """A request that is in its prefill until the block ends."""
    call = client.inference.Generate(
        api.GenerateRequest(request_id=request_id, **LONG, sampling=sampling(max_tokens=2)),
        metadata=metadata, timeout=300)
    next(iter(call))
    try:
        yield call
    finally:
        call.cancel()


def sees_only_its_own(first, second):
    """`first` and `second` make (client, metadata): their ids do not meet."""
    with live_request(first[0], "mine", first[1]) as call:
        assert not abort(second[0], "mine", second[1])
        code, _ = refusal(lambda: list(first[0].inference.Generate(
            api.GenerateRequest(request_id="mine", **LONG), metadata=first[1], timeout=60)))
        assert code == CODE.INVALID_ARGUMENT
        with live_request(second[0], "mine", second[1]) as other:
            assert abort(second[0], "mine", second[1])
            assert [e for e in other if e.HasField("done")][0].done.finish_reason == \
                api.FINISH_ABORTED
        assert abort(first[0], "mine", first[1])
        assert [e for e in call if e.HasField("done")][0].done.finish_reason == api.FINISH_ABORTED


# ---- certificates of clients

@pytest.fixture(scope="module")
def mutual(ours):
    cert, key = ours.sign("server")
    with Service(NEEDLE, credentials=credentials(ours, ours.sign("probe")), options=[
            "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.pem,
            "--health-listen", "127.0.0.1:0"]) as service:
        yield service


def test_a_certificate_of_the_right_authority_is_let_in(mutual, ours):
    with contextlib.closing(Client(mutual.address, credentials(ours, ours.sign("anna")))) as client:
        assert get_model(client).layers > 0


@pytest.mark.parametrize("case", ["no certificate", "another authority's", "expired", "plaintext",
                                  "server of another authority"])
def test_others_get_no_connection(mutual, ours, theirs, case):
    made = {"no certificate": lambda: credentials(ours),
            "another authority's": lambda: credentials(ours, theirs.sign("anna")),
            "expired": lambda: credentials(ours, ours.sign("late", expired=True)),
            "plaintext": lambda: None,
            "server of another authority": lambda: credentials(theirs, ours.sign("anna"))}[case]()
    with contextlib.closing(Client(mutual.address, made)) as client:
        code, _ = refusal(lambda: get_model(client, timeout=60))
        assert code == CODE.UNAVAILABLE
    assert mutual.check() == SERVING


def test_with_certificates_a_caller_sees_only_its_own_requests(mutual, ours):
    names = ours.sign("anna"), ours.sign("nameless", subject="/O=x", sans="URI:spiffe://here/bert")
    anna, bert = (Client(mutual.address, credentials(ours, pair)) for pair in names)
    with contextlib.closing(anna), contextlib.closing(bert):
        sees_only_its_own((anna, None), (bert, None))
        code, text = refusal(lambda: anna.control.Drain(control.DrainRequest(), timeout=60))
        assert code == CODE.PERMISSION_DENIED and "anna" in text


def test_probes_get_on_without_tls_on_a_port_of_their_own(mutual):
    line = next(line for line in mutual.log_text().splitlines() if "health: listening" in line)
    address = "127.0.0.1:" + line.split("port=")[1]
    with contextlib.closing(Client(address)) as probe:
        assert probe.check("readiness") == SERVING
        code, _ = refusal(lambda: get_model(probe))
        assert code == CODE.UNIMPLEMENTED  # nothing else is served there


def test_the_command_line_speaks_tls(mutual, ours):
    cert, key = ours.sign("carla")
    command = [BUILD / "bin" / "winnow", "status", "--server", mutual.address, "--tls-ca", ours.pem]
    done = subprocess.run([*command, "--tls-cert", cert, "--tls-key", key], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and "rank 0" in done.stdout, done.stderr
    done = subprocess.run([*command, "--deadline", "3"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_new_certificate_is_taken_up_and_a_broken_one_is_not(ours, theirs, tmp_path):
    cert, key = tmp_path / "tls.pem", tmp_path / "tls.key"

    def install(pair):
        for source, target in zip(pair, (cert, key)):
            target.with_suffix(".new").write_bytes(source.read_bytes())
            os.replace(target.with_suffix(".new"), target)

    def trusts(authority):
        with contextlib.closing(Client(service.address, credentials(authority))) as client:
            try:
                return get_model(client, timeout=60).layers > 0
            except grpc.RpcError:
                return False

    install(ours.sign("server"))
    with Service(STORIES, options=["--tls-cert", cert, "--tls-key", key],
                 credentials=credentials(ours)) as service:
        install(theirs.sign("server"))
        assert trusts(theirs) and not trusts(ours)
        cert.write_text("no certificate at all")
        assert trusts(theirs)
        assert "the certificates stay as they were" in service.log_text()
        install(ours.sign("server"))
        assert trusts(ours)


# ---- tokens

@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    path = secret_file(tmp_path_factory.mktemp("tokens") / "tokens", TOKENS)
    with Service(NEEDLE, options=["--token-file", path]) as service:
        service.token_file = path
        yield service


METHODS = {
    "GetModel": lambda c, m: get_model(c, m),
    "Generate": lambda c, m: list(c.inference.Generate(
        api.GenerateRequest(**prompt(ids=[1])), metadata=m, timeout=60)),
    "Tokenize": lambda c, m: c.inference.Tokenize(api.TokenizeRequest(), metadata=m, timeout=60),
    "Detokenize": lambda c, m: c.inference.Detokenize(
        api.DetokenizeRequest(), metadata=m, timeout=60),
    "GetStatus": lambda c, m: c.control.GetStatus(
        control.GetStatusRequest(), metadata=m, timeout=60),
    "Abort": lambda c, m: abort(c, "x", m),
    "Drain": lambda c, m: c.control.Drain(control.DrainRequest(), metadata=m, timeout=60),
    "reflection": lambda c, m: list(reflection_pb2_grpc.ServerReflectionStub(
        c.channel).ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(
            list_services="")]), metadata=m, timeout=60)),
    "unknown": lambda c, m: c.channel.unary_unary("/winnow.v1.Inference/Guess")(
        b"", metadata=m, timeout=60),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_but_health_needs_a_token(guarded, method):
    strangers = [None, bearer(""), bearer("alice"), bearer(ALICE[:-1]), bearer(ALICE + "x"),
                 bearer(ALICE, "Basic"), [("authorization", ALICE)], [("token", ALICE)]]
    for metadata in strangers:
        code, text = refusal(lambda m=metadata: METHODS[method](guarded, m))
        assert code == CODE.UNAUTHENTICATED and "token" in text, metadata
    assert guarded.check() == SERVING and guarded.check("liveness") == SERVING


def test_a_token_opens_what_it_should(guarded):
    assert get_model(guarded, bearer(ALICE)).layers > 0
    assert get_model(guarded, bearer(BOB, "bearer")).layers > 0
    assert METHODS["reflection"](guarded, bearer(BOB))
    code, _ = refusal(lambda: METHODS["unknown"](guarded, bearer(BOB)))
    assert code == CODE.UNIMPLEMENTED


def test_with_tokens_a_caller_sees_only_its_own_requests(guarded):
    sees_only_its_own((guarded, bearer(ALICE)), (guarded, bearer(BOB)))


def test_secrets_are_not_told(guarded):
    for token in (ALICE, BOB, ADMIN):
        assert token not in guarded.log_text()
        for pid in [guarded.process.pid, *guarded.workers()]:
            for part in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    assert token.encode() not in file.read()


def test_the_command_line_shows_a_token(guarded, tmp_path):
    command = [BUILD / "bin" / "winnow", "tokenize", "--server", guarded.address, "one", "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a token is needed" in done.stderr
    for text in (f"{ALICE}\n", TOKENS):  # the token alone, or the server's own file
        path = secret_file(tmp_path / "token", text)
        done = subprocess.run([*command, "--token-file", path], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0 and done.stdout.split(), done.stderr
    done = subprocess.run(
        [BUILD / "bin" / "winnow", "generate", "--server", guarded.address, "--token-file", path,
         "--prompt", "one two", "--max-tokens", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [BUILD / "bin" / "winnow", "bench", "serve", "--server", guarded.address, "--token-file",
         path, "--num-prompts", "2", "--random-input-len", "8", "--random-output-len", "2"],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_tokens_change_while_the_server_runs(guarded):
    path, new = guarded.token_file, "carol-0123456789abcdef"
    path.write_text(TOKENS.replace(BOB, new))
    assert get_model(guarded, bearer(new)).layers > 0
    assert refusal(lambda: get_model(guarded, bearer(BOB)))[0] == CODE.UNAUTHENTICATED
    for broken in ("alice\n", f"alice {ALICE} emperor\n", "", f"a {ALICE}\nb {ALICE}\n",
                   "x" * (1 << 19), "a " + "y" * 300 + "\n"):
        path.write_text(broken)
        assert get_model(guarded, bearer(new)).layers > 0
    path.unlink()
    assert get_model(guarded, bearer(new)).layers > 0
    assert guarded.log_text().count("the secrets stay as they were") == 7
    secret_file(path, TOKENS)
    assert get_model(guarded, bearer(BOB)).layers > 0
    assert refusal(lambda: get_model(guarded, bearer(new)))[0] == CODE.UNAUTHENTICATED


def test_only_an_administrator_drains(tmp_path):
    path = secret_file(tmp_path / "tokens", TOKENS)
    path.chmod(0o644)
    with Service(STORIES, options=["--token-file", path]) as service:
        assert "every user of this machine can read" in service.log_text()
        code, text = refusal(lambda: METHODS["Drain"](service, bearer(ALICE)))
        assert code == CODE.PERMISSION_DENIED and "alice" in text
        list(service.inference.Generate(
            api.GenerateRequest(**prompt(ids=[1, 2]), sampling=sampling(max_tokens=2)),
            metadata=bearer(ALICE), timeout=60))
        assert METHODS["Drain"](service, bearer(ADMIN)).unfinished == 0


def test_a_flood_of_wrong_tokens_is_a_line_a_second(guarded):
    before = guarded.log_text().count("callers: refused")
    begin = time.monotonic()
    for _ in range(300):
        assert refusal(lambda: get_model(guarded, bearer("x")))[0] == CODE.UNAUTHENTICATED
    lines = guarded.log_text().count("callers: refused") - before
    assert lines <= 2 + time.monotonic() - begin


# ---- the plane of the workers

SECRET = "cluster-0123456789abcdef"


@contextlib.contextmanager
def worker(address, *options):
    """winnow-worker, with its log in .lines; ended with the block."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", BUILD / "bin" / "winnow-worker", "--coordinator",
         address, "--model", STORIES, *map(str, options)], stderr=subprocess.PIPE, text=True)
    process.lines = []
    reader = threading.Thread(target=lambda: process.lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        process.terminate()
        process.code = process.wait(15)
        reader.join(5)


def wait_until(holds, timeout=60):
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@contextlib.contextmanager
def worker_plane(*options):
    """(service, address): a coordinator that waits for one worker."""
    with Service(STORIES, workers=0, wait=False,
                 options=["--worker-listen", "127.0.0.1:0", *options]) as service:
        line = "worker plane listens on "
        wait_until(lambda: line in service.log_text())
        yield service, service.log_text().split(line)[1].split()[0]


def test_a_worker_without_the_secret_is_told_so_and_the_right_one_serves(tmp_path):
    right = secret_file(tmp_path / "right", f"{SECRET}\n")
    wrong = secret_file(tmp_path / "wrong", f"{SECRET}x\n")
    with worker_plane("--cluster-secret-file", right) as (service, address):
        for options, sentence in (((), "show its secret: --cluster-secret-file"),
                                  (("--cluster-secret-file", wrong), "is not this cluster's")):
            with worker(address, *options) as stranger:
                wait_until(lambda s=sentence, w=stranger: any(s in line for line in w.lines))
                assert stranger.poll() is None  # it goes on trying: secrets change
            assert stranger.code == 0
        wait_until(lambda: "plane=worker" in service.log_text())
        assert not service.status().groups[0].workers
        with worker(address, "--cluster-secret-file", right):
            service.wait_for_health(SERVING, 60)
        assert SECRET not in service.log_text()
        # the secret is replaced on both sides, and a worker that had the old one comes back
        with worker(address, "--cluster-secret-file", wrong) as late:
            wait_until(lambda: any("is not this cluster's" in line for line in late.lines))
            secret_file(wrong, f"{SECRET}\n")
            service.wait_for_health(SERVING, 60)


def test_workers_with_tls_show_a_certificate(ours, theirs):
    cert, key = ours.sign("server")
    mine, other = ours.sign("worker"), theirs.sign("worker")
    with worker_plane("--tls-cert", cert, "--tls-key", key, "--worker-tls",
                      "--worker-tls-client-ca", ours.pem) as (service, address):
        service.close()
        Client.__init__(service, service.address, credentials(ours))
        refused = [(), ("--tls-ca", ours.pem),
                   ("--tls-ca", ours.pem, "--tls-cert", other[0], "--tls-key", other[1]),
                   ("--tls-ca", theirs.pem, "--tls-cert", mine[0], "--tls-key", mine[1])]
        for options in refused:
            with worker(address, *options) as stranger:
                wait_until(lambda w=stranger: any("stream ended" in line for line in w.lines))
        assert not service.status().groups[0].workers
        with worker(address, "--tls-ca", ours.pem, "--tls-cert", mine[0], "--tls-key", mine[1]):
            service.wait_for_health(SERVING, 60)


def test_the_secret_may_travel_inside_tls(ours, tmp_path):
    cert, key = ours.sign("server")
    secret = secret_file(tmp_path / "secret", f"{SECRET}\n")
    with worker_plane("--tls-cert", cert, "--tls-key", key, "--worker-tls", "--cluster-secret-file",
                      secret) as (service, address):
        service.close()
        Client.__init__(service, service.address, credentials(ours))
        with worker(address, "--tls-ca", ours.pem) as stranger:
            wait_until(lambda: any("show its secret" in line for line in stranger.lines))
        with worker(address, "--tls-ca", ours.pem, "--cluster-secret-file", secret):
            service.wait_for_health(SERVING, 60)


def test_a_worker_takes_up_new_certificates_when_it_dials_again(ours, theirs, tmp_path):
    cert, key = ours.sign("server")
    files = tmp_path / "worker.pem", tmp_path / "worker.key"
    for source, target in zip(theirs.sign("worker"), files):
        target.write_bytes(source.read_bytes())
    with worker_plane("--tls-cert", cert, "--tls-key", key, "--worker-tls",
                      "--worker-tls-client-ca", ours.pem) as (service, address):
        service.close()
        Client.__init__(service, service.address, credentials(ours))
        with worker(address, "--tls-ca", ours.pem, "--tls-cert", files[0], "--tls-key",
                    files[1]) as late:
            wait_until(lambda: any("stream ended" in line for line in late.lines))
            for source, target in zip(ours.sign("worker"), files):
                target.write_bytes(source.read_bytes())
            service.wait_for_health(SERVING, 60)


def test_with_local_workers_alone_the_plane_is_closed_to_others():
    with Service(STORIES) as service:
        line = "worker plane listens on "
        address = service.log_text().split(line)[1].split()[0]
        with worker(address) as stranger:
            wait_until(lambda: any("show its secret" in line for line in stranger.lines))
        for pid in service.workers():  # and one that died comes back in
            os.kill(pid, 9)
        wait_until(lambda: service.check() != SERVING)
        service.wait_for_health(SERVING, 60)


def test_local_workers_get_the_file_of_the_secret(tmp_path):
    secret = secret_file(tmp_path / "secret", f"{SECRET}\n")
    env = {"WINNOW_TLS_CLIENT_CA": "", "WINNOW_CLUSTER_SECRET_FILE": str(secret)}
    with Service(STORIES, env=env) as service:
        for pid in [service.process.pid, *service.workers()]:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                assert SECRET.encode() not in file.read()


# ---- refused at start

def ends(*options, program="winnow-coordinator"):
    done = subprocess.run([BUILD / "bin" / program, "--model", STORIES, *map(str, options)],
                          capture_output=True, text=True, timeout=30)
    assert done.stderr.strip().splitlines()[-1].startswith(f"{program}: "), done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("case", range(11))
def test_what_would_not_protect_does_not_start(ours, theirs, tmp_path, case):
    cert, key = ours.sign("server")
    other = theirs.sign("server")[1]
    junk = secret_file(tmp_path / "junk", "junk\n")
    tls = ("--tls-cert", cert, "--tls-key", key, "--listen", "127.0.0.1:0")
    options, code, sentence = [
        (("--worker-listen", "0.0.0.0:0"), 2, "--cluster-secret-file or --worker-tls-client-ca"),
        (("--worker-listen", "127.0.0.1.example.com:0"), 2, "would let anybody join"),
        (("--tls-cert", cert), 2, "--tls-cert and --tls-key go together"),
        (("--tls-client-ca", ours.pem), 2, "needs --tls-cert"),
        (("--worker-tls",), 2, "needs --tls-cert"),
        ((*tls, "--worker-tls", "--local-workers", 1), 2, "goes without --local-workers"),
        ((*tls, "--worker-tls-client-ca", ours.pem), 2, "goes with --worker-tls"),
        (("--tls-cert", cert, "--tls-key", other), 1, "is not the key of the certificate"),
        ((*tls, "--tls-client-ca", junk), 1, "no certificate in PEM form"),
        (("--listen", "127.0.0.1:0", "--token-file", junk), 1, "line 1: a line is NAME SECRET"),
        (("--listen", "127.0.0.1:0", "--token-file", tmp_path / "none"), 1, "No such file"),
    ][case]
    if code == 1:
        options += ("--worker-listen", "127.0.0.1:0")
    ended = ends(*options)
    assert ended[0] == code and sentence in ended[1]


def test_a_worker_whose_files_are_missing_does_not_start(tmp_path):
    for name in ("--cluster-secret-file", "--tls-ca"):
        code, sentence = ends(name, tmp_path / "none", program="winnow-worker")
        assert code == 1 and "No such file" in sentence


def test_both_planes_bind_loopback_unless_told_otherwise():
    text = subprocess.run([BUILD / "bin" / "winnow-coordinator", "--help"], capture_output=True,
                          text=True, timeout=30).stdout
    assert "where clients call; port 0: any (127.0.0.1:8600)" in text
    with Service(STORIES) as service:  # it names no --worker-listen
        own = set()
        for descriptor in Path(f"/proc/{service.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(os.readlink(descriptor))
        rows = [line.split() for table in ("tcp", "tcp6")
                for line in Path(f"/proc/{service.process.pid}/net/{table}").read_text()
                .splitlines()[1:]]
        listening = [row[1].split(":")[0] for row in rows
                     if row[3] == "0A" and f"socket:[{row[9]}]" in own]
        assert len(listening) == 2 and all(a.endswith("0100007F") for a in listening)
