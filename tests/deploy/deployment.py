"""deployment.py - what the tests of deploy/ share: where things are, and rendered manifests."""
import functools
import os
import subprocess
from pathlib import Path

import kubectl

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("WINNOW_BUILD", ROOT / "build"))
KUBERNETES = ROOT / "deploy" / "kubernetes"


def render(folder):
    """The manifests of a kustomization as text."""
    done = subprocess.run([kubectl.path(), "kustomize", str(folder)], capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(f"kubectl kustomize {folder}: {done.stderr}")
    return done.stdout


@functools.cache
def load(folder):
    """The manifests of a kustomization as a list of objects."""
    import yaml

    return [o for o in yaml.safe_load_all(render(folder)) if o]
