"""Who chooses, from the one word that a config or a command line names it by."""

from __future__ import annotations

from recllm.tuning.baselines.opro import Opro
from recllm.tuning.baselines.suggesters import METHODS, suggester
from recllm.tuning.language.language import Recorder, load_language_model
from recllm.tuning.study.agent import Chooser
from recllm.tuning.study.choosers import ModelChooser, SamplerChooser


def load_chooser(spec: str, seed: int = 0, record: str | None = None) -> Chooser:
    """A sampler of `recllm.tuning.baselines.suggesters`, a model as `load_language_model` names it, or `opro:` before a
    model.

    record: file that a language model's replies are kept in and answered from.

    Raises:
        ValueError: an unknown word, or a sampler that is to be recorded.
    """
    if spec in METHODS:
        if record:
            raise ValueError(f"{spec} says nothing that could be recorded; leave out record")
        return SamplerChooser(suggester(spec, seed))
    kind, _, rest = spec.partition(":")
    try:
        model = load_language_model(rest if kind == "opro" else spec)
    except ValueError as error:
        raise ValueError(f"proposer {spec!r}: {error}; or one of {', '.join(METHODS)}") from error
    model = Recorder(model, record) if record else model
    return Opro(model) if kind == "opro" else ModelChooser(model)
