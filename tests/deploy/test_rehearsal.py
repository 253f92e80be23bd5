"""The manifests of the overlay `cpu`, played on simulated hosts."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kubectl

RUN = Path(__file__).resolve().parent / "rehearsal" / "run.py"
TIMEOUT_S = 1200


def test_the_manifests_live_through_their_rehearsal(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and mounts")
    missing = [t for t in ("ip", "nft", "setpriv") if not shutil.which(t, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing or not kubectl.path().exists():
        pytest.skip(f"needs {', '.join(missing) or 'kubectl'}")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"]).returncode:
        pytest.skip("this machine makes no namespaces")
    log = tmp_path / "rehearsal.log"
    done = subprocess.run([sys.executable, RUN, "--log", log], capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: deploy, ask, bench" in log.read_text()
