"""expand.py - from a workload to its pods, as its controller in a cluster makes them.

A function for each kind; what differs between kinds is here and nowhere else.  What the manifests
do not use is refused, so that nothing is played otherwise than it would run.
"""
import hashlib
from dataclasses import dataclass, field

from policies import matches

LWS = "leaderworkerset.sigs.k8s.io/"


@dataclass
class Member:
    """A pod that a workload wants."""
    name: str  # of its host, too
    template: dict
    labels: dict = field(default_factory=dict)       # beside the template's
    environment: dict = field(default_factory=dict)  # beside the container's
    subdomain: str = ""  # the headless service that gives it a name of its own


def _require(holds, item, text):
    if not holds:
        raise ValueError(f"{item['kind']} {item['metadata']['name']}: {text}")


def _selects_its_pods(item):
    spec = item["spec"]
    _require(matches(spec["selector"], spec["template"]["metadata"]["labels"]), item,
             "its selector does not match its template")


def _ordinals(name, numbers, template, subdomain, labels=(), environment=()):
    """The pods of a StatefulSet."""
    return [Member(f"{name}-{i}", template,
                   {"statefulset.kubernetes.io/pod-name": f"{name}-{i}",
                    "apps.kubernetes.io/pod-index": str(i), **dict(labels)},
                   dict(environment), subdomain) for i in numbers]


def deployment(item):
    spec = item["spec"]
    _selects_its_pods(item)
    return [Member(f"{item['metadata']['name']}-{i}", spec["template"])
            for i in range(spec.get("replicas", 1))]


def stateful_set(item):
    spec = item["spec"]
    _selects_its_pods(item)
    # one after the other each would wait until the one before is ready, which takes the whole group
    _require(spec.get("podManagementPolicy") == "Parallel", item, "its pods have to start together")
    return _ordinals(item["metadata"]["name"], range(spec.get("replicas", 1)), spec["template"],
                     spec["serviceName"])


def leader_worker_set(item):
    """The leaders are a StatefulSet of the set's name.  Each has one of its own name, whose ordinals
    begin at 1.  All are in the domain of the set."""
    name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
    inner = item["spec"]["leaderWorkerTemplate"]
    size, workers = inner.get("size", 1), inner["workerTemplate"]
    _require("networkConfig" not in item["spec"], item, "only the shared domain is understood")
    _require(item["spec"].get("startupPolicy") == "LeaderCreated", item,
             "its pods have to start together")
    _require(inner.get("restartPolicy") == "None", item, "pods are started again one by one")
    out = []
    for group in range(item["spec"].get("replicas", 1)):
        leader = f"{name}-{group}"
        for index in range(size):
            owner, number = (leader, index) if index else (name, group)
            template = workers if index else inner.get("leaderTemplate", workers)
            labels = {LWS + "name": name, LWS + "group-index": str(group),
                      LWS + "worker-index": str(index),
                      LWS + "group-key": hashlib.sha1(f"{namespace}/{leader}".encode()).hexdigest()}
            out += _ordinals(owner, [number], template, name, labels, {
                "LWS_LEADER_ADDRESS": f"{leader}.{name}.{namespace}", "LWS_GROUP_SIZE": str(size),
                "LWS_WORKER_INDEX": str(index)})
    return out


def job(item):
    spec = item["spec"]
    return [Member(f"{item['metadata']['name']}-{i}", spec["template"])
            for i in range(spec.get("completions", 1))]


MEMBERS = {"Deployment": deployment, "StatefulSet": stateful_set,
           "LeaderWorkerSet": leader_worker_set, "Job": job}


def services_of(item):
    """What a controller adds to the services of the manifests."""
    name = item["metadata"]["name"]
    if item["kind"] != "LeaderWorkerSet":
        return {}
    return {name: {"metadata": {"name": name}, "spec": {
        "clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LWS + "name": name}}}}
