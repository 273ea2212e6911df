"""Who chooses, from the one word that a config or a command line names it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recllm.tuning.agent import Chooser
from recllm.tuning.baselines import METHODS, suggester
from recllm.tuning.choosers import ModelChooser, SamplerChooser
from recllm.tuning.opro import Opro

if TYPE_CHECKING:
    from recllm.tuning.language import LanguageModel


def load_chooser(spec: str, seed: int = 0, record: str | None = None) -> Chooser:
    """A sampler of `recllm.tuning.baselines`, a language model as in `load_model`, or `opro:` before one of those.

    record: file that a language model's replies are written to.

    Raises:
        ValueError: an unknown word, or a sampler that is to be recorded.
    """
    if spec in METHODS:
        if record:
            raise ValueError(f"{spec} says nothing that could be recorded; leave out record")
        return SamplerChooser(suggester(spec, seed))
    kind, _, rest = spec.partition(":")
    model = load_model(rest if kind == "opro" else spec)
    if record:
        from recllm.tuning.language import Recorder

        model = Recorder(model, record)
    return Opro(model) if kind == "opro" else ModelChooser(model)


def load_model(spec: str) -> LanguageModel:
    raise ValueError(spec)
