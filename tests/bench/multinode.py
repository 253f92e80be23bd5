#!/usr/bin/env python3
"""multinode.py - winnow bench over simulated hosts: scaling of groups, and what exchanges cost.

    multinode.py groups --rounds 6 --output multinode.json           # as root; some ten minutes
    multinode.py ranks bytes delay --output multinode.json           # as root; some three minutes
    multinode.py model                                                # real networks, by counting

groups  hosts with a group of one rank each, every host with the same share of a core: throughput
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
SHARE = 0.4        # of a core for each host of `groups`
HOSTS = (1, 2, 4)  # of `groups`
PROMPTS = 24       # of each group in a run of `groups`
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
def clusters(folder, n_workers, tp, n=1, network=net.Bridge, cores=None, share=None, **options):
    """`n` running clusters, each with its own coordinator and workers, and their network."""
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in range(n * (1 + n_workers)):
            i = number % (1 + n_workers) - 1  # -1: a coordinator's
            core = cores[i % len(cores)] if cores and i >= 0 else None
            hosts.append(net.Host(number, core, share if i >= 0 else None))
            stack.callback(hosts[-1].close)
        links = network(hosts, **options)
        stack.callback(links.close)
        yield [Cluster(stack, folder, hosts[at:at + 1 + n_workers], tp)
               for at in range(0, len(hosts), 1 + n_workers)], links


def serve(service, n):
    """A closed loop with two requests for each of n groups, so that none is ever idle."""
    got = service.bench("serve", "--random-input-len", 512, "--random-output-len", 16, "--ignore-eos",
                        "--num-prompts", PROMPTS * n, "--num-warmups", 2 * n, "--max-concurrency", 2 * n,
                        "--seed", 1)
    return got["total_token_throughput"]


def measure_together(folder, n):
    with clusters(folder, n, 1, share=SHARE) as ((service,), links):
        links.limit(10e9)
        return serve(service, n)


def measure_apart(folder, n):
    with clusters(folder, 1, 1, n, share=SHARE) as (services, links):
        links.limit(10e9)
        with ThreadPoolExecutor(n) as pool:
            return sum(pool.map(lambda service: serve(service, 1), services))


def measure_groups(folder, options):
    """n groups of one service, and n services of one group at the same time: the same work for the
    same machine, but for what the service has to do with it.  Every other round begins with the
    latter, so that neither always has the warmer machine."""
    out = []
    for number in range(options.rounds):
        for n in HOSTS:
            both = [("tokens_per_s", measure_together), ("apart_per_s", measure_apart)]
            found = {name: measure(folder, n) for name, measure in both[::-1 if number % 2 else 1]}
            out.append({"round": number, "hosts": n, "share": SHARE, **found})
            print(out[-1], file=sys.stderr)
    return out


def spread(values):
    """The mean and its standard error, which one value does not have."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def summarize_groups(measured):
    """For each number of hosts the rounds' means.  An efficiency is that of a pair of one round; one
    host is the mean of all runs with one."""
    kinds = ("tokens_per_s", "apart_per_s")
    one = mean(g[kind] for g in measured if g["hosts"] == 1 for kind in kinds)
    out = []
    for n in HOSTS:
        of_n = [g for g in measured if g["hosts"] == n]
        found = {"hosts": n, "rounds": len(of_n),
                 "efficiency": spread([g["tokens_per_s"] / g["apart_per_s"] for g in of_n])}
        for kind in kinds:
            found[kind] = spread([g[kind] for g in of_n])
            found[kind + "_of_one"] = spread([g[kind] / n / one for g in of_n])
        out.append(found)
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
    with clusters(folder, 2, 2, cores=(0, 1)) as ((service,), links):
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
        with clusters(folder, ranks, ranks, cores=(0, 1), wire=True) as ((service,), _):
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
    with clusters(folder, 2, 2, network=net.Relay, cores=(0, 1)) as ((service,), links):
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
    kinds = [spread_cell(g[kind + end], bool(end)) for kind in ("tokens_per_s", "apart_per_s")
             for end in ("", "_of_one")]
    return [g["hosts"], g["rounds"], *kinds, spread_cell(g["efficiency"], True)]


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
        print(table(["hosts", "rounds", "one service, tokens/s", "of n times one host",
                     "a service each, tokens/s", "of n times one host", "efficiency"],
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
                        help="of groups: everything so often, for a mean and its standard error")
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
        results[name] = MEASURES[name](folder, options)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    show({name: results[name] for name in options.measures})


if __name__ == "__main__":
    main()
