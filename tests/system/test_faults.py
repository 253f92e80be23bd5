"""Workers and coordinators that die or stop, in prefill and in decode: what runs ends or runs again
within a bounded time, and everything is served again.  Cut networks: test_partitions.py."""
import os
import signal
import time

import pytest

from faults import (ALL, DETECTED_S, FORMED_S, OPTIONS, Call, Cluster, Worker, await_log, learn,
                    serves_right, short_answer, start_in, stop_for)
from service import MODELS, NOT_SERVING, SERVING, Service, api, full, prompt, sampling

NEEDLE = MODELS / "needle-tiny"
PHASES = ["prefill", "decode"]
ONE_PHASE = PHASES if ALL else ["decode"]


@pytest.fixture(scope="module")
def local(needle_cases):
    """Two local workers that are killed and stopped."""
    with Service(NEEDLE, workers=2, dtype="float32", options=OPTIONS) as service:
        yield learn(service, needle_cases)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [0, 1] if ALL else [1])
def test_a_killed_worker(local, number, phase):
    """In prefill the request runs again; in decode it fails and names the rank and the cause."""
    call = start_in(local, phase)
    before = local.workers()
    os.kill(before[number], signal.SIGKILL)
    if phase == "prefill":
        call.waits_again(timeout=2)
        assert call.completes() == local.long_solo
    else:
        assert f"process {before[number]}) was killed by signal 9" in call.fails(timeout=2)
    serves_right(local)
    after = local.workers()
    assert before[number] not in after and before[1 - number] in after


@pytest.mark.parametrize("phase", ONE_PHASE)
def test_a_stopped_worker(local, phase):
    """It is lost by the heartbeat limit, killed, and replaced; the other one stays."""
    call = start_in(local, phase)
    before = local.workers()
    os.kill(before[1], signal.SIGSTOP)
    if phase == "prefill":
        call.waits_again(timeout=DETECTED_S)
        assert call.completes() == local.long_solo
    else:
        reason = call.fails(timeout=DETECTED_S)
        assert f"process {before[1]}) sent nothing for" in reason
    serves_right(local)
    after = local.workers()
    assert before[1] not in after and before[0] in after


@pytest.mark.parametrize("phase", ONE_PHASE)
def test_a_coordinator_that_is_stopped_for_a_while_loses_nothing(local, phase):
    call = start_in(local, phase)
    stop_for(local, DETECTED_S)
    tokens = call.completes()
    assert tokens == local.long_solo if phase == "prefill" else len(tokens) == 1500
    serves_right(local)
    assert "stood still for" in local.log_text()


@pytest.mark.skipif(not ALL, reason="takes half a minute: tests/run.sh --all")
def test_workers_leave_a_coordinator_that_is_stopped_for_long(local):
    """They get no answer to their pings, and come back with their weights when it goes on."""
    call = start_in(local, "decode")
    workers = local.workers()
    stop_for(local, 20)
    assert "closed its connection" in call.fails(timeout=10)
    serves_right(local)
    assert local.workers() == workers


def test_other_groups_do_not_notice(needle_cases):
    """Three groups of one rank decode; each of two loses its worker, one after the other."""
    options = [*OPTIONS, "--tp", "1"]
    with Service(NEEDLE, workers=3, dtype="float32", options=options) as service:
        learn(service, needle_cases)
        await_log(service.log_text, "fleet: group ready", count=3)
        calls = [start_in(service, "decode") for _ in range(3)]
        running = [group.running_requests for group in service.status().groups]
        assert running == [1, 1, 1]
        workers = service.workers()
        os.kill(workers[0], signal.SIGKILL)
        os.kill(workers[1], signal.SIGSTOP)
        for call in calls:
            call.wait_for_end(120)
        assert sorted(bool(call.done) for call in calls) == [False, False, True]
        assert service.check() == SERVING, "and the service never stopped"
        assert "service: not ready" not in service.log_text()
        await_log(service.log_text, "fleet: group ready", count=5)
        assert short_answer(service) == service.solo
        assert workers[2] in service.workers()


# ---- workers that are no children ----

@pytest.fixture(scope="module")
def cluster(needle_cases):
    with Cluster(NEEDLE, "float32") as cluster:
        cluster.service.wait_for_health(SERVING, FORMED_S)
        learn(cluster.service, needle_cases)
        yield cluster


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_coordinator_comes_back_to_its_workers(cluster, phase):
    """The workers keep their weights and serve as soon as it is back at the same address."""
    loads = [worker.loads() for worker in cluster.workers]
    call = start_in(cluster.service, phase)
    cluster.service.process.kill()
    call.fails(timeout=5)
    cluster.service.stop()
    begin = time.monotonic()
    serves_right(cluster.coordinator(), timeout=20)
    print(f"ready {time.monotonic() - begin:.1f} s after its start")
    assert [worker.loads() for worker in cluster.workers] == loads


def test_a_rank_of_an_old_epoch_does_no_harm(cluster):
    """It is stopped in decode, replaced by a third worker, and goes on in the middle of the next
    request: what it still says is of an epoch that is over."""
    service = cluster.service
    cluster.workers.append(Worker(NEEDLE, cluster.worker_address))
    await_log(service.log_text, rf"worker joined .*process={cluster.workers[2].pid}")
    loads = [worker.loads() for worker in cluster.workers[:2]]
    call = start_in(service, "decode")
    cluster.workers[1].signal(signal.SIGSTOP)
    reason = call.fails(timeout=DETECTED_S)
    assert f"process {cluster.workers[1].pid}) sent nothing for" in reason
    serves_right(service)
    call = start_in(service, "decode")
    cluster.workers[1].signal(signal.SIGCONT)
    assert len(call.completes()) == 1500
    await_log(service.log_text, rf"worker joined .*process={cluster.workers[1].pid}", count=2)
    serves_right(service)
    assert [worker.loads() for worker in cluster.workers[:2]] == loads
    assert cluster.workers[2].loads() == 1


def test_requests_do_not_wait_for_ever_for_a_lost_group(needle_cases):
    with Service(NEEDLE, workers=0, dtype="float32", wait=False, options=[
            *OPTIONS, "--worker-listen", "127.0.0.1:0", "--tp", "1", "--reform-timeout-ms",
            "1500"]) as service:
        await_log(service.log_text, r"worker plane listens on 127.0.0.1:\d+")
        port = service.log_text().split("worker plane listens on 127.0.0.1:")[1].split()[0]
        worker = Worker(NEEDLE, f"127.0.0.1:{port}")
        service.wait_for_health(SERVING, FORMED_S)
        learn(service, needle_cases)
        call = start_in(service, "prefill")
        worker.signal(signal.SIGKILL)
        reason = call.fails(timeout=5)
        assert "closed its connection, and no worker group was ready again within 1.5 s" in reason
        assert service.check() == NOT_SERVING
        worker.stop()
