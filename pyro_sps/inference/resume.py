"""Going on with a fit, or with sampling, from its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..base.checks import require_count, require_device
from ..base.files import LoadError
from ..base.plain import plain_torch
from ..data.observed import Extras
from ..data.opening import data_of
from ..model.bnn import BNN
from ..posterior.samples import Samples
from .checkpoint import Checkpoint
from .loop import Callback
from .run_fit import run_fit
from .sample_settings import SampleSettings
from .sampling import run_sample
from .settings import FitSettings


@plain_torch()
def resume(
    directory: str | Path,
    bnn: BNN,
    x: Any,
    y: Any = None,
    *,
    weights: Any = None,
    y_scale: Any = None,
    num_data: int | None = None,
    validation: Any = None,
    num_samples: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    num_steps: int | None = None,
) -> Any:
    """Go on with a fit, or with sampling, from its last checkpoint, to its end or for more than it was to have.

    On the same machine, with the same versions and number of torch's threads, a CPU gives the very numbers that the
    fit would have had without a break. If it had ended, its result comes back at once.

    Args:
        directory: What was given to `fit` or `sample` as `checkpoint`; further checkpoints go there too.
        bnn: The same model.
        x: The same inputs.
        y: The same targets.
        weights: The same as in `fit` or `sample`.
        y_scale: Likewise.
        num_data: Likewise.
        validation: The same as in `fit`.
        num_samples: For sampling: draws of each chain, more than before if chains that had ended should go on.
        device: Where to go on; default: as before.
        progress: As in `fit`.
        callbacks: As in `fit`; they see the steps that are left.
        num_steps: Number of steps in all, at least as many as before; default: as in `fit`. What is added has the
            learning rate that there was at the end. A fit that `patience` had stopped goes on too.

    Returns:
        What `fit` or `sample` would have returned: a `Fit`, a `Fits` or `Samples`. All other settings are those of
        before, but for a time limit, which there is none now; where `init` was a dict, `Fit.settings` has `"given"`.

    Raises:
        LoadError: If there is no checkpoint, it is damaged or of another version, or it is of another model or of
            other data.
        ValueError: If `num_steps` is smaller than it was, or there is no such device.
        NonFiniteLossError: As in `fit`.

    Warns:
        RuntimeWarning: If versions, device or number of threads are others than they were.

    Example:
        >>> import tempfile, torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     fit = sps.fit(bnn, x, x**2, num_steps=20, progress=False, checkpoint=directory)
        ...     again = sps.resume(directory, bnn, x, x**2)
        >>> bool((again.guide.loc == fit.guide.loc).all())
        True
    """
    require_device(device)
    found = Checkpoint.read(directory)
    size = found.settings.get("batch_size")
    x, y, extras, _ = data_of(x, y, Extras(weights, y_scale), num_data, size, size)
    if found.settings.keys() == set(SampleSettings.names()):
        if validation is not None:
            raise ValueError("validation is of no use here: the checkpoint is one of sample, which has none")
        if num_steps is not None:
            raise ValueError("num_steps is of no use here: the checkpoint is one of sample; give num_samples")
        return _resume_sampling(found, bnn, x, y, extras, num_samples, device, progress, callbacks)
    if num_samples is not None:
        raise ValueError("num_samples is of no use here: the checkpoint is one of fit, which draws when it predicts")
    # An option that is not there is one that the version that wrote it did not have.
    known = {name: getattr(FitSettings, name) for name in FitSettings.names()} | dict(found.settings)
    if known.keys() != set(FitSettings.names()) or known["start"] not in (None, "given"):
        raise LoadError(f"the checkpoint in {directory} is damaged: its settings are not those of fit")
    try:
        asked = FitSettings(
            **{
                **known,
                "init": "random" if known["init"] == "given" else known["init"],  # the checkpoint takes its place
                "start": None,
                "device": known["device"] if device is None else device,
                "checkpoint": directory,
                "progress": progress,
            }
        )
        require_device(asked.device)
    except (ValueError, TypeError, OverflowError) as error:
        raise LoadError(f"the checkpoint in {directory} is damaged, or of another machine: {error}") from error
    found.check_settings(asked)
    if num_steps is not None:
        require_count("num_steps", num_steps)
        if num_steps < asked.num_steps:
            raise ValueError(f"num_steps must be at least {asked.num_steps}, as before, got {num_steps}")
        found, asked = found.extended(num_steps), replace(asked, num_steps=num_steps)
    return run_fit(bnn, x, y, validation, callbacks, asked, found, extras)


def _resume_sampling(
    found: Checkpoint,
    bnn: BNN,
    x: Any,
    y: Any,
    extras: Extras,
    num_samples: int | None,
    device: torch.device | str | None,
    progress: bool,
    callbacks: Sequence[Callback],
) -> Samples:
    known = found.settings
    try:
        asked = SampleSettings(
            **{
                **known,
                "starts": "prior",  # of which the checkpoint takes the place
                "device": known["device"] if device is None else device,
                "checkpoint": found.directory,
                "time_limit": None,
                "progress": progress,
            }
        )
        require_device(asked.device)
    except (ValueError, TypeError) as error:
        raise LoadError(f"the checkpoint in {found.directory} is damaged, or of another machine: {error}") from error
    if num_samples is not None:
        if num_samples < asked.num_samples:
            raise ValueError(f"num_samples must be at least the {asked.num_samples} of before, got {num_samples}")
        asked = replace(asked, num_samples=num_samples)
    return run_sample(bnn, x, y, callbacks, asked, found, extras)
