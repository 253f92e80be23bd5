"""sampling_reference.py - winnow.v1.Sampling in NumPy, as the comments of the proto and of
kernels/cpu/philox.h say: from raw logits to the very token, and to log-probabilities.

Order: penalties, temperature, top_k, top_p, min_p.  Nothing here is shared with the server.
"""
import numpy as np

MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": 0}


def philox4x32(counter, seed):
    """Ten rounds of Philox4x32 over arrays of counters (4, n)."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a = np.uint64(0xD2511F53) * c[0]
        b = np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> SHIFT) ^ c[1] ^ np.uint64(k0), b & MASK,
             (a >> SHIFT) ^ c[3] ^ np.uint64(k1), a & MASK]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def gumbel(vocab, seed, sample, step):
    """Noise of every token id."""
    ids = np.arange(vocab, dtype=np.uint64)
    full = [np.full(vocab, x, dtype=np.uint64) for x in (step, sample, 0)]
    words = philox4x32([ids // np.uint64(2), *full], seed)
    odd = ids % np.uint64(2) == 1
    low, high = np.where(odd, words[2], words[0]), np.where(odd, words[3], words[1])
    bits = ((high << SHIFT) | low) >> np.uint64(12)
    return -np.log(-np.log((bits.astype(np.float64) + 0.5) * 2.0 ** -52))


def settings(sampling):
    """Every field of a Sampling message, with float32 values as the server gets them."""
    return {name: getattr(sampling, name) if sampling.HasField(name) else default
            for name, default in DEFAULTS.items()}


def penalized(raw, s, prompt, output):
    x = raw.astype(np.float64)
    seen = np.zeros(len(raw), dtype=bool)
    seen[list(prompt) + list(output)] = True
    counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=len(raw))
    x = np.where(seen, np.where(x > 0, x / s["repetition_penalty"], x * s["repetition_penalty"]), x)
    x -= s["frequency_penalty"] * counts
    x -= s["presence_penalty"] * (counts > 0)
    return x.astype(np.float32)


def allowed(logits, s):
    """(ids, weights): what top_k, top_p and min_p leave, likeliest first, ties to the lowest id."""
    order = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    peak = np.float64(logits[order[0]])
    weights = np.exp((logits[order].astype(np.float64) - peak) / s["temperature"])
    n = len(order)
    if s["top_k"] > 0:
        n = min(n, s["top_k"])
    if s["top_p"] < 1:
        mass = np.cumsum(weights[:n])
        n = min(n, int(np.searchsorted(mass, s["top_p"] * mass[-1])) + 1)
    if s["min_p"] > 0:
        n = int((weights[:n] >= s["min_p"]).sum())
    return order[:n], weights[:n]


def choose(raw, sampling, prompt, output, sample=0):
    """The token that follows `output`, given the raw logits of its step."""
    s = settings(sampling)
    logits = penalized(np.asarray(raw, dtype=np.float32), s, prompt, output)
    if s["temperature"] == 0:
        return int(np.argmax(logits))
    ids, _ = allowed(logits, s)
    noise = gumbel(len(logits), s["seed"], sample, len(output))
    ids = np.sort(ids)
    z = logits[ids].astype(np.float64) / s["temperature"] + noise[ids]
    return int(ids[np.argmax(z.astype(np.float32))])


def probabilities(raw, sampling, prompt, output):
    """What choose() draws from."""
    s = settings(sampling)
    ids, weights = allowed(penalized(np.asarray(raw, dtype=np.float32), s, prompt, output), s)
    out = np.zeros(len(raw))
    out[ids] = weights / weights.sum()
    return out


def logprobs(raw):
    """Of the raw distribution."""
    x = np.asarray(raw, dtype=np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def top_ids(raw, n):
    x = np.asarray(raw, dtype=np.float64)
    return list(np.lexsort((np.arange(len(x)), -x))[:n])
