"""Which device this process computes on."""

from __future__ import annotations

import torch


def device_here() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
