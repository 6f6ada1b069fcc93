"""Checkpoints: all that a fit needs to go on, in one file that is replaced as a whole.

Noise and minibatches are numbered by step (`pyro_sps.data.arrays`), so that there is no random state to keep.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.checks import is_integer
from ..base.files import LoadError, Numbers, seal, unseal, write_atomically
from ..base.process import warn_user
from ..model.bnn import BNN
from ..model.hierarchy import Hierarchical
from ..version import __version__
from .settings import FitSettings

FORMAT = 1

FILE = "checkpoint.safetensors"

# Most numbers that the noise of a step takes, since a file can say any number of particles.
MAX_NOISE = 1 << 27

# More steps than any fit has had, and few enough to be counted in double precision.
MAX_STEPS = 1 << 50

# Of the file that a directory holds: one's own, and as large as its fit. Only nonsense is kept out.
_MAX_BYTES = 1 << 34


@dataclass
class Writer:
    """Where a fit writes its checkpoints.

    Attributes:
        directory: The directory.
        every: Steps between checkpoints.
        stop: Whether the fit stops when one cannot be written.
        failing: Whether the last one could not be written.
    """

    directory: Path
    every: int
    stop: bool
    failing: bool = False

    @staticmethod
    def open(directory: str | Path, every: int, errors: str, new: bool) -> Writer:
        """Make the directory ready, before any work.

        Args:
            directory: Where to write; it is made if need be.
            every: Steps between checkpoints.
            errors: What to do when one cannot be written: `"warn"` and go on, or `"stop"`.
            new: Whether the fit is new: then there must be no checkpoint yet.

        Raises:
            FileExistsError: If a new fit would overwrite another one's checkpoint.
            OSError: If the directory cannot be made or written.
        """
        directory = Path(directory)
        if new and (directory / FILE).exists():
            raise FileExistsError(
                f"checkpoint={str(directory)!r} holds the checkpoint of a fit: go on with it by pyro_sps.resume, "
                f"or remove {directory / FILE}"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / f"{FILE}.probe"
            for left in (probe, *directory.glob(f".{FILE}.*.tmp")):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            write_atomically(probe, b"")
            probe.unlink()
        except OSError as error:
            what = f"checkpoint={str(directory)!r} cannot be written ({error.strerror})"
            raise type(error)(error.errno, what) from error
        return Writer(directory, every, errors == "stop")

    def write(self, step: int, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """Replace the checkpoint.

        Args:
            step: Number of steps done.
            header: See `Checkpoint`.
            tensors: See `Checkpoint`.

        Returns:
            Why the fit should stop, or nothing.

        Warns:
            RuntimeWarning: If the checkpoint could not be written, once until one can.
        """
        try:
            write_atomically(self.directory / FILE, seal(tensors, {"format": FORMAT, **header}))
            self.failing = False
            return ""
        except OSError as error:
            what = f"the checkpoint in {self.directory} could not be written after step {step} ({error})"
        if not self.failing:
            then = "stops, with its result so far" if self.stop else "goes on, and the last checkpoint is kept"
            warn_user(f"{what}; the fit {then}", RuntimeWarning)
        self.failing = True
        return what if self.stop else ""


@dataclass(frozen=True)
class Checkpoint:
    """A fit on its way, read from a file.

    Attributes:
        directory: Where it was.
        settings: What `fit` was asked for.
        marks: What tells model and data from others: `marks_of` the model, `digest_of` its data.
        done: Number of steps done.
        stopped: Why the fit ended; empty while there is more to do.
        environment: What the last bits of its numbers depend on: `environment`, and how its `steps` were run.
        seconds: Wall time of each part so far.
        numbers: Its tensors.
        decay: Steps over which the learning rate decays, where more were added; None for all.
        before: Steps of the fits that it goes on from.
    """

    directory: Path
    settings: Mapping[str, Any]
    marks: Mapping[str, Any]
    done: int
    stopped: str
    environment: Mapping[str, Any]
    seconds: Mapping[str, float]
    numbers: Numbers
    decay: int | None = None
    before: int = 0

    @staticmethod
    def read(directory: str | Path) -> Checkpoint:
        """Read the checkpoint of a directory.

        Args:
            directory: The directory.

        Raises:
            LoadError: If there is none, or it is damaged or of another version.
        """
        directory = Path(directory)
        path = directory / FILE
        header, tensors = unseal(path, _MAX_BYTES, f"there is no checkpoint in {directory}: {FILE} is missing")
        if header.pop("format", None) != FORMAT:
            raise LoadError(f"{path} is no checkpoint of format {FORMAT}, which this version of pyro_sps reads")
        kinds = {
            "settings": dict,
            "marks": dict,
            "done": int,
            "stopped": str,
            "environment": dict,
            "seconds": dict,
        }
        decay, before = header.setdefault("decay", None), header.setdefault("before", 0)
        if isinstance(header.get("settings"), dict):
            header["settings"].setdefault("missing", "error")  # which version 0.1 did not have
        known = {*kinds, "decay", "before"}
        if header.keys() != known or not all(isinstance(header[k], kind) for k, kind in kinds.items()):
            raise LoadError(f"{path} is damaged: its header is not that of a checkpoint")
        if decay is not None and not is_integer(decay):
            raise LoadError(f"{path} is damaged: its learning rate decays over {str(decay)[:80]} steps")
        if not is_integer(before, 0) or before > MAX_STEPS:
            raise LoadError(f"{path} is damaged: it goes on after {str(before)[:80]} steps")
        if isinstance(header["done"], bool):
            raise LoadError(f"{path} is damaged: its number of steps is none")
        if not all(isinstance(value, float) for value in header["seconds"].values()):
            raise LoadError(f"{path} is damaged: its seconds are no numbers")
        return Checkpoint(directory, numbers=Numbers(tensors, f"the checkpoint in {directory}"), **header)

    @property
    def ended(self) -> bool:
        """Whether the fit had ended, so that there is nothing to go on with."""
        return self.stopped != "" or self.done == self.settings["num_steps"]

    def extended(self, num_steps: int) -> Checkpoint:
        """The same with more steps to do; one whose loss is not finite has none.

        Args:
            num_steps: Number of steps in all.
        """
        failed, losses = self.numbers.left.get("failed"), self.numbers.left["losses"]
        before = len(losses)
        if num_steps == before or failed is None or (failed >= 0).all():
            return self
        self.numbers.left["losses"] = torch.cat([losses, losses.new_zeros((num_steps - before, losses.shape[1]))])
        for name in ("waited", "averaged"):  # of the former end
            if name in self.numbers.left:
                self.numbers.left[name] = torch.zeros_like(self.numbers.left[name])
        settings = {**self.settings, "num_steps": num_steps}
        return replace(self, settings=settings, stopped="", decay=self.decay or before)

    def check_settings(self, asked: FitSettings) -> None:
        """Refuse settings that are not those of the numbers, before anything of their size is made.

        Args:
            asked: What the file says was asked for.

        Raises:
            LoadError: If the numbers are those of other settings.
        """
        replicas = asked.replicas or 1
        params, losses = (self.numbers.left.get(name) for name in ("params", "losses"))
        if params is None or params.dim() != 2 or len(params) != replicas:
            raise LoadError(f"the checkpoint in {self.directory} is damaged: it does not hold {replicas} replicas")
        if losses is None or tuple(losses.shape) != (asked.num_steps, replicas):
            raise LoadError(f"the checkpoint in {self.directory} is damaged: it does not hold {asked.num_steps} losses")
        size = asked.num_particles * params.shape[1]
        if size > MAX_NOISE:
            raise LoadError(
                f"the checkpoint in {self.directory} asks for {asked.num_particles:,} particles, which take "
                f"{size * params.element_size() / 1e9:.1f} GB a step: no file is trusted with that; start a new fit"
            )

    def require(self, marks: Mapping[str, Any]) -> None:
        """Refuse another model or other data than those of the checkpoint.

        Args:
            marks: Of what it is to go on with.

        Raises:
            LoadError: If they differ from those of the checkpoint.
        """
        for name, value in marks.items():
            before = self.marks.get(name)
            if before == value:
                continue
            if name in ("data", "validation"):
                what = "x and y are" if name == "data" else "validation is"
                raise LoadError(f"{what} not what the checkpoint in {self.directory} was made with")
            shown = "" if name in ("masks", "constants") else f": {str(before)[:300]}, not {str(value)[:300]}"
            raise LoadError(f"bnn is not the model of the checkpoint in {self.directory}, whose {name} differ{shown}")

    def require_elbo(self, elbo: float, epsilon: float) -> None:
        """Refuse a model that looks the same but computes something else (activations, priors, likelihood).

        Args:
            elbo: The objective at a point that depends on the seed alone.
            epsilon: Relative rounding error; some hundreds of it are left to other machines.

        Raises:
            LoadError: If it differs from that of the checkpoint.
        """
        before = self.marks.get("elbo")
        if not isinstance(before, float):
            raise LoadError(f"the checkpoint in {self.directory} is damaged: its ELBO is {str(before)[:80]}")
        if not np.isclose(elbo, before, rtol=1000 * epsilon, atol=0, equal_nan=True):
            raise LoadError(
                f"bnn is not the model of the checkpoint in {self.directory}: its ELBO at the same weights is another. "
                "Compare activations, priors and likelihood"
            )

    def warn_of_environment(self, current: Mapping[str, Any]) -> None:
        """Warn where the last bits may differ from those of a run without a break.

        Args:
            current: Today's `environment`.
        """
        other = [f"{k} {self.environment.get(k)}, now {v}" for k, v in current.items() if self.environment.get(k) != v]
        if other:
            warn_user(
                f"the checkpoint in {self.directory} was made with {'; '.join(other)}: the fit goes on, but not to "
                "the very numbers it would have had without a break",
                RuntimeWarning,
            )


def marks_of(bnn: BNN) -> dict[str, Any]:
    """What tells a model from others, in JSON.

    Args:
        bnn: The model.
    """
    likelihood = bnn.likelihood
    priors: dict[str, Any] = {"scale": bnn.prior_scale, "by fan-in": bnn.scale_by_fan_in, "own": bnn.prior is not None}
    if isinstance(bnn.prior, Hierarchical):
        priors["hierarchical"] = bnn.prior.config()
    dropout = "" if bnn.dropout == "ignore" else f" with dropout={bnn.dropout!r} at {list(bnn.drop_rates)}"
    return {
        "weights": [[tensor.name, list(tensor.shape)] for tensor in bnn.topology.tensors],
        "dtypes": str(bnn.like.dtype),
        "priors": {**priors, "ordered biases": bnn.ordered_biases},
        "likelihoods": f"{type(likelihood).__name__}({likelihood.config()})" + dropout,
        "masks": digest_of(bnn.masks.values()),
        "constants": digest_of(bnn.fixed.values()),
    }


def digest_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors with their shapes and dtypes.

    Args:
        tensors: In an order of their own.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def environment(like: Tensor) -> dict[str, Any]:
    """What the last bits of a fit's numbers depend on.

    Args:
        like: A tensor on its device.
    """
    return {
        "pyro_sps": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": like.device.type,
    }


def plain(value: Any) -> Any:
    """A setting in JSON; values by site are told by their presence only."""
    if isinstance(value, Mapping):
        return "given"
    if isinstance(value, torch.device | os.PathLike):
        return str(value)
    return value.item() if hasattr(value, "item") else value
