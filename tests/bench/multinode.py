#!/usr/bin/env python3
"""multinode.py - winnow bench over simulated hosts: scaling of groups, and what exchanges cost.

    multinode.py groups --rounds 5 --output multinode.json           # as root; some three minutes
    multinode.py ranks bytes delay --output multinode.json           # as root; some three minutes
    multinode.py model                                                # real networks, by counting

groups  services of 1, 2 and 4 hosts beside each other, all hosts in turns on one core: throughput
ranks   one group of two ranks on two hosts, a core each, at several rates of the network
bytes   what a rank sends for a prompt and for a token, against winnow-bench-plan
delay   as ranks, through a relay that delays packets
model   what the same counts say for larger networks
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import multinode_net as net
from models import model_folder

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("WINNOW_BUILD", ROOT / "build"))
HOSTS = (1, 2, 4)  # of the services of `groups`
TURNS = {"cores": (0,), "service_core": 1, "share": 0.13}  # all seven hosts on one core
ALONE = {"cores": (0, 1), "share": 0.4}
LENGTH = 3072      # of a prompt
NEW = 33           # tokens of an answer
SHORT, ANSWER = 64, 256  # the same where bytes of tokens are counted
RATES = (0, 10e9, 2.5e9, 1e9)
DELAYS = ((1e9, 0.0), (1e9, 0.5e-3), (1e9, 2e-3))
CONFIG = ROOT / "tests" / "models" / "rows" / "configs" / "llama-3.1-8b-instruct.json"
# bits a second out of a rank, and how often the sender of a small message waits, in seconds
NETWORKS = {"25 Gb/s": (25e9, 30e-6), "100 Gb/s": (100e9, 20e-6), "400 Gb/s": (400e9, 15e-6),
            "NVLink 450 GB/s": (3600e9, 12e-6)}
GPU_FLOPS, NETWORK_SHARE = 989e12 * 0.5, 0.8


class Cluster:
    """A coordinator on the first host, a worker on each of the others; one group for `tp` of them."""

    def __init__(self, stack, folder, hosts, tp):
        self.hosts = hosts
        self._programs = []
        self._logs = tempfile.TemporaryFile()
        base = ["--model", folder]
        address = hosts[0].address
        self._start(stack, hosts[0], "winnow-coordinator", *base, "--tp", tp, "--listen", "0.0.0.0:8600",
                    "--worker-listen", "0.0.0.0:8601", "--allow-any-worker", "--max-context", 4096)
        for host in hosts[1:]:
            self._start(stack, host, "winnow-worker", *base, "--coordinator", f"{address}:8601",
                        "--advertise", host.address, "--collectives", "tcp", "--threads", 1,
                        "--kv-memory", "512M", "--http", "0.0.0.0:8602")
        end = time.monotonic() + 20
        while self.ready() < len(hosts) - 1:
            if time.monotonic() > end:
                self._logs.seek(0)
                sys.exit(self._logs.read(4000).decode())
            time.sleep(0.2)

    def _start(self, stack, host, program, *words):
        process = host.start(BUILD / "bin" / program, *words, stdout=self._logs, stderr=self._logs)
        self._programs.append(process.pid)

        def stop():
            process.terminate()
            process.wait()
        stack.callback(stop)

    def _on(self, host, *words):
        done = subprocess.run(["ip", "netns", "exec", host.name, *map(str, words)],
                              capture_output=True, text=True)
        return done.stdout

    def ready(self):
        status = self._on(self.hosts[0], BUILD / "bin" / "winnow", "status", "--json")
        return len(re.findall(r'"state": ?"ready"', status))

    def bench(self, *words):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*self.hosts[0].words, BUILD / "bin" / "winnow", "bench",
                                   *map(str, words), "--quiet", "--result-dir", folder,
                                   "--result-filename", "r.json"], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            return json.loads((Path(folder) / "r.json").read_text())

    def processor_s(self):
        """Seconds that each program ran: the coordinator, then the workers."""
        # the kernel's clock of a process (clock_getcpuclockid()): ticks are too coarse for short runs
        return [time.clock_gettime(~pid << 3 | 2) for pid in self._programs]

    def exchanges(self):
        """Seconds that the first worker waited for collectives, and that these took."""
        text = self._on(self.hosts[1], sys.executable, "-c", "from urllib.request import urlopen; "
                        "print(urlopen('http://127.0.0.1:8602/metrics').read().decode())")
        values = [float(re.search(rf"^winnow:worker_{name}_seconds_total\S* (\S+)", text, re.M)[1])
                  for name in ("collective", "exchange")] if "exchange" in text else [0.0, 0.0]
        return values

    def sent_for(self, command, method, length, *words):
        """Bytes of the frames that the first worker sends for a request, and of their headers."""
        before = self.hosts[1].sent()
        self.bench(command, "--methods", method, "--lengths", length, "--num-runs", 1,
                   "--num-warmups", 0, *words)
        return [b - a for a, b in zip(before, self.hosts[1].sent())]


@contextlib.contextmanager
def clusters(folder, sizes, tp, network=net.Bridge, cores=None, service_core=None, share=None,
             **options):
    """Running clusters of so many workers, and their network.  The workers of each are dealt over
    `cores`, and once all are ready each has at most a `share` of its core; coordinators and clients
    have `service_core`."""
    with contextlib.ExitStack() as stack:
        parts, n = [], 0
        for size in sizes:
            parts.append([net.Host(n + i, cores[(i - 1) % len(cores)] if cores and i else service_core)
                          for i in range(1 + size)])
            n += 1 + size
        hosts = sum(parts, [])
        for host in hosts:
            stack.callback(host.close)
        links = network(hosts, **options)
        stack.callback(links.close)
        services = [Cluster(stack, folder, part, tp) for part in parts]
        for part in parts if share else ():
            for host in part[1:]:
                host.hold(share)
        yield services, links


def serve(service, prompts, lengths):
    """A closed loop with two requests for each group, so that none is ever idle."""
    n = len(service.hosts) - 1
    return service.bench("serve", "--random-input-len", lengths[0], "--random-output-len", lengths[1],
                         "--ignore-eos", "--num-prompts", prompts * n, "--num-warmups", 0,
                         "--max-concurrency", 2 * n, "--seed", 1)


def measure_service(service, share, options):
    before = service.processor_s()
    got = serve(service, options.prompts, options.lengths)
    ran = [b - a for a, b in zip(before, service.processor_s())]
    n = len(ran) - 1
    tokens = got["total_input_tokens"] + got["total_output_tokens"]
    return {"hosts": n, "tokens_per_s": tokens / got["duration"],
            "worker_us": 1e6 * sum(ran[1:]) / tokens, "coordinator_us": 1e6 * ran[0] / tokens,
            "used": sum(ran[1:]) / (n * share * got["duration"])}


def measure_groups(folder, options, earlier=()):
    """Rounds beside earlier ones.  All services have work at the same time, so that whatever else the
    machine does slows all alike; their hosts take turns, so that none has a busy neighbour.  With
    --alone one service after the other has work, and its hosts have two cores at once."""
    out = list(earlier)
    where = ALONE if options.alone else TURNS
    with clusters(folder, HOSTS, 1, **where) as (services, links), ThreadPoolExecutor() as pool:
        links.limit(10e9)

        def measure(service):
            return measure_service(service, where["share"], options)
        list(pool.map(lambda service: serve(service, 2, options.lengths), services))  # warms up
        for _ in range(options.rounds):
            number = max((g["round"] for g in out), default=-1) + 1
            # in the other order in every other round
            found = (map if options.alone else pool.map)(measure, services[::-1 if number % 2 else 1])
            for one in found:
                out.append({"round": number, "alone": options.alone, "lengths": list(options.lengths),
                            **one})
                print(out[-1], file=sys.stderr)
    return out


def spread(values):
    """The mean and its standard error, which one value does not have."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def summarize_groups(measured):
    """For each kind of round and number of hosts the means.  `of_one` compares with so many times one
    host of the same round, and so does `worker_of_one` a token's processor time."""
    out = []
    one = {g["round"]: g for g in measured if g["hosts"] == 1}
    for kind in dict.fromkeys((g["alone"], *g["lengths"]) for g in measured):
        for n in HOSTS:
            of_n = [g for g in measured if (g["alone"], *g["lengths"], g["hosts"]) == (*kind, n)]
            found = {name: spread([g[name] for g in of_n])
                     for name in ("tokens_per_s", "worker_us", "coordinator_us", "used")}
            found["of_one"] = spread([g["tokens_per_s"] / n / one[g["round"]]["tokens_per_s"]
                                      for g in of_n])
            found["worker_of_one"] = spread([g["worker_us"] / one[g["round"]]["worker_us"]
                                             for g in of_n])
            out.append({"kind": kind, "hosts": n, "rounds": len(of_n), **found})
    return out


def measure_point(service, method, runs=3):
    """A method's prompts and its answers, and how much of the exchanges was waited for."""
    before = service.exchanges()
    first = service.bench("prefill", "--methods", method, "--lengths", LENGTH, "--num-runs", runs)
    after = service.exchanges()
    whole = service.bench("e2e", "--methods", method, "--lengths", LENGTH, "--num-runs", 1,
                          "--num-warmups", 0, "--output-len", NEW)
    n = runs + 1  # with the warm-up
    waited, took = ((b - a) / n for a, b in zip(before, after))
    return {"method": method, "prefill_ms": mean(first["results"][0]["prefill_ms"]),
            "waited_ms": 1e3 * waited, "exchange_ms": 1e3 * took,
            "hidden": 1 - waited / took if took else None,
            "decode_ms": mean(whole["results"][0]["decode_ms"]) / (NEW - 1)}


def measure_ranks(folder, options):
    out = []
    with clusters(folder, (2,), 2, cores=(0, 1)) as ((service,), links):
        for rate in options.rates:
            links.limit(rate)
            for method in options.methods:
                out.append({"rate": rate, **measure_point(service, method)})
                print(out[-1], file=sys.stderr)
    return out


def plan(folder, tokens, ranks):
    done = subprocess.run([BUILD / "bin" / "winnow-bench-plan", folder, str(tokens), str(ranks)],
                          capture_output=True, text=True, check=True)
    return {(w["method"], w["phase"]): w for w in map(json.loads, done.stdout.splitlines())}


def measure_bytes(folder, options):
    out = []
    for ranks in (2, 4):
        predicted = plan(folder, LENGTH, ranks)
        with clusters(folder, (ranks,), ranks, cores=(0, 1), wire=True) as ((service,), _):
            for method in options.methods:
                service.sent_for("prefill", method, LENGTH)  # warms up
                few, more = (service.sent_for("e2e", method, SHORT, "--output-len", n)
                             for n in (2, 2 + ANSWER))
                sent = {"prefill": service.sent_for("prefill", method, LENGTH),
                        "decode": [(b - a) / ANSWER for a, b in zip(few, more)]}
                entry = {"ranks": ranks, "method": method}
                for phase, (frames, headers) in sent.items():
                    count = predicted[method, phase]["collective_bytes"]
                    entry[phase] = {"predicted": count, "sent": frames - headers, "headers": headers,
                                    "ratio": (frames - headers) / count, "with_headers": frames / count}
                out.append(entry)
                print(entry, file=sys.stderr)
    return out


def measure_delay(folder, options):
    out = []
    with clusters(folder, (2,), 2, network=net.Relay, cores=(0, 1)) as ((service,), links):
        for rate, delay in DELAYS:
            links.limit(rate, delay)
            for method in options.methods:
                out.append({"rate": rate, "delay_ms": 1e3 * delay, **measure_point(service, method, 1),
                            "latest_ms": 1e3 * links.late_s})
                print(out[-1], file=sys.stderr)
    return out


def model(tokens):
    """By counting: a rank computes at GPU_FLOPS, and the network carries NETWORK_SHARE of its rate."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(CONFIG, Path(folder) / "config.json")
        for ranks in (2, 4, 8):
            for (method, phase), work in plan(folder, tokens, ranks).items():
                if phase != "prefill":
                    continue
                compute = (work["linear"] + work["attention"]) / GPU_FLOPS
                for network, (rate, latency) in NETWORKS.items():
                    exchange = (work["collective_bytes"] * 8 / (rate * NETWORK_SHARE)
                                + work["collectives"] * latency)
                    out.append({"ranks": ranks, "method": method, "network": network, "tokens": tokens,
                                "bytes": work["collective_bytes"], "compute_s": compute,
                                "exchange_s": exchange, "behind": compute + exchange,
                                "beside": max(compute, exchange)})
    return out


MEASURES = {"groups": measure_groups, "ranks": measure_ranks, "bytes": measure_bytes,
            "delay": measure_delay}


def table(head, rows):
    lines = (head, ["---"] * len(head), *rows)
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def rate_name(rate):
    return f"{rate / 1e9:g} Gb/s" if rate else "no limit"


def spread_cell(value, percent=False):
    scale, digits, unit = (100, 1, " %") if percent else (1, 0, "")
    middle, error = value
    more = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * middle:.{digits}f}{more}{unit}"


def groups_cells(g):
    alone, *lengths = g["kind"]
    return ["one after the other" if alone else "beside each other", "{} + {}".format(*lengths),
            g["hosts"], g["rounds"], spread_cell(g["tokens_per_s"]), spread_cell(g["of_one"], True),
            spread_cell(g["used"], True), spread_cell(g["worker_us"]),
            spread_cell(g["worker_of_one"], True), spread_cell(g["coordinator_us"])]


def point_cells(p):
    hidden = "" if p["hidden"] is None else f"{100 * p['hidden']:.0f} %"
    return [p["method"], f"{p['prefill_ms']:.0f}", f"{p['exchange_ms']:.0f}", f"{p['waited_ms']:.0f}",
            f"{100 * p['waited_ms'] / p['prefill_ms']:.0f} %", hidden, f"{p['decode_ms']:.1f}"]


def bytes_cells(b, unit):
    numbers = [f"{b[name] / (1e6 if unit == 'MB' else 1e3):.1f} {unit}"
               for name in ("predicted", "sent", "headers")]
    return [*numbers[:2], f"{b['ratio']:.3f}", numbers[2], f"{b['with_headers']:.3f}"]


POINT = ["method", "prefill ms", "in collectives ms", "waited ms", "of the prefill", "hidden",
         "decode ms a token"]


def show(results):
    if "groups" in results:
        print(table(["services", "tokens in + out", "hosts", "rounds", "tokens/s",
                     "of n times one host", "of its share", "worker us a token", "of one host's",
                     "coordinator us a token"],
                    [groups_cells(g) for g in summarize_groups(results["groups"])]))
    if "ranks" in results:
        print(table(["network", *POINT],
                    [[rate_name(p["rate"]), *point_cells(p)] for p in results["ranks"]]))
    if "bytes" in results:
        print(table(["ranks", "method", "of a", "predicted", "sent", "ratio", "headers", "with headers"],
                    [[b["ranks"], b["method"], name, *bytes_cells(b[phase], unit)]
                     for b in results["bytes"] for phase, name, unit in
                     (("prefill", "prompt", "MB"), ("decode", "token", "kB"))]))
    if "delay" in results:
        print(table(["network", "delay ms", *POINT, "latest packet ms"],
                    [[rate_name(p["rate"]), f"{p['delay_ms']:g}", *point_cells(p), f"{p['latest_ms']:.1f}"]
                     for p in results["delay"]]))
    if "model" in results:
        print(table(["ranks", "method", "network", "compute s", "exchange s", "one after the other s",
                     "one beside the other s"],
                    [[m["ranks"], m["method"], m["network"], f"{m['compute_s']:.2f}",
                      f"{m['exchange_s']:.2f}", f"{m['behind']:.2f}", f"{m['beside']:.2f}"]
                     for m in results["model"]]))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("measures", nargs="+", choices=[*MEASURES, "model"])
    parser.add_argument("--model", default="160M", help="a folder, or of models.py (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=["FULL", "FASTKV"])
    parser.add_argument("--rounds", type=int, default=1,
                        help="of groups: so many more, beside those that the output has")
    parser.add_argument("--alone", action="store_true",
                        help="of groups: one service after the other, hosts on two cores at once")
    parser.add_argument("--prompts", type=int, default=24,
                        help="of groups, for each group (default: %(default)s)")
    parser.add_argument("--lengths", nargs=2, type=int, default=(512, 16), metavar=("IN", "OUT"),
                        help="of groups: tokens (default: 512 16)")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES,
                        help="of ranks, bits a second; 0: no limit")
    parser.add_argument("--output", type=Path, help="JSON; what is in it of other measures stays")
    return parser.parse_args()


def main():
    options = parse()
    results = {}
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())
    if "model" in options.measures:
        results["model"] = model(32768)
    measures = [m for m in options.measures if m in MEASURES]
    if measures:
        folder = options.model if Path(options.model).is_dir() else model_folder(options.model)
        net.enter()
        results["machine"] = {"cores": os.cpu_count(), "model": str(Path(folder).name), "length": LENGTH}
    for name in measures:
        more = {"earlier": results.get(name, ())} if name == "groups" else {}
        results[name] = MEASURES[name](folder, options, **more)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    show({name: results[name] for name in options.measures})


if __name__ == "__main__":
    main()
