"""network.py - three network namespaces in a row, in which messages can be lost.

The coordinator lives in the hub, workers in the two leaves; the leaves reach each other through
the hub, which forwards.  What is cut loses packets without a word, as a broken switch does: both
ends keep their connections and wait.  A Relay lets programs outside call a port of the hub.
"""
import ctypes
import os
import socket
import subprocess
import threading

CLONE_NEWNET = 0x40000000
NOWHERE = "02:00:00:00:00:01"  # a hardware address that nobody has


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def inside(namespace):
    """The beginning of a command that runs in the namespace."""
    return ["ip", "netns", "exec", namespace]


def unavailable():
    """Why there can be no network here; None: there can."""
    name = f"winnow{os.getpid()}t"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except FileNotFoundError:
        return "iproute2 is not installed"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    return None


class Network:
    LEAVES = (0, 1)

    def __init__(self):
        self.hub = f"winnow{os.getpid()}h"
        self.leaves = [f"winnow{os.getpid()}l{i}" for i in self.LEAVES]

    def __enter__(self):
        for name in (self.hub, *self.leaves):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for i, leaf in enumerate(self.leaves):
            ip("-n", self.hub, "link", "add", f"leaf{i}", "type", "veth", "peer", "name", "hub",
               "netns", leaf)
            ip("-n", self.hub, "address", "add", f"{self.hub_address(i)}/24", "dev", f"leaf{i}")
            ip("-n", leaf, "address", "add", f"{self.address(i)}/24", "dev", "hub")
            ip("-n", self.hub, "link", "set", f"leaf{i}", "up")
            ip("-n", leaf, "link", "set", "hub", "up")
            ip("-n", leaf, "route", "add", "default", "via", self.hub_address(i))
        self.join_leaves()
        return self

    def __exit__(self, *_):
        for name in (self.hub, *self.leaves):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    @staticmethod
    def address(leaf):
        return f"10.77.{leaf}.2"

    @staticmethod
    def hub_address(leaf):
        return f"10.77.{leaf}.1"

    def _forward(self, value):
        subprocess.run([*inside(self.hub), "sh", "-c",
                        f"echo {value} > /proc/sys/net/ipv4/ip_forward"],
                       check=True)

    def part_leaves(self):
        """Half a partition: all reach the coordinator, but not each other."""
        self._forward(0)

    def join_leaves(self):
        self._forward(1)

    def cut(self, leaf):
        """Nothing passes between this leaf and the rest."""
        ip("-n", self.hub, "neigh", "replace", self.address(leaf), "lladdr", NOWHERE, "nud",
           "permanent", "dev", f"leaf{leaf}")
        ip("-n", self.leaves[leaf], "neigh", "replace", self.hub_address(leaf), "lladdr", NOWHERE,
           "nud", "permanent", "dev", "hub")

    def heal(self, leaf):
        ip("-n", self.hub, "neigh", "delete", self.address(leaf), "dev", f"leaf{leaf}")
        ip("-n", self.leaves[leaf], "neigh", "delete", self.hub_address(leaf), "dev", "hub")


class Relay:
    """A port of this machine's loopback interface that is one of the hub's loopback interface."""

    def __init__(self, namespace, port):
        self.namespace, self.port = namespace, port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self):
        """A socket belongs to the namespace of the thread that made it, whoever uses it later."""
        with open(f"/run/netns/{self.namespace}", "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
