"""What can be asked of a fit: names, defaults and checks, in one place. Nothing of it needs torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.checks import (
    is_integer,
    require_checkpoint,
    require_count,
    require_flag,
    require_missing,
    require_positive,
    require_seed,
)

if TYPE_CHECKING:
    import torch


# Where none is given. IVON's counts in steps of Newton's method.
LEARNING_RATES = {"adam": 0.01, "ivon": 0.1}


@dataclass(frozen=True)
class FitSettings:
    """The options of `pyro_sps.fit`, which explains them, with their defaults.

    What `start` must be is for `pyro_sps.inference.warm_start` to say, which knows what a fit is.

    Raises:
        ValueError: If one is out of range.

    Example:
        >>> from pyro_sps.inference.settings import FitSettings
        >>> FitSettings(num_steps=100).to_dict()["num_particles"]
        4
    """

    num_steps: int = 5_000
    num_particles: int = 4
    batch_size: int | None = 128
    learning_rate: float | None = None
    final_learning_rate: float | None = None
    schedule: str = "exponential"
    warmup_steps: int = 0
    optimizer: str = "adam"
    accumulate: int = 1
    average_steps: int = 0
    precision: str | None = None
    init: str | Mapping[str, Any] | None = None
    init_scale: float = 0.05
    map_steps: int = 3000
    start: Any = None
    kl_weight: float = 1.0
    max_grad_norm: float = 1e3
    standardize: bool = True
    missing: str = "error"
    validate_every: int = 500
    patience: int | None = None
    seed: int = 0
    device: torch.device | str | None = None
    progress: bool = True
    compile: bool | None = None
    replicas: int | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1000
    checkpoint_errors: str = "warn"

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_particles", "validate_every", "map_steps", "accumulate", "checkpoint_every"):
            require_count(name, getattr(self, name))
        for name in ("warmup_steps", "average_steps"):
            if not is_integer(value := getattr(self, name), 0) or value >= self.num_steps + (name == "average_steps"):
                raise ValueError(f"{name} must be an integer from 0 on, and of {self.num_steps} steps, got {value!r}")
        for name, known in (("optimizer", ("adam", "ivon")), ("schedule", ("exponential", "cosine"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if self.precision not in (None, "bf16-mixed"):
            raise ValueError(f"precision must be None or 'bf16-mixed', got {self.precision!r}")
        if self.accumulate > 1 and self.batch_size is None:
            raise ValueError("accumulate has no effect without batch_size: give the rows of a part there")
        if self.average_steps and self.patience is not None:
            raise ValueError("average_steps has no effect with patience, which returns one state: leave one out")
        for name in ("batch_size", "patience", "replicas"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        require_positive("learning_rate", self.rate)
        for name in ("init_scale", "kl_weight"):
            require_positive(name, getattr(self, name))
        if self.max_grad_norm != math.inf:
            require_positive("max_grad_norm", self.max_grad_norm)
        for name in ("standardize", "progress"):
            require_flag(name, getattr(self, name))
        if self.compile is not None:
            require_flag("compile", self.compile)
        if self.final_learning_rate is not None:
            require_positive("final_learning_rate", self.final_learning_rate)
        if not (self.init is None or isinstance(self.init, Mapping) or self.init in ("random", "map")):
            raise ValueError(f"init must be 'random', 'map' or a dict of values by site, got {self.init!r}")
        require_missing(self.missing)
        require_checkpoint(self.checkpoint, self.checkpoint_errors)
        require_seed(self.seed)

    @property
    def rate(self) -> float:
        """Learning rate at the start."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @staticmethod
    def names() -> list[str]:
        """Names of the options, in order."""
        return [field.name for field in fields(FitSettings)]

    def to_dict(self) -> dict[str, Any]:
        """The options by name; a path is told as text, a start by its presence."""
        settings = {name: getattr(self, name) for name in self.names()}
        settings["learning_rate"] = self.rate
        settings["checkpoint"] = None if self.checkpoint is None else os.fspath(self.checkpoint)
        settings["start"] = None if self.start is None else "given"
        return settings

    def rows(self, rows: int) -> int:
        """Rows of a step where there are so many."""
        return rows if self.batch_size is None else min(self.batch_size, rows)
