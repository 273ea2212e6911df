"""mergekit's random numbers, tensor by tensor.

`mergekit-yaml --random-seed S` seeds torch's generator once and merges the tensors by name, each taking its numbers
where the one before it stopped. So a mask depends on the seed and on every density before it, and on no strength.
A `Stream` keeps the generator's state before each tensor (5 KB each): a tensor can be drawn again alone, after its
mask has left the cache, and gives the same mask. The caller's generator is left as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

T = TypeVar("T")


class Stream:
    """The generator's states along one order of tensors, 0, 1, 2, ..."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._states = [torch.get_rng_state()]

    def draw(self, index: int, call: Callable[[], T]) -> T:
        """`call()`, which draws for tensor `index`, with the generator where it stands there.

        Raises:
            ValueError: the tensor before `index` was never drawn; tensors are drawn in order the first time.
        """
        if index >= len(self._states):
            raise ValueError(f"tensor {index} is drawn before tensor {len(self._states) - 1}: merge in order once")
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._states[index])
            result = call()
            if index + 1 == len(self._states):
                self._states.append(torch.get_rng_state())
        return result


class ByteCache:
    """Tensors by key, the least recently used dropped beyond `limit` bytes. One larger than the limit is not kept."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of `key`, made where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tensor = make()
        size = tensor.numel() * tensor.element_size()
        if size <= self.limit:
            while self.used + size > self.limit:
                _, old = self._kept.popitem(last=False)
                self.used -= old.numel() * old.element_size()
            self._kept[key] = tensor
            self.used += size
        return tensor
