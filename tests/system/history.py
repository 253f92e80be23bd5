"""history.py - what clients saw, and whether it may have happened.

A history is a list of events in the order of their arrival, each a tuple (request, kind, value):

    ("r7", "begin", None)     the request was sent
    ("r7", "tokens", [5, 9])  these ids came
    ("r7", "end", "done")     it ended: "done", or the name of a status

check() says what is wrong with one, given for every request the tokens of an undisturbed run; an
empty list is a good history.
"""
import collections

MAY_FAIL = {"UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"}


def check(events, solo):
    """Sentences about what must not be; `solo` maps a request to the whole tokens of its run."""
    wrong = []
    begun, ended = set(), {}
    tokens = collections.defaultdict(list)

    for request, kind, value in events:
        if kind == "begin":
            if request in begun:
                wrong.append(f"{request}: began twice")
            begun.add(request)
            continue
        if request not in begun:
            wrong.append(f"{request}: {kind} before its beginning")
        if request in ended:
            wrong.append(f"{request}: {kind} after its end")
        if kind == "tokens":
            tokens[request] += value
        elif kind == "end":
            ended[request] = value
        else:
            wrong.append(f"{request}: an unknown event {kind}")
    for request in sorted(begun):
        wrong += _check_one(request, ended.get(request), tokens[request], solo[request])
    return wrong


def _check_one(request, end, tokens, solo):
    if end is None:
        yield f"{request}: has no end"
    elif end != "done" and end not in MAY_FAIL:
        yield f"{request}: ended with {end}"
    if tokens != solo[:len(tokens)]:
        at = next((i for i, (a, b) in enumerate(zip(tokens, solo)) if a != b), len(solo))
        yield f"{request}: token {at} is not that of the undisturbed run"
    elif end == "done" and len(tokens) < len(solo):
        yield f"{request}: done after {len(tokens)} of {len(solo)} tokens"


def count_ends(events):
    return collections.Counter(value for _, kind, value in events if kind == "end")
