"""What cannot be asked for, or would have no effect, told before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..base.process import warn_user
from ..model.bnn import BNN
from ..model.hierarchy import Hierarchical
from .loop import Callback
from .settings import FitSettings
from .snapshot import has_map_values

NEEDS_NORMAL_PRIORS = (
    "optimizer='ivon' needs normal priors of given scales for all that is sampled: use optimizer='adam' with "
    "Hierarchical(), with other priors, a sampled noise or ordered biases"
)


def check_effects(bnn: BNN, validation: Any, callbacks: Sequence[Callback], asked: FitSettings, resumed: bool) -> None:
    """Refuse options that would have no effect, and callbacks that cannot be called, before any work."""
    if not isinstance(callbacks, Sequence) or not all(callable(callback) for callback in callbacks):
        raise TypeError(f"callbacks must be a list of functions of (step, losses), got {callbacks!r}")
    if not isinstance(bnn, BNN):
        return
    if asked.precision is not None:
        _require_mixed(bnn.like.dtype, torch.device(asked.device or bnn.like.device))
    if resumed:
        return
    if validation is None:
        for name in ("patience", "validate_every"):
            if getattr(asked, name) != getattr(FitSettings, name):
                raise ValueError(f"{name} has no effect without validation: give validation=(x, y)")
    if asked.optimizer == "ivon" and (isinstance(bnn.prior, Hierarchical) or bnn.ordered_biases):
        raise ValueError(NEEDS_NORMAL_PRIORS)
    if asked.checkpoint is None:
        for name in ("checkpoint_every", "checkpoint_errors"):
            if getattr(asked, name) != getattr(FitSettings, name):
                warn_user(f"{name} has no effect without checkpoint: name a directory there")
    own = not bnn.awaits_map and (asked.init == "map" or (asked.init is None and has_map_values(bnn)))
    if not own and asked.start is None and asked.map_steps != FitSettings.map_steps:
        how = "values=MAP(num_steps=...) says how long" if bnn.awaits_map else "use init='map'"
        warn_user(f"map_steps has no effect, since no MAP estimate of the masked model is looked for: {how}")


def _require_mixed(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse mixed precision where it would not be faster, or not be mixed."""
    if dtype != torch.float32:
        raise ValueError(f"precision='bf16-mixed' needs a network of dtype float32, got {dtype}")
    if device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        raise ValueError(
            f"precision='bf16-mixed' needs an accelerator that multiplies in bfloat16, got device {str(device)!r}, "
            "where it would be slower: leave it out"
        )
