#!/usr/bin/env python3
"""streams.py - many streams at once through one coordinator: each ends once, with its own tokens.

    streams.py                                 # 1,000 streams, six rounds, the story model
    streams.py --streams 200 --rounds 4 --out result.json

All streams of a round are open at the same time, with different prompts, methods and sampling.
Afterwards a sample of them runs again, alone: the tokens must be the same.  Printed are the
coordinator's memory after each round, and its own processor time for each request and each token:
rounds differ in how many tokens a request generates, and a line through them tells the two apart.
"""
import argparse
import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import numpy as np  # noqa: E402

import grpc  # noqa: E402
from service import MODELS, Service, api, inference_pb2_grpc, prompt, sampling  # noqa: E402

METHODS = [api.METHOD_FULL, api.METHOD_FASTKV, api.METHOD_SNAPKV, api.METHOD_STREAMINGLLM,
           api.METHOD_PYRAMIDKV, api.METHOD_GEMFILTER]
CHANNELS = 8
VOCAB, SHORTEST, LONGEST = 512, 8, 96
TICKS = os.sysconf("SC_CLK_TCK")


def make_request(i, new):
    """Request i of a round; a function of its arguments alone."""
    rng = np.random.default_rng(i)
    ids = rng.integers(3, VOCAB, rng.integers(SHORTEST, LONGEST)).tolist()
    options = {"temperature": 0.8, "top_k": 40, "seed": i} if i % 2 else {}
    return api.GenerateRequest(**prompt(ids=ids), sampling=sampling(max_tokens=new, **options),
                               compression=api.Compression(method=METHODS[i % len(METHODS)]))


async def follow(stub, request, timeout):
    """The ids of a stream; an error where it does not end as the contract says."""
    ids, done = [], None
    async for response in stub.Generate(request, timeout=timeout):
        kind = response.WhichOneof("event")
        assert done is None, f"{kind} after the end"
        if kind == "tokens":
            ids.extend(response.tokens.ids)
        elif kind == "done":
            done = response.done
    assert done and done.finish_reason == api.FINISH_LENGTH, "no end"
    assert len(ids) == done.usage.completion_tokens == request.sampling.max_tokens
    return ids


async def watch_running(service, stop):
    """The most requests that the server had running at a time."""
    most = 0
    while not stop.is_set():
        status = await asyncio.to_thread(service.status)
        most = max(most, status.running_requests)
        await asyncio.sleep(0.1)
    return most


async def run_round(service, requests, timeout):
    channels = [grpc.aio.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)])
                for _ in range(CHANNELS)]
    stubs = [inference_pb2_grpc.InferenceStub(channel) for channel in channels]
    stop = asyncio.Event()
    watcher = asyncio.create_task(watch_running(service, stop))
    answers = await asyncio.gather(*(follow(stubs[i % CHANNELS], request, timeout)
                                     for i, request in enumerate(requests)))
    stop.set()
    most = await watcher
    for channel in channels:
        await channel.close()
    return answers, most


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.M)[1]) / 1024


def fit(rounds):
    """(seconds a request, seconds a token) of the coordinator, by least squares."""
    counts = np.array([[r["requests"], r["tokens"]] for r in rounds], float)
    costs, *_ = np.linalg.lstsq(counts, np.array([r["cpu_s"] for r in rounds]), rcond=None)
    return costs


def measure(options):
    flags = ["--threads", options.threads, "--queue-requests", options.streams + 1,
             "--kv-memory", "1G", "--log-level", "warn"]
    rounds, answers = [], {}
    with Service(MODELS / "stories260k", workers=1, dtype="float32", options=flags) as service:
        pid, worker = service.process.pid, service.workers()[0]
        for number in range(options.rounds):
            new = options.new if number % 2 else max(1, options.new // 8)
            requests = [make_request(i, new) for i in range(options.streams)]
            cpu, begin = [cpu_seconds(p) for p in (pid, worker)], time.monotonic()
            tokens, most = asyncio.run(run_round(service, requests, options.timeout))
            answers[new] = answers.get(new, tokens)
            assert answers[new] == tokens, "a round gave other tokens than the one before"
            rounds.append({"requests": len(requests), "new": new, "tokens": sum(map(len, tokens)),
                           "wall_s": time.monotonic() - begin, "cpu_s": cpu_seconds(pid) - cpu[0],
                           "worker_cpu_s": cpu_seconds(worker) - cpu[1],
                           "rss_mib": resident_mib(pid), "running_at_most": most})
            print("{requests} streams of {new} tokens: {wall_s:.1f} s, at most {running_at_most} at "
                  "once; worker {worker_cpu_s:.1f} s of CPU, coordinator {cpu_s:.2f} s, {rss_mib:.1f} MiB".format(**rounds[-1]))
        step = max(1, options.streams // options.sample)
        checked = range(0, options.streams, step)
        for i in checked:
            alone = service.generate(make_request(i, options.new)).ids
            assert alone == answers[options.new][i], f"stream {i} differs from a run alone"
        status = service.status()
        assert (status.queued_requests, status.running_requests, status.failed_requests) == (0, 0, 0)
        assert status.completed_requests == options.streams * options.rounds + len(checked)
        assert service.pages_used() == [0]
    request_s, token_s = fit(rounds)
    print(f"{len(checked)} streams gave the same tokens alone")
    print(f"coordinator: {1e6 * request_s:.0f} us a request and {1e6 * token_s:.1f} us a token")
    return {"rounds": rounds, "checked": len(checked), "request_us": 1e6 * request_s,
            "token_us": 1e6 * token_s}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--new", type=int, default=128, help="tokens a request, an eighth in every other round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sample", type=int, default=50, help="streams that run again alone")
    parser.add_argument("--threads", type=int, default=1, help="of the worker")
    parser.add_argument("--timeout", type=float, default=600, help="seconds, of a stream")
    parser.add_argument("--out", help="write the result as JSON")
    options = parser.parse_args()
    result = measure(options)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
