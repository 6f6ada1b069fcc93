"""What can be asked of sampling: names, defaults and checks, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..base.checks import (
    is_integer,
    is_number,
    require_checkpoint,
    require_count,
    require_flag,
    require_missing,
    require_positive,
    require_seed,
)
from .starts import check_starts

KERNELS = ("mclmc", "mams", "nuts")

# Steps (or trajectories) before the first draw and from one draw to the next, where the user leaves them open.
WARMUP = {"mclmc": 2000, "mams": 400, "nuts": 1000}
THINNING = {"mclmc": 40, "mams": 4, "nuts": 1}

# What the warm-up aims at: mean square energy error per stiff direction, or share of accepted trajectories.
ENERGY_ERROR, ACCEPTANCE = 0.01, {"mams": 0.9, "nuts": 0.8}

# Options that only some kernels have a use for.
_ONLY = {
    "energy_error": ("mclmc",),
    "target_accept": ("mams", "nuts"),
    "max_tree_depth": ("nuts",),
    "batch_size": ("mclmc",),
    "checkpoint": ("mclmc", "mams"),
    "time_limit": ("mclmc", "mams"),
    "compile": ("mclmc", "mams"),
}


@dataclass(frozen=True)
class SampleSettings:
    """The options of `pyro_sps.sample`, which explains them, with their defaults.

    Raises:
        ValueError: If one is out of range, or of no effect with the kernel.

    Example:
        >>> from pyro_sps.inference.sample_settings import SampleSettings
        >>> SampleSettings(kernel="mams").steps
        (400, 4)
    """

    kernel: str = "mclmc"
    chains: int = 10
    num_samples: int = 100
    thinning: int | None = None
    warmup: int | None = None
    starts: Any = "map"
    map_steps: int = 3000
    energy_error: float | None = None
    target_accept: float | None = None
    max_tree_depth: int | None = None
    batch_size: int | None = None
    standardize: bool = True
    missing: str = "error"
    seed: int = 0
    device: torch.device | str | None = None
    progress: bool = True
    compile: bool | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1000
    checkpoint_errors: str = "warn"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {self.kernel!r}")
        for name in ("chains", "num_samples", "map_steps", "checkpoint_every"):
            require_count(name, getattr(self, name))
        for name in ("thinning", "batch_size", "max_tree_depth"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("energy_error", "time_limit"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.warmup is not None and not is_integer(self.warmup, 0):
            raise ValueError(f"warmup must be a non-negative integer, got {self.warmup!r}")
        if (accept := self.target_accept) is not None and not (is_number(accept) and 0 < accept < 1):
            raise ValueError(f"target_accept must be in (0, 1), got {accept!r}")
        if self.kernel == "nuts" and self.num_samples < 4:
            raise ValueError(f"num_samples must be an integer of at least 4 for nuts, got {self.num_samples!r}")
        require_missing(self.missing)
        require_checkpoint(self.checkpoint, self.checkpoint_errors)
        for name, kernels in _ONLY.items():
            if getattr(self, name) is not None and self.kernel not in kernels:
                raise ValueError(f"{name} is of no use with kernel={self.kernel!r}, only with {' and '.join(kernels)}")
        for name in ("standardize", "progress"):
            require_flag(name, getattr(self, name))
        if self.compile is not None:
            require_flag("compile", self.compile)
        require_seed(self.seed)
        check_starts(self.starts)

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the warm-up, and from one draw to the next."""
        return (
            WARMUP[self.kernel] if self.warmup is None else self.warmup,
            THINNING[self.kernel] if self.thinning is None else self.thinning,
        )

    @property
    def aim(self) -> float:
        """What the warm-up aims at."""
        if self.kernel == "mclmc":
            return ENERGY_ERROR if self.energy_error is None else self.energy_error
        return ACCEPTANCE[self.kernel] if self.target_accept is None else self.target_accept

    @staticmethod
    def names() -> list[str]:
        """Names of the options, in order."""
        return [one.name for one in fields(SampleSettings)]

    def to_dict(self) -> dict[str, Any]:
        """The options by name, with what they are where they were left open; a path is told as text."""
        told = {name: getattr(self, name) for name in self.names()}
        told["checkpoint"] = None if self.checkpoint is None else os.fspath(self.checkpoint)
        told["warmup"], told["thinning"] = self.steps
        return told | {"starts": self.starts if isinstance(self.starts, str) else type(self.starts).__name__}
