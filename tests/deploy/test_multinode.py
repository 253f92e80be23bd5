"""The guide to several machines, typed as it is written, on simulated hosts."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from deployment import BUILD, ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import multinode  # noqa: E402

GUIDE = ROOT / "deploy" / "multinode" / "README.md"
# a network and mounts of its own, in which what stays behind ends with the shell
INSIDE = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
          "--mount-proc", "bash", "-ec"]
BEFORE = "mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; ip link set lo up\n"


@pytest.fixture(scope="module")
def hosts():
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    if not shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin"):
        pytest.skip("needs iproute2")
    if subprocess.run([*INSIDE, "ip link add br0 type bridge"], capture_output=True).returncode:
        pytest.skip("this machine makes no namespaces")


def test_the_guide_can_be_typed_as_it_is_written(hosts, tmp_path):
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "build").symlink_to(BUILD)
    for folder in ("deploy", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = subprocess.run([*INSIDE, BEFORE + "".join(blocks)], cwd=tmp_path, text=True, timeout=600,
                          capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("one-group.json", "two-groups.json"):
        result = json.loads((tmp_path / name).read_text())
        assert result["completed"] == 16 and result["failed"] == 0
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_scaling_is_that_of_one_round_and_has_a_standard_error():
    def run(number, hosts, rate, alone=False):
        return {"round": number, "hosts": hosts, "alone": alone, "lengths": [512, 16],
                "tokens_per_s": rate, "worker_us": 300 + hosts, "coordinator_us": 9, "used": 0.99}
    found = multinode.summarize_groups([
        run(0, 1, 100), run(0, 2, 180), run(0, 4, 300), run(1, 4, 200), run(1, 2, 100), run(1, 1, 50),
        run(2, 1, 10, True), run(2, 2, 10, True), run(2, 4, 10, True)])
    assert [(f["hosts"], f["rounds"]) for f in found] == [(n, r) for r in (2, 1) for n in (1, 2, 4)]
    assert found[0]["of_one"] == (1, 0)
    assert found[1]["of_one"] == pytest.approx((0.95, 0.05))
    assert found[5]["of_one"] == (0.25, None) and found[5]["worker_of_one"][0] == 304 / 301
    assert multinode.groups_cells(found[1]) == [
        "beside each other", "512 + 16", 2, 2, "140 ± 40", "95.0 ± 5.0 %", "99.0 ± 0.0 %", "302 ± 0",
        "100.3 ± 0.0 %", "9 ± 0"]
    assert multinode.spread_cell(multinode.spread([7.0])) == "7"


def test_ranks_on_several_hosts_send_what_was_predicted_and_hide_some_of_it(hosts, tmp_path):
    found = tmp_path / "found.json"
    done = subprocess.run([sys.executable, ROOT / "tests" / "bench" / "multinode.py", "ranks", "bytes",
                           "model", "--model", ROOT / "tests" / "models" / "needle-tiny", "--methods",
                           "FULL", "--rates", "1e9", "--output", found], text=True, timeout=300,
                          capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(found.read_text())
    (point,) = result["ranks"]
    assert point["exchange_ms"] > point["waited_ms"] > 0 and 0 < point["hidden"] < 1
    assert [b["ranks"] for b in result["bytes"]] == [2, 4]
    assert all(1 <= b[phase]["ratio"] < 1.1 for b in result["bytes"] for phase in ("prefill", "decode"))
    assert "NVLink" in done.stdout


def test_services_of_one_two_and_four_hosts_have_work_beside_each_other(hosts, tmp_path):
    if not multinode.net.CGROUPS.is_dir() or os.cpu_count() < 2:
        pytest.skip("needs shares of a core (cgroup v1) and two cores")
    found = tmp_path / "found.json"
    for rounds in (1, 2):
        done = subprocess.run([sys.executable, ROOT / "tests" / "bench" / "multinode.py", "groups",
                               "--model", ROOT / "tests" / "models" / "needle-tiny", "--prompts", "2",
                               "--output", found], text=True, timeout=120, capture_output=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        runs = json.loads(found.read_text())["groups"]
        assert sorted((r["round"], r["hosts"]) for r in runs) == [
            (number, n) for number in range(rounds) for n in (1, 2, 4)]
    assert all(r["tokens_per_s"] > 0 and r["used"] > 0 for r in runs)
