"""What is measured: cells, each one engine with one load, in the order of their importance.

A cell gives time to first token, decode speed and peak memory together, because one run has all
three.  `seconds` is a guess for a round, until a round has been measured.
"""
from dataclasses import asdict, dataclass, field

PEERS = ("llama.cpp", "llama.cpp flash", "transformers", "vLLM")
COMPILED = "vLLM compiled"  # decodes small models faster; a start takes half a minute more


@dataclass
class Cell:
    engine: str
    model: str
    tokens: int
    new: int
    batch: int = 1
    method: str = "FULL"      # winnow only
    workers: int = 1          # winnow only; a peer is one process
    threads: int = 2          # of each worker
    rounds: int = 3
    long: bool = False
    seconds: float = 30
    options: dict = field(default_factory=dict)

    @property
    def load(self):
        """What engines are compared on."""
        return f"{self.model} {self.tokens}+{self.new} x{self.batch}"

    @property
    def key(self):
        name = self.engine if self.engine != "winnow" else f"winnow {self.method}"
        if (self.workers, self.threads) != (1, 2):
            name += f" {self.workers}x{self.threads}"
        for option, value in sorted(self.options.items()):
            name += f" {option}={value}"
        return f"{self.load} {name}"

    def as_json(self):
        return asdict(self)


def load(model, tokens, new, batch=1, peers=PEERS, methods=("FULL",), seconds=None, **more):
    """One load on winnow's methods and on peers; seconds: of winnow FULL, and of each peer."""
    own, theirs = seconds or (10, 20)
    cells = [Cell("winnow", model, tokens, new, batch, method=m, seconds=own, **more)
             for m in methods]
    return cells + [Cell(p, model, tokens, new, batch, seconds=theirs, **more) for p in peers]


def all_cells():
    """Short loads first: each group answers one line of the goals or more."""
    quick = ("llama.cpp flash", "transformers", "vLLM")  # without flash it takes twice as long
    served = ("llama.cpp", "llama.cpp flash", "vLLM", COMPILED)
    every = (*PEERS, COMPILED)
    cells = []
    cells += load("1B", 2048, 32, seconds=(12, 25))
    cells += load("1B", 16, 64, seconds=(10, 20))
    cells += load("160M", 16, 128, seconds=(5, 15), peers=every)
    cells += load("160M", 8192, 64, seconds=(10, 30), methods=("FULL", "FASTKV"))
    cells += load("160M", 256, 64, batch=8, seconds=(5, 15), peers=every)
    cells += load("160M", 256, 64, batch=32, seconds=(8, 20), peers=every)
    cells += load("1B", 128, 32, batch=8, seconds=(12, 25), peers=served)
    cells += load("1B", 128, 32, batch=32, seconds=(25, 40), peers=served)
    cells += [Cell("winnow", "160M", 8192, 64, workers=2, threads=1, seconds=10),
              Cell("winnow", "1B", 2048, 32, workers=2, threads=1, seconds=12)]
    cells += load("SmolLM2", 6000, 128, seconds=(12, 40), methods=("FULL", "FASTKV"),
                  peers=("llama.cpp", "llama.cpp flash", "transformers"))
    cells += in_eight_bits()
    cells += load("160M", 32768, 256, seconds=(50, 200), methods=("FULL", "FASTKV", "HEADKV"),
                  peers=())
    cells += load("1B", 8192, 32, seconds=(40, 70), methods=("FULL", "FASTKV"), peers=quick)
    cells += load("160M", 32768, 256, seconds=(50, 250), methods=(), peers=quick, rounds=1)
    cells += long_cells(quick)
    return cells


def in_eight_bits():
    """Weights in int8 against llama.cpp's Q8_0, and K/V in int8."""
    cells = []
    for model, new in (("1B", 64), ("160M", 128)):
        cells.append(Cell("winnow", model, 16, new, options={"weights": "int8"}))
        cells += [Cell(peer, model, 16, new, options={"weights": "Q8_0"})
                  for peer in ("llama.cpp", "llama.cpp flash")]
    cells += [Cell("winnow", "160M", 8192, 64, options={"kv": "int8"}),
              Cell("winnow", "160M", 8192, 64, options={"kv": "int8", "weights": "int8"})]
    return cells


def long_cells(peers):
    """Minutes to an hour for a round; one is enough."""
    both, once = ("FULL", "FASTKV"), {"rounds": 1, "long": True}
    cells = load("1B", 32768, 256, seconds=(220, 450), methods=both, peers=("vLLM",), **once)
    cells += load("160M", 131072, 64, seconds=(550, 0), methods=("FASTKV", "FULL"), peers=(),
                  **once)
    cells += load("160M", 32768, 64, batch=8, seconds=(300, 0), methods=both, peers=(), **once)
    others = [peer for peer in peers if peer != "vLLM"]
    cells += load("1B", 32768, 256, seconds=(0, 900), methods=(), peers=others, **once)
    cells += load("160M", 32768, 64, batch=32, seconds=(1500, 0), methods=both, peers=(), **once)
    # 8 GB hold 19 of FULL's 403 MB; of FASTKV's tenth 190, of which as many as a step decodes
    for method, batch in (("FULL", 19), ("FASTKV", 64)):
        cells.append(Cell("winnow", "160M", 32768, 256, batch, method, seconds=1000,
                          options={"kv-memory": "8G"}, **once))
    return cells
