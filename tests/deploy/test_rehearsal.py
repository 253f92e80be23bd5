"""The manifests of every overlay, played on simulated hosts; and what the player makes of them."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kubectl

PLAYER = Path(__file__).resolve().parent / "rehearsal"
sys.path.insert(0, str(PLAYER))
from expand import MEMBERS, services_of  # noqa: E402

TIMEOUT_S = 1200
# overlays, and a few of the plays where all take long
OVERLAYS = {"cpu": "", "statefulset": "deploy ask scale leave", "gpu-single-node": "",
            "gpu-multi-node": "deploy ask kill leave"}
TEMPLATE = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_live_through_their_rehearsal(overlay, images, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and mounts")
    missing = [t for t in ("ip", "nft", "setpriv") if not shutil.which(t, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing or not kubectl.path().exists():
        pytest.skip(f"needs {', '.join(missing) or 'kubectl'}")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"]).returncode:
        pytest.skip("this machine makes no namespaces")
    log = tmp_path / "rehearsal.log"
    words = ["--overlay", overlay, "--images", images, "--log", log]
    if OVERLAYS[overlay]:
        words += ["--speed", "10"]
        if not os.environ.get("WINNOW_TEST_LONG"):
            words += ["--plays", *OVERLAYS[overlay].split()]
    done = subprocess.run([sys.executable, PLAYER / "run.py", *words], capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: deploy, ask" in log.read_text()


def workload(kind, **spec):
    return {"kind": kind, "metadata": {"name": "w", "namespace": "ns"}, "spec": spec}


def stateful(**spec):
    return workload("StatefulSet", **{"replicas": 2, "serviceName": "s", "template": TEMPLATE,
                                      "podManagementPolicy": "Parallel",
                                      "selector": {"matchLabels": {"app": "a"}}, **spec})


def leader_worker(replicas=2, startup="LeaderCreated", **inner):
    return workload("LeaderWorkerSet", replicas=replicas, startupPolicy=startup, leaderWorkerTemplate={
        "size": 3, "workerTemplate": TEMPLATE, "restartPolicy": "None", **inner})


def expand(item):
    return MEMBERS[item["kind"]](item)


def test_pods_of_a_stateful_set_have_ordinals_and_the_domain_of_its_service():
    first, second = expand(stateful())
    assert (first.name, second.name, second.subdomain) == ("w-0", "w-1", "s")
    assert second.labels["apps.kubernetes.io/pod-index"] == "1"
    assert second.labels["statefulset.kubernetes.io/pod-name"] == "w-1"


def test_pods_of_a_leader_worker_set_are_groups_that_know_their_leader():
    pods = expand(leader_worker())
    assert [p.name for p in pods] == ["w-0", "w-0-1", "w-0-2", "w-1", "w-1-1", "w-1-2"]
    assert pods[5].environment == {"LWS_LEADER_ADDRESS": "w-1.w.ns", "LWS_GROUP_SIZE": "3",
                                   "LWS_WORKER_INDEX": "2"}
    prefix = "leaderworkerset.sigs.k8s.io/"
    of = [[p.labels[prefix + key] for p in pods] for key in ("group-index", "worker-index")]
    assert of == [list("000111"), list("012012")]
    assert len({p.labels[prefix + "group-key"] for p in pods}) == 2
    assert [p.labels["apps.kubernetes.io/pod-index"] for p in pods] == list("012112")


def test_a_leader_worker_set_brings_the_service_that_its_pods_have_their_names_of():
    item = leader_worker()
    (service,) = services_of(item).values()
    assert {p.subdomain for p in expand(item)} == {service["metadata"]["name"]}
    for pod in expand(item):
        assert service["spec"]["selector"].items() <= pod.labels.items()


@pytest.mark.parametrize("item", [
    stateful(podManagementPolicy="OrderedReady"), stateful(selector={"matchLabels": {"app": "b"}}),
    leader_worker(startup="LeaderReady"), leader_worker(restartPolicy="RecreateGroupOnPodRestart")],
    ids=["ordered", "selector", "leader first", "recreated"])
def test_what_would_run_otherwise_than_it_is_played_is_refused(item):
    with pytest.raises(ValueError):
        expand(item)
