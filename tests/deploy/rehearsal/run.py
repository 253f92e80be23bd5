#!/usr/bin/env python3
"""Rehearse a deployment: what the rendered manifests of an overlay would start, as processes.

usage: run.py [--overlay cpu] [--speed 5] [--log FILE] [--plays NAME...]

Each pod is a simulated host with an address and a name; its command, arguments, environment, mounts,
user and probes are read from the YAML.  The plays: deploy, ask, bench, roll-out, kill, partition,
drain, scale.  Every play says what must hold and within which time; the first that does not hold
ends the rehearsal with status 1 and the logs of all pods.  Needs root, iproute2 and nftables.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import hosts  # noqa: E402
from cluster import Cluster  # noqa: E402
from deployment import BUILD, KUBERNETES, ROOT, load  # noqa: E402

MODEL = ROOT / "tests" / "models" / "needle-tiny"
WORKER = ("StatefulSet", "winnow-worker")
HEARTBEAT_S = 5  # a silent worker is lost after so long


class Client:
    """`winnow` in a pod of its own that may call the service, as a user's pod would."""

    def __init__(self, cluster, template):
        self.cluster = cluster
        self.template = template
        labels = {"winnow-client": "true"}
        pod = {
    **template,
    "metadata": {
        "labels": labels},
        "spec": {
            **template["spec"],
             "volumes": []}}
        (container,) = pod["spec"]["containers"]
        container = {**container, "command": ["winnow"], "args": ["--version"], "env": [],
                     "volumeMounts": []}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            container.pop(kind, None)
        pod["spec"].update(containers=[container], restartPolicy="Never")
        self.pod = cluster.start("Client", "client", pod)
        self.pod.ready = True
        self.pod._set_ready = lambda ready: None

    def start(self, *words, document=""):
        """The program, running, with a document on stdin; its output is JSON on stdout."""
        command = ["ip", "netns", "exec", self.pod.name, "chroot", str(self.pod.root),
                   "/usr/bin/winnow", *words]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
        child.stdin.write(document)
        child.stdin.close()
        child.stdin = None  # communicate() is not to flush it again
        return child

    def generate(self, case, *options):
        return self.start("generate", "--server", "winnow:8600", "--file", "-", "--json",
                          "--max-tokens", "5", *options, document=case["prompt"])

    def answer(self, case, timeout=60):
        return self.result(self.generate(case), case, timeout)

    @staticmethod
    def result(child, case, timeout):
        """The answer of a running request, which has to be right."""
        out, errors = child.communicate(timeout=timeout)
        if child.returncode:
            raise RuntimeError(errors.strip().splitlines()[-1])
        text = json.loads(out)["text"].strip()
        if not text.startswith(case["answer"].strip()):
            raise RuntimeError(f"the answer is {text!r}, not {case['answer']!r}")


class Rehearsal:
    def __init__(self, cluster, cases, deadline_factor):
        self.cluster, self.cases, self.factor = cluster, cases, deadline_factor
        self.say = cluster.say

    def within(self, seconds, what, test):
        """Waits until test() is true, for at most so long on an idle machine."""
        begin = time.monotonic()
        while not test():
            if time.monotonic() - begin > seconds * self.factor:
                raise AssertionError(f"not within {seconds} s: {what}")
            time.sleep(0.05)
        self.say(f"  {what}: after {time.monotonic() - begin:.1f} s")

    def asks(self):
        self.client.answer(self.cases[1024])

    def long_request(self):
        """A request that takes seconds, in its prefill."""
        child = self.client.generate(self.cases[32768])
        for line in child.stderr:
            if "reading" in line:
                return child
        raise AssertionError("the long request ended: " + child.stdout.read())

    def finishes(self, child):
        """A request without a token when its group was lost runs again."""
        begin = time.monotonic()
        self.client.result(child, self.cases[32768], 120 * self.factor)
        self.say(f"  the request that was being read is answered: after {time.monotonic() - begin:.1f} s")

    def coordinator(self):
        return self.cluster.pods["winnow-coordinator-0"]

    def workers(self):
        return [p for n, p in sorted(self.cluster.pods.items()) if n.startswith("winnow-worker-")]

    # ---- the plays

    def deploy(self):
        self.cluster.apply()
        self.within(30, "all pods ready", self.cluster.all_ready)
        template = self.cluster.by_kind["Deployment"]["winnow-coordinator"]["spec"]["template"]
        self.client = Client(self.cluster, template)

    def ask(self):
        self.asks()
        for pod in self.workers():
            assert pod.restarts == 0 and "EROFS" not in pod.log()

    def bench(self):
        for name in self.cluster.by_kind.get("Job", {}):
            self.cluster.settle("Job", name)
            pod = self.cluster.pods[f"{name}-0"]
            self.within(120, "the job is done", lambda: pod.exit_code is not None)
            assert pod.exit_code == 0, pod.log()
            result = next((pod.folder / "volumes" / "tmp").glob("*.json"))
            report = json.loads(result.read_text())
            assert report["completed"] > 0 and report["failed"] == 0
            self.say(f"  {report['completed']} requests, {report['request_throughput']:.2f}/s")
            self.cluster.stop(f"{name}-0")

    def rollout(self):
        for pod in reversed(self.workers()):
            _, took = self.cluster.replace(pod.name)
            assert took < 10, "a worker leaves at once"
            self.within(60, f"{pod.name} is ready again", self.cluster.all_ready)
        self.asks()

    def kill(self):
        child = self.long_request()
        victim = self.workers()[0]
        victim.kill()
        self.within(5, "the pod starts again", lambda: victim.restarts == 1)
        self.within(60, "all pods ready", self.cluster.all_ready)
        self.finishes(child)
        self.asks()

    def partition(self):
        child = self.long_request()
        victim = self.workers()[1]
        victim.host.connect(False)
        self.within(HEARTBEAT_S + 5, "readiness is off", lambda: not self.coordinator().ready)
        victim.host.connect()
        self.within(60, "all pods ready", self.cluster.all_ready)
        assert victim.restarts == 0
        self.finishes(child)
        self.asks()

    def drain(self):
        kept = [p.pid() for p in self.workers()]
        child = self.long_request()
        old, _ = self.cluster.replace("winnow-coordinator-0")
        self.finishes(child)
        assert old.exit_code == 0
        self.within(60, "all pods ready", self.cluster.all_ready)
        assert [p.pid() for p in self.workers()] == kept, "workers stay and keep their weights"
        self.asks()

    def scale(self):
        kind, name = WORKER
        ranks = len(self.workers())
        self.cluster.scale(kind, name, 2 * ranks)
        self.within(60, "all pods ready", self.cluster.all_ready)
        child = self.client.start("status", "--server", "winnow:8600", "--json")
        status = json.loads(child.communicate(timeout=30)[0])
        states = [g["state"] for g in status["groups"]]
        assert states == ["ready", "ready"], states
        self.asks()
        self.cluster.scale(kind, name, ranks)
        self.within(30, "all pods ready", self.cluster.all_ready)
        self.asks()


PLAYS = ("deploy", "ask", "bench", "rollout", "kill", "partition", "drain", "scale")


def needle_cases():
    cases = {}
    for line in (MODEL / "test_public.jsonl").read_text().splitlines():
        case = json.loads(line)
        cases.setdefault(case["length"], case)
    return cases


def manifests(overlay, work):
    """The overlay with the benchmark's job, rendered."""
    folder = work / "kustomization"
    shutil.copytree(KUBERNETES, folder)
    top = folder / "rehearsal"
    top.mkdir()
    (top / "kustomization.yaml").write_text(
        "resources: [../overlays/%s]\nnamespace: winnow\ncomponents: [../components/benchmark]\n" % overlay)
    return load(top)


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--overlay", default="cpu")
    parser.add_argument("--speed", type=float, default=5.0, help="of probes")
    parser.add_argument("--patience", type=float, default=3.0, help="times the stated limits")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--plays", nargs="+", default=PLAYS, choices=PLAYS)
    return parser.parse_args()


def play_all(rehearsal, plays):
    """True if every play held; the logs of all pods otherwise."""
    try:
        for play in plays:
            rehearsal.say(f"== {play}")
            getattr(rehearsal, play)()
        rehearsal.cluster.close()
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

    hosts.run(ROOT / "deploy" / "container" / "rootfs.sh", BUILD / "bin", work / "image")
    shutil.copytree(MODEL, work / "models" / "model")
    cluster = Cluster(manifests(given.overlay, work), work, work / "image",
                      claims={"winnow-model": work / "models"},
                      secrets={"winnow-cluster": {"secret": os.urandom(24).hex() + "\n"}},
                      speed=given.speed, say=say)
    passed = play_all(Rehearsal(cluster, needle_cases(), given.patience), given.plays)
    # what is mounted in it, and the processes, go with the namespaces
    hosts.run("umount", "-l", work)
    work.rmdir()
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
