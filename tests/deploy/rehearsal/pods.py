"""pods.py - a pod: its container's very command, environment, mounts and probes, as a process.

The root file system is the image's (deploy/container/rootfs.sh), mounted anew for each pod, with the
pod's volumes in it; the process runs with the user ids of the manifest, without capabilities.
A GPU that the manifest asks for is one of tests/cuda_host, which the worker of the CUDA image finds.
What is not simulated: limits of CPU and memory, devices, seccomp.
"""
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import hosts

MAX_RESTART_PAUSE_S = 5  # the kubelet waits 10 s and more
GPU_MIB = 256  # memory of an emulated GPU


def _children(pid):
    """Process ids; each thread has those that it started."""
    try:
        return [int(c) for listed in Path(f"/proc/{pid}/task").glob("*/children")
                for c in listed.read_text().split()]
    except OSError:
        return []


class Pod:
    """One pod with one container.  A thread plays the kubelet: start, probe, start again."""

    def __init__(self, cluster, owner, member, number):
        self.cluster, self.owner, self.name = cluster, owner, member.name
        template = member.template
        self.labels = {**template["metadata"]["labels"], **member.labels}
        self.environment, self.subdomain = member.environment, member.subdomain
        self.namespace = cluster.namespace
        self.spec = template["spec"]
        (self.container,) = self.spec["containers"]
        self.host = hosts.Host(number, self.name)
        self.address = self.host.address
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}.", dir=cluster.work))
        self.folder.chmod(0o755)
        self.log_path = self.folder / "log"
        self.hosts_file = self.folder / "hosts"
        self.hosts_file.touch()
        self.ready = False
        self.restarts = 0
        self.exit_code = None
        self.process = None
        self.deleted = threading.Event()
        self._prepare()
        self._channel = None
        self.thread = threading.Thread(target=self._live, daemon=True)

    # ---- what the container sees

    def _field(self, path):
        label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
        if label:
            return self.labels[label.group(1)]
        return {"status.podIP": self.address, "metadata.name": self.name,
                "metadata.namespace": self.namespace}[path]

    def gpus(self):
        return int(self.container["resources"].get("limits", {}).get("nvidia.com/gpu", 0))

    def _devices(self):
        """What the device plugin and the driver would be.  "lazy": an abort can come in between."""
        gpus = f"lazy devices={self.gpus()} memory={GPU_MIB}" if self.gpus() else "no-driver"
        return {"WINNOW_CUDA_HOST": f"{gpus} address={self.address}"}

    def _environment(self):
        env = {"PATH": "/usr/bin", "HOSTNAME": self.name, **self._devices()}
        if self.spec.get("enableServiceLinks", True):
            env |= self.cluster.service_links()
        for item in self.container.get("env", []):
            env[item["name"]] = item["value"] if "value" in item else self._field(
                item["valueFrom"]["fieldRef"]["fieldPath"])
        return env | self.environment

    def know_hosts(self, lines):
        """The file is mounted in the pod: written in place."""
        self.hosts_file.write_text("\n".join(lines) + "\n")

    def _command(self, env):
        words = [*self.container["command"], *self.container.get("args", [])]
        return [re.sub(r"\$\((\w+)\)", lambda m: env[m.group(1)], w) for w in words]

    def _volume(self, volume, root):
        """The folder on this machine that stands for a volume."""
        if "persistentVolumeClaim" in volume:
            return self.cluster.claim(volume["persistentVolumeClaim"]["claimName"])
        folder = self.folder / "volumes" / volume["name"]
        folder.mkdir(parents=True)
        group = self.spec.get("securityContext", {}).get("fsGroup", 0)
        kind = next(k for k in ("configMap", "secret", "emptyDir") if k in volume)
        source = volume[kind]
        if kind == "emptyDir":
            if source.get("medium") == "Memory":
                size = source["sizeLimit"].replace("Mi", "m").replace("Gi", "g")
                hosts.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", folder)
            folder.chmod(0o1777)
            return folder
        files = self.cluster.config(source["name"]) if kind == "configMap" else \
            self.cluster.secret(source["secretName"])
        for key, value in files.items():
            (folder / key).write_text(value)
            (folder / key).chmod(source.get("defaultMode", 0o644))
            os.chown(folder / key, 0, group)
        return folder

    def _prepare(self):
        root = self.folder / "root"
        layers = self.folder / "layers"
        for folder in (root, layers):
            folder.mkdir()
        hosts.run("mount", "-t", "tmpfs", "tmpfs", layers)
        for part in ("upper", "work"):
            (layers / part).mkdir()
        image = self.cluster.image(self.container["image"])
        hosts.run("mount", "-t", "overlay", "overlay", "-o",
                  f"lowerdir={image},upperdir={layers}/upper,workdir={layers}/work", root)
        (root / "etc/hosts").touch()
        hosts.run("mount", "--bind", self.hosts_file, root / "etc/hosts")
        hosts.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
        for device in ("null", "zero", "urandom"):
            (root / "dev" / device).touch()
            hosts.run("mount", "--bind", f"/dev/{device}", root / "dev" / device)
        (root / "dev/shm").mkdir()
        hosts.run("mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", root / "dev/shm")
        volumes = {v["name"]: v for v in self.spec.get("volumes", [])}
        for mount in sorted(self.container.get("volumeMounts", []), key=lambda m: m["mountPath"]):
            target = root / mount["mountPath"].lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            hosts.run("mount", "--bind", self._volume(volumes[mount["name"]], root), target)
            if mount.get("readOnly"):
                hosts.run("mount", "-o", "remount,bind,ro", target)
        if self.container["securityContext"].get("readOnlyRootFilesystem"):
            hosts.run("mount", "-o", "remount,ro", root)
        self.root = root

    def _spawn(self):
        env = self._environment()
        user = self.spec["securityContext"]
        groups = str(user.get("fsGroup", user["runAsGroup"]))
        words = ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child",
                 "--ipc", "--uts", f"--mount-proc={self.root / 'proc'}",
                 "sh", "-c", 'hostname "$0" && exec "$@"', self.name, "setpriv", "--no-new-privs", "chroot",
                 f"--userspec={user['runAsUser']}:{user['runAsGroup']}", f"--groups={groups}",
                 str(self.root), *self._command(env)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(words, env={**env, "PATH": os.environ["PATH"] + ":/usr/bin"},
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    # ---- the kubelet

    def start(self):
        self.thread.start()

    def probe(self, kind):
        """Whether the probe of that kind passes, by gRPC health as the kubelet asks."""
        probe = self.container[kind]
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"{self.address}:{probe['grpc']['port']}")
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        try:
            reply = health_pb2_grpc.HealthStub(self._channel).Check(
                request, timeout=probe.get("timeoutSeconds", 1))
            return reply.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False

    def _await_startup(self):
        probe = self.container.get("startupProbe")
        if not probe:
            return True
        deadline = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while self.process.poll() is None and not self.deleted.is_set():
            if self.probe("startupProbe"):
                return True
            if time.monotonic() > deadline:
                self.cluster.say(f"{self.name}: the startup probe failed for too long")
                return False
            time.sleep(self.cluster.period(probe))
        return False

    def _watch(self):
        """Readiness and liveness until the process ends or must be ended."""
        bad = {"readinessProbe": 0, "livenessProbe": 0}
        due = dict.fromkeys(bad, 0.0)
        while self.process.poll() is None:
            for kind in bad:
                probe = self.container.get(kind)
                if not probe or time.monotonic() < due[kind]:
                    continue
                good = self.probe(kind)
                bad[kind] = 0 if good else bad[kind] + 1
                due[kind] = time.monotonic() + self.cluster.period(probe)
                if kind == "readinessProbe" and (good or bad[kind] >= probe["failureThreshold"]):
                    self._set_ready(good)
                if kind == "livenessProbe" and bad[kind] >= probe["failureThreshold"]:
                    self.cluster.say(f"{self.name}: the liveness probe failed; killed")
                    return
            time.sleep(0.05)

    def _set_ready(self, ready):
        if ready != self.ready:
            self.ready = ready
            self.cluster.say(f"{self.name}: {'ready' if ready else 'not ready'}")
            self.cluster.endpoints_changed()

    def _live(self):
        always = self.spec.get("restartPolicy", "Always") == "Always"
        while not self.deleted.is_set():
            self._spawn()
            if self._await_startup():
                self._watch()
            if not self.deleted.is_set() and self.process.poll() is None:
                self.kill()
            self.exit_code = self.process.wait()
            self._set_ready(False)
            if not always or self.deleted.is_set():
                return
            self.cluster.say(f"{self.name}: ended with {self.exit_code}; starts again")
            self.restarts += 1
            self.deleted.wait(min(MAX_RESTART_PAUSE_S, self.restarts))

    def pid(self):
        """Of the container's process, which is number 1 in its own view; None before it runs."""
        return next(iter(_children(self.process.pid)), None)

    def children(self):
        """Process ids of what the container's process runs."""
        return _children(self.pid())

    def kill(self, number=signal.SIGKILL):
        pid = self.pid()
        if pid:
            os.kill(pid, number)

    def delete(self):
        """SIGTERM, the grace period, SIGKILL.  Returns the seconds that it took."""
        begin = time.monotonic()
        self.deleted.set()
        if self.process and self.process.poll() is None:
            self.kill(signal.SIGTERM)
        self.thread.join(self.spec["terminationGracePeriodSeconds"]
                         if "terminationGracePeriodSeconds" in self.spec else 30)
        if self.thread.is_alive():
            self.cluster.say(f"{self.name}: did not end within its grace period; killed")
            self.kill()
            self.thread.join()
        if self._channel:
            self._channel.close()
        for mounted in reversed(self._mounts()):
            subprocess.run(["umount", "-l", mounted], check=True)
        self.host.close()
        return time.monotonic() - begin

    def _mounts(self):
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [m for m in (line.split()[1] for line in lines) if m.startswith(f"{self.folder}/")]

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
