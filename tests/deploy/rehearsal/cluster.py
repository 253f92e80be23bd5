"""cluster.py - rendered manifests, played: controllers that make pods, names, endpoints, filters."""
import json
import threading
import time

import hosts
import policies
from pods import Pod

WORKLOADS = ("Deployment", "StatefulSet", "LeaderWorkerSet", "Job")
# What has no part in a rehearsal: nobody acts on these here.
PASSIVE = ("ServiceAccount", "PersistentVolumeClaim", "PodDisruptionBudget", "ServiceMonitor",
           "PodMonitor", "PrometheusRule", "ScaledObject")


class Cluster:
    """Pods by name, made from manifests.  `speed` shortens the periods of probes, not their
    time-outs; `claims` are folders by the name of a volume claim, `secrets` files by name."""

    def __init__(self, manifests, work, image, claims, secrets, speed=5.0, say=print):
        self.work, self.image, self.speed = work, image, speed
        self._claims, self._secrets = claims, secrets
        self.begin = time.monotonic()
        self._say = say
        self.by_kind = {}
        for item in manifests:
            self.by_kind.setdefault(item["kind"], {})[item["metadata"]["name"]] = item
        known = {*WORKLOADS, *PASSIVE, "ConfigMap", "Service", "NetworkPolicy"}
        unknown = set(self.by_kind) - known
        if unknown:
            raise ValueError(f"the rehearsal does not know what {unknown} do")
        (self.namespace,) = {m["metadata"]["namespace"] for m in manifests}
        self.pods = {}
        self._numbers = {}
        self._lock = threading.RLock()
        self.hosts_file = work / "hosts"
        self.hosts_file.write_text("")

    def say(self, text):
        self._say(f"{time.monotonic() - self.begin:7.1f} s  {text}")

    def period(self, probe):
        return probe["periodSeconds"] / self.speed

    # ---- what pods mount

    def config(self, name):
        return self.by_kind["ConfigMap"][name]["data"]

    def secret(self, name):
        return self._secrets[name]

    def claim(self, name):
        if name not in self.by_kind["PersistentVolumeClaim"]:
            raise ValueError(f"a pod mounts the claim {name}, which is not there")
        return self._claims[name]

    # ---- names and filters

    def endpoints(self, service):
        spec = service["spec"]
        return [p for p in self.pods.values()
                if policies.matches({"matchLabels": spec["selector"]}, p.labels)
                and (p.ready or spec.get("publishNotReadyAddresses"))]

    def endpoints_changed(self):
        with self._lock:
            lines = ["127.0.0.1 localhost"]
            for name, service in self.by_kind.get("Service", {}).items():
                lines += [f"{p.address} {name}" for p in self.endpoints(service)]
            lines += [f"{p.address} {p.name}" for p in self.pods.values()]
            # the same file is mounted in every pod: written in place
            self.hosts_file.write_text("\n".join(lines) + "\n")

    def _pods_changed(self):
        self.endpoints_changed()
        rules = list(self.by_kind.get("NetworkPolicy", {}).values())
        for pod in self.pods.values():
            pod.host.filter(policies.rules_for(pod, list(self.pods.values()), rules))

    # ---- controllers

    def start(self, kind, name, template, labels=(), environment=()):
        """One pod.  A name has the same address whenever it comes."""
        number = self._numbers.setdefault(name, 2 + len(self._numbers))
        self.say(f"{name}: starts as {hosts.PREFIX}{number}")
        pod = Pod(self, name, template, dict(labels), number, environment)
        pod.owner = (kind, template["metadata"]["labels"])
        self.pods[name] = pod
        self._pods_changed()
        pod.start()
        return pod

    def stop(self, name):
        pod = self.pods[name]
        took = pod.delete()
        del self.pods[name]
        self._pods_changed()
        self.say(f"{name}: ended with {pod.exit_code} after {took:.1f} s")
        return pod, took

    def members(self, kind, name):
        """(pod name, template, labels, environment) of everything that a workload wants."""
        item = self.by_kind[kind][name]
        spec = item["spec"]
        if kind == "Deployment":
            return [(f"{name}-{i}", spec["template"], {}, {}) for i in range(spec["replicas"])]
        if kind == "StatefulSet":
            return [(f"{name}-{i}", spec["template"],
                     {"apps.kubernetes.io/pod-index": str(i)}, {}) for i in range(spec["replicas"])]
        if kind == "Job":
            return [(f"{name}-{i}", spec["template"], {}, {})
                    for i in range(spec.get("completions", 1))]
        inner = spec["leaderWorkerTemplate"]
        prefix = "leaderworkerset.sigs.k8s.io/"
        return [(f"{name}-{g}" + (f"-{w}" if w else ""), inner["workerTemplate"],
                 {prefix + "group-index": str(g), prefix + "worker-index": str(w)},
                 {"LWS_LEADER_ADDRESS": f"{name}-{g}", "LWS_GROUP_SIZE": str(inner["size"]),
                  "LWS_WORKER_INDEX": str(w)})
                for g in range(spec["replicas"]) for w in range(inner["size"])]

    def scale(self, kind, name, replicas):
        self.by_kind[kind][name]["spec"]["replicas"] = replicas
        self.settle(kind, name)

    def settle(self, kind, name):
        """Makes the pods be those that the workload wants."""
        wanted = {m[0]: m for m in self.members(kind, name)}
        for pod in [p for p in self.pods if self._is_of(p, kind, name) and p not in wanted]:
            self.stop(pod)
        for pod, (_, template, labels, environment) in wanted.items():
            if pod not in self.pods:
                self.start(kind, pod, template, labels, environment)

    def _is_of(self, pod, kind, name):
        return self.pods[pod].owner[0] == kind and pod.startswith(f"{name}-")

    def apply(self):
        for kind in WORKLOADS:
            for name in self.by_kind.get(kind, {}):
                if kind != "Job":
                    self.settle(kind, name)

    def replace(self, name):
        """Ends a pod and makes it again, as a roll-out does."""
        kind = self.pods[name].owner[0]
        workload = name.rsplit("-", 1)[0]
        pod, took = self.stop(name)
        self.settle(kind, workload)
        return pod, took

    def all_ready(self):
        return all(p.ready for p in self.pods.values())

    def close(self):
        for name in list(self.pods):
            self.pods[name].spec["terminationGracePeriodSeconds"] = 5
            self.stop(name)

    def logs(self):
        return {name: pod.log() for name, pod in self.pods.items()}


def closing_lines(log):
    """The JSON objects of a log, one a line; other lines are left out."""
    out = []
    for line in log.splitlines():
        if line.startswith("{"):
            out.append(json.loads(line))
    return out
