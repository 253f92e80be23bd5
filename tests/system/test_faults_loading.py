"""Ranks and coordinators that die or stop while ranks read and convert their weights: the others are
told in time, whoever has read its weights keeps them, and all is served in the end."""
import os
import signal
import time

import pytest

from faults import ALL, DETECTED_S, FORMED_S, Cluster, Worker, await_log, stop_for
from make_model import Shape, write_model
from service import SERVING, prompt, sampling

FAULTS = ["a rank is killed", "a rank is stopped", "the coordinator is killed",
          "the coordinator is stopped"]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Weights that take a moment to load: a quarter of a gigabyte in float32, served in bfloat16."""
    shape = Shape(hidden=1024, layers=4, query_heads=8, kv_heads=4, head_dim=128, intermediate=4096)
    return write_model(tmp_path_factory.mktemp("heavy"), shape)


def await_loading(cluster):
    await_log(cluster.service.log_text, "fleet: group forms")
    assert not any(worker.loads() for worker in cluster.workers), "they loaded too quickly"


def answer(service):
    return service.generate(**prompt(ids=[5, 6, 7]), sampling=sampling(max_tokens=4)).ids


@pytest.mark.parametrize("fault", FAULTS if ALL else FAULTS[::2])
def test_while_ranks_load(heavy, fault):
    with Cluster(heavy, "bfloat16") as cluster:
        await_loading(cluster)
        victim = cluster.workers[1]
        begin = time.monotonic()
        if fault == "the coordinator is killed":
            cluster.service.process.kill()
            cluster.service.stop()
            cluster.coordinator()
        elif fault == "the coordinator is stopped":
            stop_for(cluster.service, DETECTED_S)
        else:
            victim.signal(signal.SIGKILL if "killed" in fault else signal.SIGSTOP)
            said = "closed its" if "killed" in fault else "sent nothing"
            await_log(cluster.service.log_text, rf"process {victim.pid}\) {said}",
                      timeout=2 if "killed" in fault else DETECTED_S)
            assert victim.loads() == 0
            cluster.workers.append(Worker(heavy, cluster.worker_address))
        print(f"{fault}: noticed after {time.monotonic() - begin:.1f} s")
        cluster.service.wait_for_health(SERVING, FORMED_S)
        assert len(answer(cluster.service)) == 4
        print(f"served after {time.monotonic() - begin:.1f} s")
        if "stopped" in fault and "rank" in fault:
            os.kill(victim.pid, signal.SIGCONT)
        assert [w.loads() for w in cluster.workers if w is not victim or "coordinator" in fault] \
            == [1, 1], "nobody reads its weights twice"
