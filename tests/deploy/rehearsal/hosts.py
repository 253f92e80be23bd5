"""hosts.py - simulated hosts: a network namespace and an address for each pod, on one bridge.

Everything lives in namespaces of the calling process, which enter() makes: nothing of the machine
changes, and all of it, processes included, is gone when the process ends.  Needs root.
"""
import os
import subprocess
import sys

NODE = "10.77.0.1"  # the kubelet's side of the bridge
PREFIX = "10.77.0."


def run(*words, **options):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def enter():
    """Starts this program again inside its own network and mount namespaces, unless it is there."""
    if os.environ.get("REHEARSAL_INSIDE") != "1":
        os.execvpe("unshare", ["unshare", "--net", "--mount", "--propagation", "private", "--pid",
                               "--fork", "--kill-child", "--mount-proc", "--",
                               sys.executable, *sys.argv],
                   {**os.environ, "REHEARSAL_INSIDE": "1"})
    os.makedirs("/run/netns", exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "address", "add", f"{NODE}/24", "dev", "br0")
    run("ip", "link", "set", "br0", "up")


class Host:
    """A namespace with the address PREFIX + number; destroyed with close()."""

    def __init__(self, number, name):
        self.name = name
        self.address = f"{PREFIX}{number}"
        self._link = f"veth{number}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", name)
        # an address keeps its hardware address, as neighbours remember it
        run("ip", "-n", name, "link", "set", "eth0", "address", f"02:00:00:00:00:{number:02x}")
        run("ip", "link", "set", self._link, "master", "br0", "up")
        run("ip", "-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", name, "link", "set", device, "up")

    def connect(self, connected=True):
        run("ip", "link", "set", self._link, "up" if connected else "down")

    def filter(self, rules):
        """Replaces the packet filter by this text, in the language of nft."""
        run("ip", "netns", "exec", self.name, "nft", "-f", "-",
            input="flush ruleset\n" + rules)

    def close(self):
        run("ip", "link", "delete", self._link)
        run("ip", "netns", "delete", self.name)
