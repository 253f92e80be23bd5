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


def test_the_efficiency_is_that_of_pairs_and_has_a_standard_error():
    found = multinode.summarize_groups([
        {"round": r, "hosts": n, "tokens_per_s": t, "apart_per_s": a}
        for r, n, t, a in [(0, 1, 100, 100), (0, 2, 180, 200), (0, 4, 300, 400),
                           (1, 1, 50, 50), (1, 2, 100, 100), (1, 4, 200, 200)]])
    assert [(f["hosts"], f["rounds"]) for f in found] == [(1, 2), (2, 2), (4, 2)]
    assert found[1]["efficiency"] == pytest.approx((0.95, 0.05))
    assert found[2]["tokens_per_s_of_one"] == pytest.approx((5 / 6, 1 / 6))
    assert multinode.groups_cells(found[1]) == [
        2, 2, "140 ± 40", "93.3 ± 26.7 %", "150 ± 50", "100.0 ± 33.3 %", "95.0 ± 5.0 %"]
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
