"""A recipe's key `grid`: its entries themselves, or a YAML file that holds them."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from recllm.merging.space import Space


def read_grid(words: Sequence[str]) -> Space:
    """The points of a grid as a command line has it: one YAML file, or entries, each a mapping in YAML or JSON.

    mergekit files that an entry names are looked for from where the process runs; those that a file names, beside it.

    Raises:
        ValueError: no entries, or what is wrong with one; the message has its number.
    """
    if not words:
        raise ValueError("grid has no entries: give at least one mapping with a method, or a YAML file")
    if len(words) == 1 and not words[0].lstrip().startswith("{"):
        return Space.read(words[0])
    entries = []
    for row, word in enumerate(words, 1):
        try:
            entries.append(yaml.safe_load(word))
        except yaml.YAMLError as error:
            raise ValueError(f"grid: entry {row} is not valid YAML: {error}") from error
    return Space.of_entries(entries)
