"""An evaluator in milliseconds: a handful of prompts, tokens drawn from the model's own logits, seeded by question."""

import time

import numpy as np
import torch

from recllm.evaluation.samples import Samples

KNOWN = {"questions": 6, "samples": 2, "pause": 0.0, "fail_after": -1, "global_draws": False, "answer": ""}


class Toy:
    """Fails from its call number `fail_after` on; with `global_draws` it draws from torch's global generator."""

    def __init__(self, options):
        if unknown := sorted(set(options) - set(KNOWN)):
            raise ValueError(f"unknown option {unknown[0]!r}")
        self.options = {**KNOWN, **options}
        self.name, self.calls = "toy", 0
        self.fingerprint = f"{self.options['questions']}-{self.options['samples']}"

    @torch.no_grad()
    def __call__(self, model, tokenizer):
        options = self.options
        if 0 <= options["fail_after"] <= self.calls:
            raise OSError("the questions are gone")
        self.calls += 1
        time.sleep(options["pause"])
        shape = options["questions"], options["samples"]
        ids = torch.arange(shape[0] * 4).reshape(shape[0], 4) % len(tokenizer)
        logits_QV = model(ids).logits[:, -1].float()
        value_QS, tokens_QS = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        for q in range(shape[0]):
            generator = None if options["global_draws"] else torch.Generator().manual_seed(q)
            shares = torch.softmax(logits_QV[q] * 4, -1)
            drawn = torch.multinomial(shares, shape[1], replacement=True, generator=generator)
            value_QS[q] = shares[drawn] / shares.max()
            tokens_QS[q] = drawn + 1
        model.train()  # a careless evaluator: the next point must not notice
        return options["answer"] or Samples(value_QS, tokens_QS, tokens_QS % 2 == 0)


def toy(options):
    return Toy(options)


def no_evaluator(options):
    return object()
