#!/usr/bin/env python3
"""Rehearse a deployment: what the rendered manifests of an overlay would start, as processes.

usage: run.py [--overlay cpu] [--speed 5] [--log FILE] [--images DIR] [--plays NAME...]

Each pod is a simulated host with an address and a name; its command, arguments, environment, mounts,
user and probes are read from the YAML.  Where it asks for GPUs it has emulated ones, and the worker
of the image is the one that knows them (docs/cuda.md).  The plays: deploy, ask, bench, roll-out,
kill, partition, drain, scale, leave; on emulated GPUs those that do not need a fast worker.  Every play says what must hold and within which time; the first that does not
hold ends the rehearsal with status 1 and the logs of all pods.  Needs root, iproute2 and nftables.
"""
import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import hosts  # noqa: E402
import served  # noqa: E402
from cluster import Cluster  # noqa: E402
from deployment import BUILD, KUBERNETES, ROOT, load  # noqa: E402
from plays import Rehearsal  # noqa: E402

PLAYS = ("deploy", "ask", "bench", "rollout", "kill", "partition", "drain", "scale", "leave")
ON_GPUS = {"gpu-single-node": ("deploy", "ask", "kill"),  # it has no workers to scale
           "gpu-multi-node": ("deploy", "ask", "kill", "scale", "leave"),
           "statefulset": ("deploy", "ask", "kill", "scale", "leave")}
# where the programs of an image are, what comes first wins
IMAGES = {"winnow": [BUILD / "bin"], "winnow-cuda": [BUILD / "cuda-host" / "bin", BUILD / "bin"]}


def render(overlay, work):
    """The overlay with the benchmark's job."""
    folder = work / "kustomization"
    shutil.copytree(KUBERNETES, folder)
    top = folder / "rehearsal"
    top.mkdir()
    (top / "kustomization.yaml").write_text(
        "resources: [../overlays/%s]\nnamespace: winnow\ncomponents: [../components/benchmark]\n" % overlay)
    return load(top)


def make_images(manifests, work, folder):
    """Root file systems of the images that the manifests name; what is in the folder is not made again."""
    out = {}
    for name in sorted(set(re.findall(r"'image': '([^']+)'", str(manifests)))):
        out[name] = folder / name
        if out[name].exists():
            continue
        programs, part = work / "programs" / name, folder / f"{name}.part"
        programs.mkdir(parents=True)
        for place in reversed(IMAGES[name]):
            for program in place.glob("winnow*"):
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
        hosts.run(ROOT / "deploy" / "container" / "rootfs.sh", programs, part)
        part.rename(out[name])
    return out


def ranks_of(manifests):
    """Of a group, by the coordinator's options."""
    (text,) = [m["data"]["coordinator.conf"] for m in manifests
               if m["kind"] == "ConfigMap" and "coordinator.conf" in m["data"]]
    return int(re.search(r"^tp = (\d+)$", text, re.MULTILINE).group(1))


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--overlay", default="cpu", choices=["cpu", *ON_GPUS])
    parser.add_argument("--speed", type=float, default=5.0, help="of probes")
    parser.add_argument("--patience", type=float, default=3.0, help="times the stated limits")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--images", type=Path, help="a folder that keeps root file systems")
    parser.add_argument("--plays", nargs="+", choices=PLAYS)
    return parser.parse_args()


def play_all(rehearsal, plays):
    """True if every play held; the logs of all pods otherwise."""
    try:
        for play in plays:
            rehearsal.say(f"== {play}")
            getattr(rehearsal, play)()
        rehearsal.say("passed: " + ", ".join(plays))
        return True
    except Exception as error:
        rehearsal.say(f"FAILED in {play}: {type(error).__name__}: {error}")
        for pod, text in rehearsal.cluster.logs().items():
            rehearsal.say(f"--- {pod}\n" + "\n".join(text.splitlines()[-30:]))
        return False


def main():
    given = options()
    hosts.enter()
    work = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    hosts.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", work)
    log = open(given.log, "w") if given.log else None

    def say(line):
        for out in filter(None, (sys.stdout, log)):
            print(line, file=out, flush=True)

    manifests = render(given.overlay, work)
    model = served.for_emulated_gpus if given.overlay in ON_GPUS else served.for_cpus
    short, long = model(work / "models" / "model")
    cluster = Cluster(manifests, work, make_images(manifests, work, given.images or work / "images"),
                      claims={"winnow-model": work / "models"},
                      secrets={"winnow-cluster": {"secret": os.urandom(24).hex() + "\n"}},
                      speed=given.speed, say=say)
    passed = play_all(Rehearsal(cluster, ranks_of(manifests), short, long, given.patience),
                      given.plays or ON_GPUS.get(given.overlay, PLAYS))
    # what is mounted in it, and the processes, go with the namespaces
    hosts.run("umount", "-l", work)
    work.rmdir()
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
