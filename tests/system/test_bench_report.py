"""winnow bench report: one page that explains itself, looked at by a real browser where there is one.

Chromium is large and not installed by setup.sh; `apt-get install chromium` makes the tests below run.
The screenshots stay in WINNOW_SCREENSHOTS, if it names a folder, for people to look at.
"""
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest

from service import BUILD

WINNOW = str(BUILD / "bin" / "winnow")
CHROMIUM = shutil.which("chromium")
VOID = {"meta", "br", "path", "rect"}
LENGTHS = (8192, 16384, 32768, 65536, 131072)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def head(command, **more):
    return {"winnow_bench": command, "winnow_version": "0.1.0", "label": "", "model_id": "a <model>",
            "model": {"layers": 8, "dtype": "bfloat16", "tensor_parallel": 2}, **more}


def sweep(command):
    """Figures of the shape that real ones have, so that the page can be judged."""
    speed = {"FULL": 1, "FASTKV": 1.9, "SNAPKV": 1.0, "GEMFILTER": 1.8, "H2O": 0.9}
    cases = []
    for n in LENGTHS:
        for method, factor in speed.items():
            seconds = 0.9 * (n / 8192) ** 1.4 / factor
            case = {"method": method, "input_len": n, "num_runs": 5, "kept_ratio": 0.1,
                    "kv_bytes": n * 4096 * (1 if method == "FULL" else 0.1)}
            for key, value in (("ttft_ms", seconds * 1000), ("e2el_ms", seconds * 1500),
                               ("tokens_per_s", 90 * factor / (n / 8192) ** 0.3)):
                case |= {f"mean_{key}": value, f"ci95_{key}": value * 0.05}
            cases.append(case)
    cases.append({"method": "FULL", "input_len": 1 << 20, "num_runs": 0, "error": "too long"})
    return head(command, results=cases)


def load(method, rate):
    knee = {"FULL": 4, "FASTKV": 7}[method]
    run = head("serve", method=method, request_rate=rate, max_concurrent_requests=rate * 3,
               completed=100, failed=0, request_throughput=min(rate, knee), kept_ratio=0.1,
               output_throughput=min(rate, knee) * 128, request_goodput=min(rate, knee) * 0.9,
               kv_bytes=1 << 25)
    crowd = 1 + (rate / knee) ** 3
    for metric, scale in (("ttft", 800), ("tpot", 20), ("itl", 20), ("e2el", 3500)):
        run |= {f"median_{metric}_ms": scale * crowd, f"p99_{metric}_ms": scale * crowd * 2.5}
    for phase, ms in (("queue", 100 * crowd), ("tokenize", 15), ("prefill", 700), ("decode", 2500)):
        run[f"mean_{phase}_ms"] = ms
    return run


def make_page(folder, results, *options):
    paths = []
    for i, result in enumerate(results):
        paths.append(folder / f"r{i}.json")
        paths[-1].write_text(json.dumps(result))
    page = folder / "page.html"
    done = subprocess.run([WINNOW, "bench", "report", *map(str, paths), "--output", str(page), *options],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """All kinds of results together."""
    results = [sweep("prefill"), sweep("e2e"), sweep("throughput")]
    results += [load(method, rate) for method in ("FULL", "FASTKV") for rate in (8, 1, 2, 4, 6)]
    return make_page(tmp_path_factory.mktemp("report"), results, "--title", "Night run & <more>")


class Reader(HTMLParser):
    """Every element is closed where it should be; headings and figures are counted."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert name not in ("onload", "onclick", "src", "href"), (tag, name, value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_is_well_formed(page):
    text = page.read_text()
    reader = Reader(text)
    words = " ".join(reader.words)
    assert "script" not in reader.tags and "http:" not in text and "https:" not in text
    assert reader.tags.count("figure") == 14 and reader.tags.count("h1") == 1
    assert "a <model>" in words and "Night run & <more>" in words
    assert "<model>" not in text and "nan" not in text.lower().split() and "inf" not in text.split()
    for title in ("Time to first token", "First token sooner than with FULL", "Decoding speed",
                  "KV cache after the prompt", "Goodput", "Where a request's time goes"):
        assert title in words
    assert "1.90×" in words  # the speed-up at the longest prompt that FULL could read


def test_hostile_names_stay_text(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=y>\"'"
    run = load("FASTKV", 2) | {"label": evil, "model_id": evil, "winnow_version": evil, "method": evil}
    case = {"method": evil, "input_len": 1024, "num_runs": 1, "mean_ttft_ms": 1e300, "kv_bytes": -5}
    text = make_page(tmp_path, [run, head("prefill", results=[case, 5, "x"])], "--title", evil).read_text()
    reader = Reader(text)
    assert "script" not in reader.tags and "img" not in reader.tags


@pytest.mark.parametrize("content, words", [
    ("{}", "not a result of winnow bench"), ("[1]", "not a JSON object"), ("{", "not valid JSON"),
])
def test_what_is_no_result_is_an_error(tmp_path, content, words):
    (tmp_path / "x.json").write_text(content)
    done = subprocess.run([WINNOW, "bench", "report", tmp_path / "x.json"], capture_output=True,
                          text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1 and words in done.stderr and "x.json" in done.stderr
    done = subprocess.run([WINNOW, "bench", "report"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "give result files" in done.stderr


def chromium(tmp_path, *options):
    """Runs the browser once, without a display and without a network."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path}/profile", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--window-size=1280,4400", *options],
        capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def keep(path, name):
    folder = os.environ.get("WINNOW_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, Path(folder) / name)


@needs_chromium
@pytest.mark.parametrize("scheme, setting, paper", [("light", 1, (246, 247, 249)),
                                                    ("dark", 0, (16, 21, 29))])
def test_a_browser_draws_it_light_and_dark(page, tmp_path, scheme, setting, paper):
    image = pytest.importorskip("PIL.Image", reason="Pillow, of tests/evals, is not installed")
    shot = tmp_path / "page.png"
    chromium(tmp_path, f"--blink-settings=preferredColorScheme={setting}", f"--screenshot={shot}",
             f"file://{page}")
    keep(shot, f"report-{scheme}.png")
    pixels = numpy.asarray(image.open(shot).convert("RGB"))
    assert tuple(pixels[2, 2]) == paper and tuple(pixels[-3, 2]) == paper
    ink = numpy.abs(pixels.astype(int) - numpy.array(paper)).sum(axis=2)
    columns = numpy.flatnonzero((ink > 60).any(axis=0))
    assert columns[0] > 30 and columns[-1] < 1250  # nothing runs over the margins
    # FULL's, FASTKV's and SNAPKV's colours are there, in areas larger than a mark
    colours = {"light": [(102, 117, 138), (31, 111, 214), (212, 87, 11)],
               "dark": [(163, 177, 196), (110, 168, 255), (255, 157, 87)]}[scheme]
    for colour in colours:
        assert (pixels == numpy.array(colour, numpy.uint8)).all(axis=2).sum() > 2000


@needs_chromium
def test_a_browser_prints_it(page, tmp_path):
    paper = tmp_path / "page.pdf"
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", f"file://{page}")
    keep(paper, "report.pdf")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF") and 2 <= data.count(b"/Type /Page\n") <= 8
