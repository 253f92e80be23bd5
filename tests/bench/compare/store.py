"""The one JSON file of a comparison: every cell's rounds under its key, written after each."""
import copy
import json
import os
from pathlib import Path

EMPTY = {"machine": {}, "limits": [], "peers": {}, "sizes": {}, "work": {}, "cells": {}}


class Store:
    def __init__(self, path):
        self.path = Path(path)
        self.data = copy.deepcopy(EMPTY)
        if self.path.exists():
            self.data.update(json.loads(self.path.read_text()))

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(part, self.path)

    def entry(self, cell):
        return self.data["cells"].setdefault(cell.key, {"cell": cell.as_json(), "rounds": []})

    def rounds(self, cell):
        return len(self.data["cells"].get(cell.key, {"rounds": []})["rounds"])

    def failed(self, cell):
        return "failed" in self.data["cells"].get(cell.key, {})

    def add(self, cell, result, wall_s):
        entry = self.entry(cell)
        entry["rounds"].append(result)
        entry["wall_s"] = wall_s
        entry.pop("failed", None)
        self.save()

    def fail(self, cell, reason):
        self.entry(cell)["failed"] = reason
        self.save()

    def forget_failures(self, cells):
        """What failed is tried again."""
        for cell in cells:
            self.data["cells"].get(cell.key, {}).pop("failed", None)

    def seconds(self, cell):
        """How long a round of a cell took, or may take."""
        return self.data["cells"].get(cell.key, {}).get("wall_s", cell.seconds)


def plan(cells, store):
    """(round, cell) that are missing: a round of everything, the engines of a load in turn, and
    then the next."""
    return [(turn, cell) for turn in range(max((cell.rounds for cell in cells), default=0))
            for cell in cells
            if turn < cell.rounds and store.rounds(cell) <= turn and not store.failed(cell)]
