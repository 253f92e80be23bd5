"""seen.py - what a running service shows of itself: its metrics, its probes and its log lines."""
import json
import re
import time
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


class Metrics:
    """One look at /metrics: value(name, **labels) of a series, the whole text parsed."""

    def __init__(self, text):
        self.text = text
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self.samples = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{sample.name} {sample.labels} is there twice"
                self.samples[key] = sample.value

    def series(self, name, **labels):
        """Values of all series of a name that have these labels."""
        wanted = set(labels.items())
        return [value for (n, found), value in self.samples.items()
                if n == name and wanted <= found]

    def value(self, name, **labels):
        (value,) = self.series(name, **labels)
        return value


def fetch(port, path):
    """(status, body) of a GET."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def http_port(service, program="winnow-coordinator"):
    """The port behind --http 127.0.0.1:0, which the log says."""
    pattern = re.compile(program + r'.*web: listening host=127\.0\.0\.1 port=(\d+)')
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = pattern.search(service.log_text(0))
        if found:
            return int(found.group(1))
        time.sleep(0.02)
    raise AssertionError("the log does not say where HTTP is served:\n" + service.log_text(0))


def metrics(service):
    code, text = fetch(http_port(service), "/metrics")
    assert code == 200
    return Metrics(text)


def until(what, seconds=20):
    """Asks again until what() is true; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            assert found, f"it did not come true within {seconds} s"
            return found
        time.sleep(0.02)


def log_lines(service):
    """Every line of a JSON log; one that does not parse is an error."""
    return [json.loads(line) for line in service.log_text(0).splitlines()]


def closing_lines(service, **wanted):
    return [line for line in log_lines(service) if line.get("event") == "generate: closed" and
            all(line[key] == value for key, value in wanted.items())]
