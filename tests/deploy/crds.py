"""crds.py - the custom resources that deploy/ uses, as strict JSON schemas.

kubernetes-validate knows what Kubernetes itself has.  These are written from the published
references of LeaderWorkerSet v1, the Prometheus operator v1 and KEDA v1alpha1, for the fields in use:
a field that is not here is an error, to be looked up before it is added.  A pod template inside a
custom resource is checked as a Pod.
"""
import kubernetes_validate

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
MAP = {"type": "object", "additionalProperties": TEXT}


def fields(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required),
            "properties": properties}


def items(schema):
    return {"type": "array", "minItems": 1, "items": schema}


SELECTOR = fields(["matchLabels"], matchLabels=MAP)
ENDPOINTS = items(
    fields(
        ["port"],
        port=TEXT,
        path=TEXT,
        interval={
            "type": "string",
             "pattern": r"^\d+s$"}))
SCHEMAS = {
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): fields(
        ["leaderWorkerTemplate"], replicas=COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=fields(["type"], type={"enum": ["RollingUpdate"]},
                               rollingUpdateConfiguration=fields(maxUnavailable={}, maxSurge={})),
        leaderWorkerTemplate=fields(
            ["size", "workerTemplate"], size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["None", "RecreateGroupOnPodRestart"]},
            workerTemplate={"type": "object"}, leaderTemplate={"type": "object"})),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): fields(
        ["selector", "endpoints"], selector=SELECTOR, endpoints=ENDPOINTS),
    ("monitoring.coreos.com/v1", "PodMonitor"): fields(
        ["selector", "podMetricsEndpoints"], selector=SELECTOR, podMetricsEndpoints=ENDPOINTS),
    ("monitoring.coreos.com/v1", "PrometheusRule"): fields(["groups"], groups=items(fields(
        ["name", "rules"], name=TEXT, rules=items(fields(
            ["alert", "expr"], **{"alert": TEXT, "expr": TEXT, "labels": MAP, "annotations": MAP,
                                  "for": {"type": "string", "pattern": r"^\d+[smh]$"}}))))),
    ("keda.sh/v1alpha1", "ScaledObject"): fields(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=fields(["name"], apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount=COUNT, maxReplicaCount=COUNT, pollingInterval=COUNT, cooldownPeriod=COUNT,
        triggers=items(fields(["type", "metadata"], type={"enum": ["prometheus"]}, metadata=fields(
            ["serverAddress", "query", "threshold"], serverAddress=TEXT, query=TEXT, threshold=TEXT)))),
}


def pod_templates(manifest):
    """The pod templates of a workload of any kind."""
    spec = manifest.get("spec", {})
    inner = spec.get("leaderWorkerTemplate", {})
    return [t for t in (spec.get("template"), inner.get(
        "leaderTemplate"), inner.get("workerTemplate")) if t]


def check(manifest, version):
    """Raises where a manifest is not what its kind allows."""
    import jsonschema

    key = manifest["apiVersion"], manifest["kind"]
    if key not in SCHEMAS:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest["spec"], SCHEMAS[key])
    for template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]},
               "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)
