"""multinode_net.py - simulated hosts with a rate, a delay and a share of a core.

A host is a network namespace.  Its interface is either one end of a veth pair on a bridge, whose rate
`tc tbf` limits, or a TUN device: then this program carries the packets, and can delay them as well.
Kernels without netem and fq have no delay of their own.  Everything is gone when the process ends.
"""
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

PREFIX = "10.77.0."
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
CLONE_NEWNET = 0x40000000
HEADERS = 14 + 20 + 32  # of a frame: Ethernet, IPv4, TCP with timestamps
TUN_MTU = 60000  # few packets, so that this program holds the rate
CGROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 40000


def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def enter():
    """Starts this program again in its own network, mount and process namespaces, once."""
    if os.geteuid() != 0:
        sys.exit("needs root: network namespaces")
    if os.environ.get("MULTINODE_INSIDE") != "1":
        os.execvpe("unshare", ["unshare", "--net", "--mount", "--propagation", "private", "--pid",
                               "--fork", "--kill-child", "--mount-proc", "--", sys.executable,
                               *sys.argv],
                   {**os.environ, "MULTINODE_INSIDE": "1"})
    os.makedirs("/run/netns", exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")


class Host:
    """`number` from 0 on; `core` pins what runs there."""

    def __init__(self, number, core=None):
        self.name, self.number = f"host{number}", number
        self.address = f"{PREFIX}{10 + number}"
        self.words = ["ip", "netns", "exec", self.name]
        if core is not None:
            self.words += ["taskset", "-c", str(core)]
        self._group = None
        self._running = []
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def start(self, *words, **options):
        process = subprocess.Popen([*self.words, *map(str, words)], **options)
        self._running.append(process.pid)
        return process

    def hold(self, share):
        """From now on what was started gets at most this share of a core."""
        self._group = CGROUPS / f"winnow-{time.time_ns()}-{self.number}"
        self._group.mkdir()
        (self._group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self._group / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_US)))
        for pid in self._running:
            (self._group / "cgroup.procs").write_text(str(pid))

    def sent(self):
        """Bytes of all frames, and of their headers."""
        told = json.loads(run("ip", "-n", self.name, "-s", "-j", "link", "show", "eth0"))
        tx = told[0]["stats64"]["tx"]
        return tx["bytes"], HEADERS * tx["packets"]

    def close(self):
        run("ip", "netns", "delete", self.name)
        for _ in range(50):
            with contextlib.suppress(OSError):
                if self._group:
                    self._group.rmdir()
                return
            time.sleep(0.1)


class Bridge:
    """Hosts on a bridge.  Packets leave a host one segment at a time, as on a wire, with wire=True."""

    def __init__(self, hosts, wire=False):
        self.hosts = hosts
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "link", "set", "br0", "up")
        for host in hosts:
            run("ip", "link", "add", f"v{host.number}", "type", "veth", "peer", "name", "eth0", "netns",
                host.name)
            run("ip", "link", "set", f"v{host.number}", "master", "br0", "up")
            run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            if wire:
                run("ip", "-n", host.name, "link", "set", "eth0", "gso_max_segs", "1")
            run("ip", "-n", host.name, "link", "set", "eth0", "up")

    def limit(self, rate):
        """Of what each host sends, in bits a second; None: no limit."""
        for host in self.hosts:
            subprocess.run(["tc", "-n", host.name, "qdisc", "del", "dev", "eth0", "root"],
                           capture_output=True)
            if rate:
                burst = max(65536, int(rate / 8 * 1e-3))
                run("tc", "-n", host.name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate",
                    f"{int(rate)}bit", "burst", burst, "latency", "50ms")

    def close(self):
        for host in self.hosts:
            run("ip", "link", "delete", f"v{host.number}")
        run("ip", "link", "delete", "br0")


class Relay:
    """Hosts whose packets a thread of this program carries, `delay_s` late and at most at `rate`."""

    def __init__(self, hosts):
        self.rate, self.delay_s = None, 0.0
        self.late_s = 0.0  # the most that a packet came after its time
        self._fds = {}
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        for host in hosts:
            with open(f"/run/netns/{host.name}") as namespace:
                libc.setns(namespace.fileno(), CLONE_NEWNET)
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TUN | IFF_NO_PI))
            libc.setns(own, CLONE_NEWNET)
            run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            run("ip", "-n", host.name, "link", "set", "eth0", "mtu", TUN_MTU, "txqueuelen", 5000, "up")
            self._fds[10 + host.number] = fd
        os.close(own)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self):
        free_at = dict.fromkeys(self._fds, 0.0)  # when each host's link is free again
        due = []
        count = 0
        while not self._stop.is_set():
            wait = max(0.0, due[0][0] - time.monotonic()) if due else 0.1
            ready, _, _ = select.select(list(self._fds.values()), [], [], wait)
            for sender, fd in self._fds.items():
                while fd in ready:
                    try:
                        packet = os.read(fd, 65536)
                    except BlockingIOError:
                        break
                    now = time.monotonic()
                    if packet[0] >> 4 != 4 or packet[19] not in self._fds:
                        continue
                    free_at[sender] = max(now, free_at[sender]) + (
                        len(packet) * 8 / self.rate if self.rate else 0)
                    count += 1
                    heapq.heappush(due, (free_at[sender] + self.delay_s, count, packet))
            now = time.monotonic()
            while due and due[0][0] <= now:
                at, _, packet = heapq.heappop(due)
                self.late_s = max(self.late_s, now - at)
                with contextlib.suppress(OSError):
                    os.write(self._fds[packet[19]], packet)

    def limit(self, rate, delay_s=0.0):
        self.rate, self.delay_s, self.late_s = rate, delay_s, 0.0

    def close(self):
        self._stop.set()
        self._thread.join()
        for fd in self._fds.values():
            os.close(fd)
