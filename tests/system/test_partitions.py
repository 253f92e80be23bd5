"""Networks that lose messages: between a worker and the rest, and between ranks that both reach the
coordinator, while the group loads, in prefill and in decode.  In network namespaces of our own."""
import contextlib
import signal
import tempfile
import time

import pytest

import network
from faults import (ALL, DETECTED_S, FORMED_S, OPTIONS, Worker, await_log, learn, serves_right,
                    start_in)
from service import MODELS, SERVING, Client, Service

NEEDLE = MODELS / "needle-tiny"
PORT, WORKER_PORT = 8600, 8601
CUT = "the network between the ranks is cut"
REASON = network.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PHASES = ["prefill", "decode"] if ALL else ["decode"]


class Cluster(Service):
    """A coordinator in the hub and a worker in each leaf, which exchange over TCP."""

    def __init__(self, net):
        self.secret = tempfile.NamedTemporaryFile(mode="w", prefix="winnow-secret-")
        self.secret.write("the-secret-of-this-cluster-and-no-other\n")
        self.secret.flush()
        super().__init__(NEEDLE, workers=0, dtype="float32", wait=False,
                         prefix=network.inside(net.hub),
                         options=[*OPTIONS, "--tp", "2", "--listen", f"127.0.0.1:{PORT}",
                                  "--worker-listen", f"0.0.0.0:{WORKER_PORT}",
                                  "--cluster-secret-file", self.secret.name])
        self.net = net
        self.relay = network.Relay(net.hub, PORT)
        self.started = []

    def _read_address(self):
        super()._read_address()
        return self.relay.address

    def worker(self, leaf):
        worker = Worker(NEEDLE, f"{self.net.hub_address(leaf)}:{WORKER_PORT}",
                        prefix=network.inside(self.net.leaves[leaf]),
                        options=["--advertise", self.net.address(leaf), "--collectives", "tcp",
                                 "--cluster-secret-file", self.secret.name])
        self.started.append(worker)
        return worker

    def stop(self):
        with contextlib.suppress(OSError):
            self.relay.close()
        for worker in self.started:
            worker.stop()
        return super().stop()

    def groups_formed(self):
        return self.log_text().count("fleet: group forms")


@pytest.fixture(scope="module")
def net():
    with network.Network() as net:
        yield net


LOAD_FAULTS = ["kill", "stop", "cut", "coordinator"] if ALL else ["stop"]


@pytest.mark.parametrize("fault", LOAD_FAULTS)
def test_while_the_group_loads(net, needle_cases, fault):
    """Ranks that cannot reach each other stay in loading: there one of them dies, stops or is cut
    off, or the coordinator dies.  All is well again when the network is."""
    net.part_leaves()
    with Cluster(net) as cluster:
        workers = cluster.ranks = [cluster.worker(leaf) for leaf in net.LEAVES]
        await_log(cluster.log_text, "fleet: group forms")
        for worker in workers:
            await_log(worker.log_text, "rank: weights loaded")
        begin = time.monotonic()
        if fault == "coordinator":
            cluster.process.kill()
            cluster.process.wait()
            cluster.process.stdout.close()
            Client.close(cluster)
            cluster.__enter__()
        else:
            disturb(cluster, net, fault)
            await_log(cluster.log_text, rf"process {workers[1].pid}\) (sent nothing|closed its)",
                      timeout=DETECTED_S)
        print(f"{fault} noticed after {time.monotonic() - begin:.1f} s")
        net.join_leaves()
        if fault == "cut":
            net.heal(1)
        elif fault in ("kill", "stop"):
            cluster.worker(1)
        cluster.wait_for_health(SERVING, FORMED_S)
        serves_right(learn(cluster, needle_cases))
        assert workers[0].loads() == 1


def disturb(cluster, net, fault):
    if fault == "cut":
        net.cut(1)
    else:
        cluster.ranks[1].signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)


@pytest.fixture(scope="module")
def cluster(net, needle_cases):
    with Cluster(net) as cluster:
        cluster.ranks = [cluster.worker(leaf) for leaf in net.LEAVES]
        cluster.wait_for_health(SERVING, FORMED_S)
        yield learn(cluster, needle_cases)


@contextlib.contextmanager
def no_reload(cluster):
    before = [worker.loads() for worker in cluster.ranks]
    yield
    assert [worker.loads() for worker in cluster.ranks] == before


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_is_cut_off(cluster, net, phase):
    """Lost by the heartbeat limit and named; back when the network is, and nobody reads weights."""
    with no_reload(cluster):
        call = start_in(cluster, phase)
        net.cut(1)
        if phase == "prefill":
            call.waits_again(DETECTED_S)
        else:
            reason = call.fails(DETECTED_S)
            assert f"process {cluster.ranks[1].pid}) sent nothing for" in reason
        net.heal(1)
        if phase == "prefill":
            assert call.completes() == cluster.long_solo
        serves_right(cluster)


@pytest.mark.parametrize("phase", PHASES)
def test_ranks_that_reach_only_the_coordinator(cluster, net, phase):
    """Both beat; that neither goes on is noticed all the same, and said."""
    with no_reload(cluster):
        formed = cluster.groups_formed()
        call = start_in(cluster, phase)
        net.part_leaves()
        if phase == "prefill":
            call.waits_again(DETECTED_S)
            await_log(cluster.log_text, CUT)
        else:
            assert CUT in call.fails(DETECTED_S)
        deadline = time.monotonic() + 10  # the group tries again, in vain
        while cluster.groups_formed() == formed:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        net.join_leaves()
        if phase == "prefill":
            assert call.completes() == cluster.long_solo
        serves_right(cluster)


@pytest.mark.skipif(not ALL, reason="like two workers that are cut off: tests/run.sh --all")
@pytest.mark.parametrize("phase", PHASES)
def test_a_coordinator_that_is_cut_off(cluster, net, phase):
    """From all workers, for twice the heartbeat limit."""
    with no_reload(cluster):
        call = start_in(cluster, phase)
        for leaf in net.LEAVES:
            net.cut(leaf)
        if phase == "prefill":
            call.waits_again(DETECTED_S)
        else:
            assert "sent nothing for" in call.fails(DETECTED_S)
        for leaf in net.LEAVES:
            net.heal(leaf)
        if phase == "prefill":
            assert call.completes() == cluster.long_solo
        serves_right(cluster)
