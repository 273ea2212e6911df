"""A model for tests that proposes by its seed alone."""

import json
from dataclasses import dataclass

import numpy as np


@dataclass
class Chooses:
    """Draws a legal branch of the schema by the ask's seed, and counts its batches; every fifth reply is bad."""

    name: str = "draws"
    style: str = "brief"
    batches: tuple[int, ...] = ()

    def reply(self, asks):
        self.batches += (len(asks),)
        return [self._one(ask) for ask in asks]

    def _one(self, ask):
        rng = np.random.default_rng([ask.seed, len(ask.messages)])
        if rng.random() < 0.2:
            return "I would rather not"
        if "anyOf" not in ask.schema:  # of a reflection
            return json.dumps(dict.fromkeys(ask.schema["properties"], "as seen") | {"confidence": 0.5, "prune": []})
        branch = ask.schema["anyOf"][int(rng.integers(len(ask.schema["anyOf"])))]["properties"]
        values = branch["value"]["enum"]
        said = {"changed_dimension": branch["changed_dimension"]["const"], "value": values[rng.integers(len(values))]}
        texts = dict.fromkeys(("hypothesis", "expected_effect", "risk"), "as said")
        return json.dumps({name: (texts | said)[name] for name in branch})
