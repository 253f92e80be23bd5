"""cluster.py - rendered manifests, played: controllers that make pods, names, endpoints, filters."""
import threading
import time

import hosts
import policies
from expand import MEMBERS, services_of
from pods import Pod

# What has no part in a rehearsal: nobody acts on these here.
PASSIVE = ("ServiceAccount", "PersistentVolumeClaim", "PodDisruptionBudget", "ServiceMonitor",
           "PodMonitor", "PrometheusRule", "ScaledObject")
CLUSTER_IP = "10.96.0.10"  # nobody is there: names lead to the pods themselves


class Cluster:
    """Pods by name, made from manifests.  `speed` shortens the periods of probes, not their
    time-outs; `images` are folders by the name of an image, `claims` by that of a volume claim,
    `secrets` files by name."""

    def __init__(self, manifests, work, images, claims, secrets, speed=5.0, say=print):
        self.work, self.speed = work, speed
        self._images, self._claims, self._secrets = images, claims, secrets
        self.begin = time.monotonic()
        self._say = say
        self.by_kind = {}
        for item in manifests:
            self.by_kind.setdefault(item["kind"], {})[item["metadata"]["name"]] = item
        known = {*MEMBERS, *PASSIVE, "ConfigMap", "Service", "NetworkPolicy"}
        unknown = set(self.by_kind) - known
        if unknown:
            raise ValueError(f"the rehearsal does not know what {unknown} do")
        (self.namespace,) = {m["metadata"]["namespace"] for m in manifests}
        self.services = {}
        for item in manifests:
            self.services |= services_of(item)
        self.services |= self.by_kind.get("Service", {})
        self.pods = {}
        self._numbers = {}
        self._lock = threading.RLock()

    def say(self, text):
        self._say(f"{time.monotonic() - self.begin:7.1f} s  {text}")

    def period(self, probe):
        return probe["periodSeconds"] / self.speed

    # ---- what pods are made of

    def image(self, name):
        return self._images[name]

    def config(self, name):
        return self.by_kind["ConfigMap"][name]["data"]

    def secret(self, name):
        return self._secrets[name]

    def claim(self, name):
        if name not in self.by_kind["PersistentVolumeClaim"]:
            raise ValueError(f"a pod mounts the claim {name}, which is not there")
        return self._claims[name]

    def service_links(self):
        """The variables by which every pod hears of services, headless ones apart."""
        out = {}
        for name, service in self.services.items():
            if service["spec"].get("clusterIP") == "None":
                continue
            begin, ports = name.upper().replace("-", "_"), service["spec"]["ports"]
            out |= {f"{begin}_SERVICE_HOST": CLUSTER_IP, f"{begin}_SERVICE_PORT": str(ports[0]["port"]),
                    f"{begin}_PORT": f"tcp://{CLUSTER_IP}:{ports[0]['port']}"}
            for port in ports:
                one = f"{begin}_PORT_{port['port']}_TCP"
                out |= {one: f"tcp://{CLUSTER_IP}:{port['port']}", f"{one}_PROTO": "tcp",
                        f"{one}_PORT": str(port["port"]), f"{one}_ADDR": CLUSTER_IP,
                        f"{begin}_SERVICE_PORT_{port['name'].upper()}": str(port["port"])}
        return out

    # ---- names and filters

    def _names(self, name):
        """What a pod may write for a name of its own namespace."""
        return " ".join([name, *(f"{name}.{self.namespace}{end}" for end in
                                 ("", ".svc", ".svc.cluster.local"))])

    def endpoints(self, service):
        spec = service["spec"]
        return [p for p in self.pods.values()
                if policies.matches({"matchLabels": spec["selector"]}, p.labels)
                and (p.ready or spec.get("publishNotReadyAddresses"))]

    def check_ports(self, pod):
        """Names lead to pods, not to a service's address, so a service's port has to be the pod's."""
        ports = {p["name"]: p["containerPort"] for p in pod.container.get("ports", [])}
        for name, service in self.services.items():
            if pod not in self.endpoints(service):
                continue
            for port in service["spec"].get("ports", []):
                target = port.get("targetPort", port["port"])
                if ports.get(target, target) != port["port"]:
                    raise ValueError(f"service {name}: {pod.name} has no port {target} {port['port']}")

    def has_name(self, pod):
        """Whether the pod's name is known: its service is there, headless, and selects it."""
        service = self.services.get(pod.subdomain, {"spec": {}})
        return service["spec"].get("clusterIP") == "None" and pod in self.endpoints(service)

    def endpoints_changed(self):
        with self._lock:
            lines = ["127.0.0.1 localhost"]
            for name, service in self.services.items():
                lines += [f"{p.address} {self._names(name)}" for p in self.endpoints(service)]
            lines += [f"{p.address} {self._names(f'{p.name}.{p.subdomain}')}"
                      for p in self.pods.values() if self.has_name(p)]
            for pod in self.pods.values():
                pod.know_hosts([*lines, f"{pod.address} {pod.name}"])

    def _pods_changed(self):
        self.endpoints_changed()
        rules = list(self.by_kind.get("NetworkPolicy", {}).values())
        for pod in self.pods.values():
            pod.host.filter(policies.rules_for(pod, list(self.pods.values()), rules))

    # ---- controllers

    def start(self, owner, member):
        """One pod.  A name has the same address whenever it comes."""
        number = self._numbers.setdefault(member.name, 2 + len(self._numbers))
        self.say(f"{member.name}: starts as {hosts.PREFIX}{number}")
        pod = Pod(self, owner, member, number)
        self.pods[member.name] = pod
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

    def scale(self, kind, name, replicas):
        self.by_kind[kind][name]["spec"]["replicas"] = replicas
        self.settle(kind, name)

    def settle(self, kind, name):
        """Makes the pods be those that the workload wants."""
        wanted = {m.name: m for m in MEMBERS[kind](self.by_kind[kind][name])}
        for pod in [p for p in self.pods.values() if p.owner == (kind, name)]:
            if pod.name not in wanted:
                self.stop(pod.name)
        for member in wanted.values():
            if member.name not in self.pods:
                self.start((kind, name), member)

    def apply(self):
        for kind in MEMBERS:
            for name in self.by_kind.get(kind, {}):
                if kind != "Job":
                    self.settle(kind, name)

    def replace(self, name):
        """Ends a pod and makes it again, as a roll-out does."""
        pod, took = self.stop(name)
        self.settle(*pod.owner)
        return pod, took

    def all_ready(self):
        return all(p.ready for p in self.pods.values())

    def logs(self):
        return {name: pod.log() for name, pod in self.pods.items()}
