"""The manifests: rendered, valid, hardened, and true to the programs that they start."""
import functools
import json
import re
import subprocess

import pytest

import kubectl
from deployment import BUILD, KUBERNETES, load

pytest.importorskip("kubernetes_validate", reason="tests/deploy/requirements.txt is not installed")
if not kubectl.path().exists():
    pytest.skip("kubectl could not be fetched", allow_module_level=True)

import promql_parser  # noqa: E402
import yaml  # noqa: E402
from crds import check, pod_templates  # noqa: E402

VERSION = "1.34"
OVERLAYS = sorted(p.parent for p in KUBERNETES.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(p.parent for p in KUBERNETES.glob("components/*/kustomization.yaml"))
# which overlay a component is for, where it is not for all
ONLY = {"keda": ["gpu-multi-node"], "worker-tls": ["cpu", "gpu-multi-node", "statefulset"]}
COMBINED = [(o, c) for o in OVERLAYS for c in COMPONENTS if o.name in ONLY.get(c.name, [o.name])]


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    """Renders an overlay with a component, as a user's own kustomization would."""
    root = tmp_path_factory.mktemp("kustomize")
    subprocess.run(["cp", "-r", KUBERNETES, root / "kubernetes"], check=True)

    @functools.cache
    def render(overlay, component):
        folder = root / "kubernetes" / f"{overlay.name}-{component.name}"
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(
            f"namespace: winnow\nresources: [../overlays/{overlay.name}]\n"
            f"components: [../components/{component.name}]\n")
        return load(folder)

    return render


def containers(manifests):
    return [(t["spec"], c) for m in manifests for t in pod_templates(m)
             for c in t["spec"]["containers"]]


def configuration(manifests, file):
    """The options of a .conf file in a ConfigMap, None where there is no such file."""
    for m in manifests:
        if m["kind"] == "ConfigMap" and file in m["data"]:
            lines = [line.split("=", 1) for line in m["data"][file].splitlines()
                     if line and not line.startswith("#")]
            return {k.strip(): v.strip() for k, v in lines}
    return None


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name)
def test_an_overlay_is_valid(overlay):
    manifests = load(overlay)
    assert {
    "Deployment",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget"} <= {
        m["kind"] for m in manifests}
    for manifest in manifests:
        check(manifest, VERSION)


@pytest.mark.parametrize("overlay,component", COMBINED, ids=lambda p: p.name)
def test_a_component_is_valid_with_an_overlay(combined, overlay, component):
    for manifest in combined(overlay, component):
        check(manifest, VERSION)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name)
def test_every_pod_is_hardened(overlay):
    for pod, container in containers(load(overlay)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "limits" in container["resources"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name)
def test_every_pod_has_the_three_probes_by_grpc(overlay):
    for _, container in containers(load(overlay)):
        ports = {p["containerPort"] for p in container["ports"]}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[kind]["grpc"]["port"] in ports
        assert container["livenessProbe"]["grpc"]["service"] == "liveness"
        assert container["readinessProbe"]["grpc"]["service"] == "readiness"
        assert container["livenessProbe"]["timeoutSeconds"] >= 5
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name)
def test_the_times_of_a_drain_add_up(overlay):
    manifests = load(overlay)
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    options = configuration(manifests, "coordinator.conf")
    drain = (int(options["drain-window-ms"]) + int(options["drain-timeout-ms"])) / 1000
    assert grace >= drain + 10


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name)
@pytest.mark.parametrize("program,file", [("winnow-coordinator", "coordinator.conf"),
                                          ("winnow-worker", "worker.conf")])
def test_the_programs_know_every_option(overlay, program, file, tmp_path):
    """Options in ConfigMaps and arguments, read by the program itself: it gets as far as the model."""
    manifests = load(overlay)
    options = configuration(manifests, file)
    if options is None:
        pytest.skip("the overlay has no such program")
    assert options["model"] == "/models/model"
    path = tmp_path / file
    path.write_text("".join(f"{k} = {v}\n" for k, v in options.items()))
    arguments = next(c["args"] for _, c in containers(manifests) if c["command"] == [program])
    words = [str(path) if a.startswith("/etc/winnow/config/") else a.replace("$(POD_IP)", "127.0.0.1")
             for a in arguments]
    done = subprocess.run([BUILD / "bin" / program, *words],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "/models/model" in done.stderr or "/etc/winnow/cluster/secret" in done.stderr


def metrics_in_use(manifests):
    """Every PromQL expression of alerts, scalers and dashboards."""
    for m in manifests:
        if m["kind"] == "PrometheusRule":
            yield from (rule["expr"] for group in m["spec"]["groups"] for rule in group["rules"])
        elif m["kind"] == "ScaledObject":
            yield from (t["metadata"]["query"] for t in m["spec"]["triggers"])
        elif m["kind"] == "ConfigMap" and "winnow.json" in m["data"]:
            for panel in json.loads(m["data"]["winnow.json"])["panels"]:
                yield from (t["expr"] for t in panel["targets"])


def test_expressions_parse_and_speak_of_metrics_that_exist(combined):
    sources = "".join(p.read_text() for p in (KUBERNETES.parents[1] / "coordinator").glob("*.c"))
    expressions = [e for component in COMPONENTS
                   for e in metrics_in_use(combined(KUBERNETES / "overlays/gpu-multi-node", component))]
    assert len(expressions) > 20
    for expression in expressions:
        promql_parser.parse(
    expression.replace(
        "$__rate_interval",
        "5m").replace(
            "$namespace",
             "winnow"))
        names = re.findall(r"winnow:[a-z_]+", expression)
        assert names
        for name in names:
            known = {name, re.sub(r"_(bucket|sum|count)$", "", name)}
            assert any(f'"{k}"' in sources for k in known), name


def test_the_dashboard_is_whole():
    dashboard = json.loads((KUBERNETES / "components/monitoring/dashboard.json").read_text())
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    assert all(p["targets"] and p["title"] for p in dashboard["panels"])


def test_workers_of_both_kinds_are_alike():
    """The LeaderWorkerSet repeats the StatefulSet's pod; what may differ is named here."""
    (stateful,) = [t["spec"] for m in load(KUBERNETES / "overlays/statefulset")
                   if m["kind"] == "StatefulSet" for t in pod_templates(m)]
    (leader,) = [t["spec"] for m in load(KUBERNETES / "overlays/gpu-multi-node")
                 if m["kind"] == "LeaderWorkerSet" for t in pod_templates(m)]
    differ = {"args", "env", "resources", "image"}
    a, b = (dict(spec["containers"][0]) for spec in (stateful, leader))
    assert {
    k: v for k,
    v in a.items() if k not in differ} == {
        k: v for k,
         v in b.items() if k not in differ}
    assert stateful["securityContext"] == leader["securityContext"]
    assert {v["name"] for v in stateful["volumes"]} == {v["name"] for v in leader["volumes"]}


def test_manifests_hold_no_secret():
    for path in KUBERNETES.rglob("*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            assert not manifest or manifest.get("kind") != "Secret"
