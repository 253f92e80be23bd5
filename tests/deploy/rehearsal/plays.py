"""plays.py - what a deployment lives through, and what must hold meanwhile."""
import json
import os
import signal
import socket
import subprocess
import time

from expand import LWS, Member

HEARTBEAT_S = 5  # a silent worker is lost after so long
COORDINATOR = "winnow-coordinator-0"


class Client:
    """`winnow` in a pod of its own that may call the service, as a user's pod would."""

    def __init__(self, cluster, template):
        (container,) = template["spec"]["containers"]
        container = {**container, "command": ["winnow"], "args": ["--version"], "env": [],
                     "volumeMounts": [], "resources": {}}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            container.pop(kind, None)
        spec = {**template["spec"], "volumes": [], "containers": [container],
                "restartPolicy": "Never"}
        self.pod = cluster.start(None, Member("client", {
            "metadata": {"labels": {"winnow-client": "true"}}, "spec": spec}))
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

    def generate(self, case):
        return self.start("generate", "--server", "winnow:8600", "--file", "-", "--json",
                          *case.options, document=case.prompt)

    def groups(self):
        """As `winnow status` has them; none while nobody serves."""
        child = self.start("status", "--server", "winnow:8600", "--json")
        out, _ = child.communicate(timeout=30)
        return [] if child.returncode else json.loads(out)["groups"]

    @staticmethod
    def result(child, case, timeout):
        """The answer of a running request, which has to be right."""
        out, errors = child.communicate(timeout=timeout)
        if child.returncode:
            raise RuntimeError(errors.strip().splitlines()[-1])
        text = json.loads(out)["text"].strip()
        if not text.startswith(case.answer):
            raise RuntimeError(f"the answer is {text!r}, not {case.answer!r}")


class Rehearsal:
    """`ranks` are those of a group; `short` and `long` are cases of served.py; `patience` multiplies
    every limit of time, which are those of an idle machine."""

    def __init__(self, cluster, ranks, short, long, patience):
        self.cluster, self.ranks, self.patience = cluster, ranks, patience
        self.short, self.long = short, long
        self.say = cluster.say

    def within(self, seconds, what, test):
        begin = time.monotonic()
        while not test():
            if time.monotonic() - begin > seconds * self.patience:
                raise AssertionError(f"not within {seconds} s: {what}")
            time.sleep(0.05)
        self.say(f"  {what}: after {time.monotonic() - begin:.1f} s")

    def asks(self):
        self.client.result(self.client.generate(self.short), self.short, 60 * self.patience)

    def long_request(self):
        """A request that takes seconds, in its prefill."""
        child = self.client.generate(self.long)
        for line in child.stderr:
            if "reading" in line:
                return child
        raise AssertionError("the long request ended: " + child.stdout.read())

    def finishes(self, child):
        """A request without a token when its group was lost runs again."""
        begin = time.monotonic()
        self.client.result(child, self.long, 120 * self.patience)
        self.say(f"  the request that was being read is answered: after {time.monotonic() - begin:.1f} s")

    def coordinator(self):
        return self.cluster.pods[COORDINATOR]

    def workers(self):
        """Pods of workers: none where the coordinator starts them itself."""
        return [p for _, p in sorted(self.cluster.pods.items())
                if p.labels.get("app.kubernetes.io/component") == "worker"]

    def epochs(self):
        """Of the groups, all of which serve; empty while one does not."""
        groups = self.client.groups()
        return [g["epoch"] for g in groups] if {g["state"] for g in groups} == {"ready"} else []

    def check_places(self):
        """Each rank has a processor of its own, and a group is inside one replica of its set."""
        pods = {p.address: p for p in self.cluster.pods.values()}
        for group in self.client.groups():
            places = {(w["host"], w["device"].split()[0]) for w in group["workers"]}
            assert len(places) == len(group["workers"]) == self.ranks, places
            replicas = {pods[host].labels.get(LWS + "group-index") for host, _ in places if host in pods}
            assert len(replicas) <= 1, f"one group has pods of the replicas {replicas}"

    # ---- the plays

    def deploy(self):
        self.cluster.apply()
        for pod in self.cluster.pods.values():
            assert not pod.subdomain or self.cluster.has_name(pod), \
                f"{pod.name}: no headless service {pod.subdomain} selects it"
        self.within(30, "all pods ready", self.cluster.all_ready)
        for pod in self.cluster.pods.values():
            self.cluster.check_ports(pod)
            for port in pod.container["ports"]:
                socket.create_connection((pod.address, port["containerPort"]), 5).close()
        template = self.cluster.by_kind["Deployment"]["winnow-coordinator"]["spec"]["template"]
        self.client = Client(self.cluster, template)

    def ask(self):
        self.asks()
        self.check_places()
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
        """A worker's pod, or one of the coordinator's own workers."""
        before = self.epochs()
        child = self.long_request()
        if self.workers():
            victim = self.workers()[-1]
            victim.kill()
            self.within(5, "the pod starts again", lambda: victim.restarts == 1)
        else:
            victim = self.coordinator().children()[0]
            os.kill(victim, signal.SIGKILL)
            self.within(5, "another worker takes its place", lambda: len(
                set(self.coordinator().children()) - {victim}) == self.ranks)
        self.within(60, "the group forms again", lambda: self.epochs() > before)
        self.within(60, "all pods ready", self.cluster.all_ready)
        self.finishes(child)
        self.asks()

    def partition(self):
        child = self.long_request()
        victim = self.workers()[1]
        process = victim.pid()
        victim.host.connect(False)
        self.within(HEARTBEAT_S + 5, "readiness is off", lambda: not self.coordinator().ready)
        victim.host.connect()
        self.within(60, "all pods ready", self.cluster.all_ready)
        assert victim.pid() == process, "it stays and keeps its weights"
        self.finishes(child)
        self.asks()

    def drain(self):
        kept = [p.pid() for p in self.workers()]
        child = self.long_request()
        old, _ = self.cluster.replace(COORDINATOR)
        self.finishes(child)
        assert old.exit_code == 0
        self.within(60, "all pods ready", self.cluster.all_ready)
        assert [p.pid() for p in self.workers()] == kept, "workers stay and keep their weights"
        self.asks()

    def scale(self):
        """Twice as many replicas are twice as many groups."""
        kind, name = self.workers()[0].owner
        groups, replicas = len(self.epochs()), self.cluster.by_kind[kind][name]["spec"]["replicas"]
        self.cluster.scale(kind, name, 2 * replicas)
        self.within(60, "all pods ready", self.cluster.all_ready)
        assert len(self.epochs()) == 2 * groups
        self.check_places()
        self.asks()
        self.cluster.scale(kind, name, replicas)
        self.within(30, "all pods ready", self.cluster.all_ready)
        self.asks()

    def leave(self):
        """Workers go in any order and end well; what else there is ends with the namespaces."""
        for pod in self.workers():
            self.cluster.stop(pod.name)
            assert pod.exit_code == 0, f"{pod.name} ended with {pod.exit_code}"
