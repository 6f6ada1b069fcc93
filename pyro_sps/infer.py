"""Fitting: from a `BNN` and data to a posterior."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Checkpoint, Writer, digest_of, environment, marks_of, plain
from .data import (
    Standardizer,
    check_inputs,
    check_resolution,
    check_targets,
    make_generator,
)
from .elbo import Params, Problem, elbo_terms, negative_elbo, prepare, pyro_session
from .files import LoadError
from .guides import AutoSPSNormal
from .loop import Callback, Replica, Run, decaying_rates, pays_to_compile, replicas_at_once, with_params
from .maximum import free_entries, initial_params, map_weights, maximise_posterior
from .nn import BNN
from .predict import Member, Prediction
from .step import AdamState, Layout
from .values import MAP, Given

# Activations of a layer, in elements, that estimates of the ELBO have at once: 16 MB of float32.
ELBO_ELEMENTS = 1 << 22


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        fit: The result with the last finite state.
        step: The step at which it happened, from 0 on.
        site: The sample site whose term is not finite, or `KL`.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> try:
        ...     sps.fit(bnn, x, x**2 * 1e30, num_steps=5, progress=False)
        ... except sps.NonFiniteLossError as error:
        ...     print(error.step, error.site)
        0 obs
    """

    def __init__(self, message: str, fit: Fit, step: int, site: str) -> None:
        super().__init__(message)
        self.fit, self.step, self.site = fit, step, site


@dataclass(frozen=True)
class Fit:
    """A fitted Bayesian neural network.

    Attributes:
        bnn: The fitted model, a copy of the one given to `fit` with learned c and noise in it.
        guide: The fitted guide.
        losses: Negative ELBO before each step (sum over the data, in the units of the network), shape (steps,).
        standardizer: Shift and scale between the user's units and the network's.
        seconds: Wall time of each part: `prepare`, `map`, `optimise`.
        settings: What `fit` was asked for.
        validation: One dict a check: `step`, `rmse`, `lpp`.
        stopped: Why the fit ended before its last step; empty if it did not.
        mode: How steps were run: `compiled`, `recorded` or `traced`.
        x: Training inputs, standardised if that was asked for.
        y: Training targets, likewise.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=20, progress=False)
        >>> fit.predict(x).mean.shape, fit.bnn.num_stochastic == len(fit.guide.loc), fit.settings["num_steps"]
        (torch.Size([20, 1]), True, 20)
    """

    bnn: BNN
    guide: AutoSPSNormal
    losses: np.ndarray = field(repr=False)
    standardizer: Standardizer = field(repr=False)
    seconds: Mapping[str, float]
    settings: Mapping[str, Any] = field(repr=False)
    validation: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    stopped: str = ""
    mode: str = ""
    x: Tensor | None = field(default=None, repr=False)
    y: Tensor | None = field(default=None, repr=False)

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0) -> Prediction:
        """The posterior predictive distribution at new inputs.

        Args:
            x: Inputs in original units, shape (rows, features).
            num_samples: Number of posterior draws S.
            seed: Seeds them.

        Returns:
            A lazy `Prediction`: `mean`, `std`, `interval`, `draws`, `rmse`, `lpp`, `coverage`.

        Raises:
            ValueError: If `x` does not fit the network.
        """
        return Prediction.of([self.member], x, num_samples, seed)

    @property
    def member(self) -> Member:
        """What predictions need."""
        return Member(self.bnn, self.guide, self.standardizer)

    @cached_property
    def elbo(self) -> float:
        """The final ELBO on the training data in nats, from 256 fresh draws (seed 0)."""
        return self.elbo_draws(256).mean().item()

    def elbo_draws(self, num_samples: int, seed: int = 0) -> Tensor:
        """Single-draw estimates of the ELBO on the whole training data, shape (num_samples,).

        Args:
            num_samples: Number of draws.
            seed: Seeds them.

        Raises:
            ValueError: If the fit was loaded from a file, which does not hold the training data.
        """
        if self.x is None or self.y is None:
            raise ValueError("this fit has no training data (it was loaded from a file); its elbo is not known")
        guide, bnn, x, y = self.guide, self.bnn, self.x, self.y
        generator = make_generator(x.device, seed, 2)
        loc, scale = (value.detach() for value in guide.parameters_of_sites())
        width = max(group.size for group in bnn.topology.groups)
        rows = max(1, min(len(x), ELBO_ELEMENTS // width))
        at_once = max(1, ELBO_ELEMENTS // max(width * rows, len(loc)))
        problem, _ = prepare(bnn, guide, x[:1], y[:1])
        values = []
        with pyro_session(), torch.no_grad():
            for first in range(0, num_samples, at_once):
                shape = (min(at_once, num_samples - first), 1, len(loc))
                noise = torch.randn(shape, generator=generator, dtype=loc.dtype, device=loc.device)
                total = torch.zeros(len(noise), dtype=torch.float64, device=loc.device)
                for start in range(0, len(x), rows):
                    batch = (x[start : start + rows], y[start : start + rows])
                    terms = torch.func.vmap(partial(elbo_terms, problem, loc, scale, args=batch))(noise)
                    observed = terms.pop("obs").double()
                    total = total - observed
                    if start == 0:
                        total = total - torch.stack(list(terms.values())).sum(0).double()
                values.append(total)
        return torch.cat(values)

    def to_arviz(self, draws: int = 1000, **options: Any) -> Any:
        """The fit as ArviZ's `InferenceData` or `DataTree`. See `pyro_sps.to_arviz`, which takes the same options."""
        from .diagnostics.convert import to_arviz

        return to_arviz(self, draws, **options)

    def save(self, directory: str | Path) -> None:
        """Write the fit to a directory; `pyro_sps.load` reads it again. See `pyro_sps.io.save`."""
        from .io import save

        save(self, directory)


class Fits(tuple[Fit, ...]):
    """Independent fits of one model (replicas), and the mixture of their posteriors.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fits = sps.fit(bnn, x, x**2, num_steps=5, progress=False, replicas=2)
        >>> len(fits), fits.losses.shape, fits.predict(x).mean.shape
        (2, (2, 5), torch.Size([20, 1]))
        >>> best = max(fits, key=lambda fit: fit.elbo)
    """

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0) -> Prediction:
        """The mixture's posterior predictive distribution: draws are divided equally among the fits."""
        return Prediction.of([fit.member for fit in self], x, num_samples, seed)

    def to_arviz(self, draws: int = 1000, **options: Any) -> Any:
        """The fits as chains of ArviZ's `InferenceData` or `DataTree`. See `pyro_sps.to_arviz`."""
        from .diagnostics.convert import to_arviz

        return to_arviz(self, draws, **options)

    @property
    def losses(self) -> np.ndarray:
        """Negative ELBO of each fit, shape (replicas, steps)."""
        return np.stack([fit.losses for fit in self])


def fit(
    bnn: BNN,
    x: Any,
    y: Any,
    *,
    num_steps: int = 5_000,
    num_particles: int = 4,
    batch_size: int | None = 128,
    learning_rate: float = 0.01,
    final_learning_rate: float | None = None,
    init: str | Mapping[str, Tensor] | None = None,
    init_scale: float = 0.05,
    map_steps: int = 3000,
    max_grad_norm: float = 1e3,
    standardize: bool = False,
    validation: tuple[Any, Any] | None = None,
    validate_every: int = 500,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    compile: bool | None = None,
    replicas: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    checkpoint_errors: str = "warn",
) -> Any:
    """Fit a mean-field normal posterior over the stochastic weights by maximising the ELBO.

    Adam with gradient clipping and an exponentially decaying learning rate; the ELBO is estimated with
    `num_particles` draws and the KL divergence in closed form (`pyro_sps.elbo`). `bnn` is not changed.

    Args:
        bnn: The model.
        x: Inputs, shape (rows, features); with `replicas`, also (replicas, rows, features) for data of their own.
        y: Targets, shape (rows, targets) or (rows,); with `replicas`, likewise.
        num_steps: Number of Adam steps.
        num_particles: Posterior draws a step.
        batch_size: Rows a step; None or a number of at least the rows for all of them.
        learning_rate: Adam's step size at the start.
        final_learning_rate: At the end; default 0.3 of that at the start.
        init: Where the guide's means start: `"random"` (normal, variance 1/fan-in), `"map"` (a MAP estimate of the
            same masked model; with `values=MAP()` the one that the constants are from), or values of the sample sites
            by name. Default: `"map"` where `values=MAP()` fixes weights, else `"random"`.
        init_scale: Initial standard deviation of every weight under the guide, in units of 1/√fan-in.
        map_steps: Steps of the MAP optimisation, with `init="map"`.
        max_grad_norm: Gradients of the loss per row are scaled down to this norm.
        standardize: Whether to shift and scale inputs, and real-valued targets, to mean 0 and standard deviation 1 of
            the training data; predictions come back in the original units. Constant columns are only shifted.
        validation: Inputs and targets on which RMSE and LPP are tracked, in original units.
        validate_every: Steps between these checks.
        patience: Stop after this many checks without a better LPP, and return the best state; None for never.
        seed: Seeds initialisation, noise and data order. Replica r is the fit with seed `seed + r`.
        device: Where to fit; default: where `bnn` is.
        progress: Whether to show a progress bar with the ELBO (on a terminal).
        callbacks: Functions of (step, losses of the replicas), called after every step; one that returns True stops.
            What they keep is theirs; the fit itself keeps one loss a step and one entry a validation.
        compile: Whether to compile the step with `torch.compile`; default: for fits long enough to gain from it.
        replicas: Number R of independent fits that run as one program; None for a single fit.
        checkpoint: Directory for checkpoints, of this fit alone, from which `pyro_sps.resume` goes on; None for none.
            One file is replaced as a whole: whenever the process ends, the last checkpoint is whole.
        checkpoint_every: Steps between them. One more comes at the start, after any MAP optimisation, and one at the
            end, also after Ctrl-C. Each holds five numbers a parameter at most, and the losses so far.
        checkpoint_errors: What to do when one cannot be written, for instance to a full disk: `"warn"` and go on, or
            `"stop"` with the result so far. A directory that cannot be used at all is an error before any work.

    Returns:
        A `Fit`, or with `replicas` a `Fits`, a tuple of them. Ctrl-C ends it after the step at work, with the result
        so far; a second Ctrl-C raises no later than Python would. While the constants of `values=MAP()` are sought
        there is no result yet, and the first one raises.

    Raises:
        ValueError: If an argument is out of range or the data does not fit the network, before any work.
        FileExistsError: If `checkpoint` holds the checkpoint of another fit, before any work.
        OSError: If `checkpoint` cannot be written, before any work.
        NonFiniteLossError: If the loss of a single fit stops being finite; it holds the last finite state.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=20, progress=False)
        >>> fit.losses.shape
        (20,)
    """
    settings = {
        name: value for name, value in locals().items() if name not in ("bnn", "x", "y", "validation", "callbacks")
    }
    _check_settings(**settings)
    settings["checkpoint"] = None if checkpoint is None else os.fspath(checkpoint)
    return _fit(bnn, x, y, validation, callbacks, settings, None)


def resume(
    directory: str | Path,
    bnn: BNN,
    x: Any,
    y: Any,
    *,
    validation: tuple[Any, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Any:
    """Go on with a fit from its last checkpoint.

    On the same machine, with the same versions and number of torch's threads, a CPU gives the very numbers that the
    fit would have had without a break. If it had ended, its result comes back at once.

    Args:
        directory: What was given to `fit` as `checkpoint`; further checkpoints go there too.
        bnn: The same model.
        x: The same inputs.
        y: The same targets.
        validation: The same as in `fit`.
        device: Where to go on; default: as in `fit`.
        progress: As in `fit`.
        callbacks: As in `fit`; they see the steps that are left.

    Returns:
        What `fit` would have returned, a `Fit` or a `Fits`. All other settings are those of `fit`; where `init` was
        a dict, `Fit.settings` has `"given"`.

    Raises:
        LoadError: If there is no checkpoint, it is damaged or of another version, or it is of another model or of
            other data.
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
    own = ("validation", "callbacks")
    names = [p.name for p in inspect.signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY]
    found = Checkpoint.read(directory)
    if found.settings.keys() != set(names) - set(own):
        raise LoadError(f"the checkpoint in {directory} is damaged: its settings are not those of fit")
    settings = {**found.settings, "checkpoint": str(directory), "progress": progress}
    settings["device"] = found.settings["device"] if device is None else device
    try:
        _check_settings(**{**settings, "init": "random" if settings["init"] == "given" else settings["init"]})
        torch.device(settings["device"] or "cpu")
    except (ValueError, TypeError, RuntimeError) as error:
        raise LoadError(f"the checkpoint in {directory} is damaged: {error}") from error
    return _fit(bnn, x, y, validation, callbacks, settings, found)


def _fit(
    bnn: BNN,
    x: Any,
    y: Any,
    validation: tuple[Any, Any] | None,
    callbacks: Sequence[Callback],
    settings: Mapping[str, Any],
    found: Checkpoint | None,
) -> Any:
    """Fit from the start, or from where a checkpoint was found."""
    started, asked = time.perf_counter(), SimpleNamespace(**settings)
    count, many, seed = asked.replicas or 1, asked.replicas is not None, asked.seed
    keeps = asked.checkpoint is not None
    marks = marks_of(bnn) if keeps and isinstance(bnn, BNN) else {}
    if found is not None:
        found.require(marks)
    members = _members(bnn, x, y, count, many, asked.standardize, asked.device, found)
    checks = _validation_data(members, validation, many)
    if keeps:
        marks |= {"data": digest_of(_training_data(members)), "validation": digest_of(itertools.chain(*checks))}
        if found is not None:
            found.require(marks)
        writer = Writer.open(asked.checkpoint, asked.checkpoint_every, asked.checkpoint_errors, found is None)
    first = members[0]
    rows = len(first.x)
    batch = rows if asked.batch_size is None else min(asked.batch_size, rows)

    estimates: list[Params] = []  # of the networks with nothing fixed
    seconds: dict[str, float] = {}
    if isinstance(first.bnn.values, MAP) and first.bnn.num_fixed:
        if found is None:
            begun = time.perf_counter()
            estimates = map_weights(members, first.bnn.values, batch, seed, asked.progress)
            seconds["map"] = time.perf_counter() - begun
        for index, member in enumerate(members):
            own = estimates[index] if found is None else _constants_of(member, found, index)
            member.bnn.set_fixed(Given({tensor.name: own[tensor.name] for tensor in first.bnn.topology.tensors}))
    guide = AutoSPSNormal(first.bnn)
    num_data = None if batch == rows else rows
    problem, own_params = prepare(first.bnn, guide, first.x[:batch], first.y[:batch], num_data=num_data)
    compile = asked.compile
    if compile is None:
        compile = pays_to_compile(asked.num_steps, count * asked.num_particles * batch, bnn)
    seconds["prepare"] = time.perf_counter() - started - seconds.get("map", 0.0)

    started, interrupted = time.perf_counter(), ""
    init = asked.init if found is None else "random"  # which a checkpoint replaces
    if init is None:
        init = "map" if estimates else "random"
    starts = [initial_params(m, problem, own_params, init, asked.init_scale, seed + r) for r, m in enumerate(members)]
    if init == "map":
        if estimates:  # whose fixed entries are the constants
            points = [free_entries(m, problem, own) for m, own in zip(members, estimates, strict=True)]
        else:
            points, interrupted = maximise_posterior(
                members, problem, starts, asked.map_steps, asked.learning_rate, batch, seed, asked.progress
            )
        starts = [{**start, **point} for start, point in zip(starts, points, strict=True)]
        seconds["map"] = seconds.get("map", 0.0) + time.perf_counter() - started

    started = time.perf_counter()

    def objective(params: Params, noise: Tensor, x: Tensor, y: Tensor, *constants: Tensor) -> Tensor:
        with first.bnn.constants_as(constants):
            return _vi_objective(problem, params, noise, x, y, rows, num_data)

    if keeps:
        plain_start = initial_params(first, problem, own_params, "random", asked.init_scale, seed)
        noise = first.x.new_zeros((1, problem.size))
        with pyro_session(), torch.no_grad():
            marks["elbo"] = objective(plain_start, noise, first.x[:batch], first.y[:batch]).item()
        if found is not None:
            found.require_elbo(marks["elbo"], torch.finfo(first.x.dtype).eps)
    ended = found is not None and (found.stopped != "" or found.done == asked.num_steps)
    run = Run(
        objective=objective,
        members=members,
        starts=starts,
        num_steps=asked.num_steps,
        batch_size=batch,
        noise_shape=(asked.num_particles, problem.size),
        seeds=[seed + index for index in range(count)],
        rates=decaying_rates(asked.learning_rate, asked.final_learning_rate, asked.num_steps),
        max_grad_norm=asked.max_grad_norm,
        compile=compile and not interrupted and not ended,
        progress=asked.progress,
        label="fit",
        group=replicas_at_once(count, asked.num_particles * batch * max(group.size for group in bnn.topology.groups)),
        paused=interrupted,
    )
    watcher = _Validation(checks, members, run.layout, guide, asked.validate_every, asked.patience) if checks else None
    mode = run.step.mode
    if found is not None:
        _restore(found, run, watcher)
        seconds = {**found.seconds, "prepare": seconds["prepare"] + found.seconds.get("prepare", 0.0)}
        if ended:
            mode = str(found.environment.get("steps"))
        else:
            found.warn_of_environment({**environment(first.x), "steps": mode})
    before = seconds.get("optimise", 0.0)

    def save() -> str:
        """Write a checkpoint; why to stop, if it cannot be written and that was asked for."""
        seconds["optimise"] = before + time.perf_counter() - started
        header = {
            "settings": {name: plain(value) for name, value in settings.items()},
            "marks": marks,
            "done": run.done,
            "stopped": run.stopped,
            "environment": {**environment(first.x), "steps": mode},
            "seconds": seconds,
        }
        return writer.write(run.done, header, _tensors_of(run, watcher))

    # A start that was interrupted is not the one to go on from.
    run(callbacks, watcher, save if keeps and not interrupted and not ended else None, asked.checkpoint_every)
    seconds["optimise"] = before + time.perf_counter() - started
    losses = run.losses_so_far()
    final = run.layout.unpack(run.state.params if watcher is None or watcher.best is None else watcher.best)
    fits = Fits(
        Fit(
            bnn=with_params(member.bnn, {name: value[index] for name, value in final.items()}),
            guide=_guide_with(guide, member, final["loc"][index], final["rho"][index]),
            losses=losses[index] * rows,
            standardizer=member.standardizer,
            seconds=seconds,
            settings={**settings, "seed": seed + index},
            validation=watcher.history[index] if watcher else (),
            stopped=run.stopped or run.paused,
            mode=mode,
            x=member.x,
            y=member.y,
        )
        for index, member in enumerate(members)
    )
    _report_failures(fits, problem, run, rows, num_data, asked.replicas)
    return fits if many else fits[0]


def map_estimate(
    bnn: BNN,
    x: Any,
    y: Any,
    *,
    num_steps: int = 3000,
    learning_rate: float = 0.01,
    batch_size: int | None = None,
    held_out: float = 0.0,
    noise_share: float = 0.5,
    standardize: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Maximum a posteriori weights of a network's model with nothing fixed.

    Args:
        bnn: A network; its likelihood and prior are used, its masks are not.
        x: Inputs.
        y: Targets.
        num_steps: Steps of Adam.
        learning_rate: Its step size at the start; it decays to a tenth.
        batch_size: Rows a step; None or a number of at least the rows for all of them.
        held_out: As in `MAP`.
        noise_share: As in `MAP`; of no effect without rows held out.
        standardize: As in `fit`: use the same there.
        seed: Seeds the start.
        device: Where to optimise.
        progress: Whether to show a progress bar.

    Returns:
        Weight tensors by name, to be shared among networks as `sps.Given(weights)`.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> net = sps.mlp([1, 5, 5, 1])
        >>> weights = sps.map_estimate(sps.BNN(net), x, x**2, num_steps=10, progress=False)
        >>> bnn = sps.BNN(net, scheme=sps.Heavy(), values=sps.Given(weights))
    """
    _check_settings(num_steps=num_steps, learning_rate=learning_rate, batch_size=batch_size, seed=seed)
    members = _members(bnn, x, y, 1, False, standardize, device)
    rows = len(members[0].x)
    rule = MAP(num_steps, learning_rate, held_out, noise_share)
    estimate = map_weights(members, rule, min(batch_size or rows, rows), seed, progress)[0]
    return {tensor.name: estimate[tensor.name] for tensor in bnn.topology.tensors}


# --- preparation -----------------------------------------------------------------------------------


def _check_settings(**settings: Any) -> None:
    """Raise for arguments out of range, before any work."""

    def require(name: str, valid: Any, expected: str) -> None:
        if not valid:
            raise ValueError(f"{name} must be {expected}, got {settings[name]!r}")

    counts = ("num_steps", "num_particles", "batch_size", "validate_every", "patience", "map_steps", "replicas")
    for name in (*counts, "checkpoint_every"):
        value = settings.get(name)
        if value is not None:
            require(
                name,
                isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0,
                "a positive integer",
            )
    for name in ("learning_rate", "final_learning_rate", "init_scale", "max_grad_norm"):
        value = settings.get(name)
        if value is not None:
            valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
            require(name, valid, "a positive finite number")
    if "init" in settings:
        init = settings["init"]
        require(
            "init",
            init is None or isinstance(init, Mapping) or init in ("random", "map"),
            "'random', 'map' or a dict of values by site",
        )
    if settings.get("checkpoint") is not None:
        require("checkpoint", isinstance(settings["checkpoint"], str | os.PathLike), "a directory")
    if "checkpoint_errors" in settings:
        require("checkpoint_errors", settings["checkpoint_errors"] in ("warn", "stop"), "'warn' or 'stop'")
    make_generator("cpu", settings["seed"])


def _members(
    bnn: BNN,
    x: Any,
    y: Any,
    count: int,
    may_stack: bool,
    standardize: bool,
    device: torch.device | str | None,
    found: Checkpoint | None = None,
) -> list[Replica]:
    """A copy of the model and the data for every replica."""
    if not isinstance(bnn, BNN):
        raise TypeError(f"bnn must be a pyro_sps.BNN, got {type(bnn).__name__}")
    if bnn.num_stochastic == 0:
        raise ValueError("bnn has no stochastic weight: every weight is fixed, so that nothing is left to infer")
    copies = [bnn.copy() for _ in range(count)]
    if device is not None:
        for copy in copies:
            copy.to(device)
    like, features = copies[0].like, bnn.topology.groups[0].size
    stacked = may_stack and _is_stacked(x, count, features)
    members = []
    for index, copy in enumerate(copies):
        own_x, own_y = (x[index], y[index]) if stacked else (x, y)
        if index == 0 or stacked:
            inputs = check_inputs("x", own_x, like, features)
            targets = check_targets("y", own_y, like, copy.likelihood, copy.num_outputs, len(inputs))
            check_resolution("x", own_x, inputs)
            if copy.likelihood.real_valued:
                check_resolution("y", own_y, targets)
            scaling = (
                Standardizer.of(inputs, targets, copy.likelihood.real_valued)
                if standardize
                else Standardizer.identity(like)
            )
            if found is not None:  # another number of threads might round the moments differently
                scaling = _scaling_of(found, scaling, index)
            inputs, targets = scaling.inputs(inputs), scaling.targets(targets)
        members.append(Replica(copy, inputs, targets, scaling))
    return members


def _is_stacked(x: Any, count: int, features: int) -> bool:
    """Whether inputs are (replicas, rows, ...): data of their own for each of `count` replicas."""
    return np.ndim(x) >= 3 and len(x) == count and math.prod(np.shape(x)[2:]) == features


def _vi_objective(
    problem: Problem, params: Params, noise: Tensor, x: Tensor, y: Tensor, rows: int, num_data: int | None
) -> Tensor:
    """Negative ELBO per row of the data set."""
    loss = negative_elbo(
        problem,
        params["loc"],
        F.softplus(params["rho"]),
        noise,
        (x, y),
        {"num_data": num_data},
        problem.constrain(params),
    )
    return loss / rows


class _Validation:
    """Tracks scores on held-out data and decides about stopping."""

    def __init__(
        self,
        data: list[tuple[Tensor, Tensor]],
        members: list[Replica],
        layout: Layout,
        guide: AutoSPSNormal,
        every: int,
        patience: int | None,
    ) -> None:
        self.data, self.members, self.layout, self.guide = data, members, layout, guide
        self.every, self.patience = every, patience
        self.history: list[list[dict[str, float]]] = [[] for _ in members]
        self.best: Tensor | None = None
        self.best_lpp = [-math.inf] * len(members)
        self.waited = [0] * len(members)

    def __call__(self, step: int, state: AdamState) -> str:
        params = self.layout.unpack(state.params)
        if self.patience is not None and self.best is None:
            self.best = state.params.clone()
        for index, (member, (x, y)) in enumerate(zip(self.members, self.data, strict=True)):
            guide = _guide_with(self.guide, member, params["loc"][index], params["rho"][index])
            bnn = with_params(member.bnn, {name: value[index] for name, value in params.items()})
            prediction = Prediction.of([Member(bnn, guide, member.standardizer)], x, 200, 0)
            scores = {"step": step, "lpp": prediction.lpp(y)}
            if bnn.likelihood.event_dim:
                scores["rmse"] = prediction.rmse(y)
            self.history[index].append(scores)
            if scores["lpp"] > self.best_lpp[index]:
                self.best_lpp[index], self.waited[index] = scores["lpp"], 0
                if self.best is not None:
                    self.best[index] = state.params[index]
            else:
                self.waited[index] += 1
        if self.patience is not None and min(self.waited) >= self.patience:
            return f"no better validation LPP in {self.patience} checks, after step {step}"
        return ""


def _validation_data(
    members: list[Replica], validation: tuple[Any, Any] | None, may_stack: bool
) -> list[tuple[Tensor, Tensor]]:
    if validation is None:
        return []
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise ValueError("validation must be a pair (x, y)")
    x, y = validation
    first = members[0].bnn
    features = first.topology.groups[0].size
    stacked = may_stack and _is_stacked(x, len(members), features)
    checks = []
    for index in range(len(members)):
        inputs = check_inputs("validation x", x[index] if stacked else x, first.like, features)
        own = y[index] if stacked else y
        checks.append(
            (inputs, check_targets("validation y", own, first.like, first.likelihood, first.num_outputs, len(inputs)))
        )
    return checks


# --- checkpoints -----------------------------------------------------------------------------------


_SCALING = tuple(Standardizer.__dataclass_fields__)


def _training_data(members: list[Replica]) -> Iterator[Tensor]:
    """What all replicas are fitted to, and how it was standardised."""
    for member in {id(member.x): member for member in members}.values():
        yield from (member.x, member.y, *(getattr(member.standardizer, name) for name in _SCALING))


def _tensors_of(run: Run, watcher: _Validation | None) -> dict[str, Tensor]:
    """The numbers of a checkpoint."""
    tensors = {name: getattr(run.state, name) for name in ("params", "first", "second")}
    tensors["losses"] = run.losses  # those to come too, so that the file does not grow
    tensors["failed"] = torch.tensor([run.failed.get(index, -1) for index in range(len(run.members))])
    for index, member in enumerate(run.members):
        for name in _SCALING if index == 0 or not run.shared else ():
            tensors[f"standardizer.{index}.{name}"] = getattr(member.standardizer, name)
        if isinstance(member.bnn.values, MAP) and member.bnn.num_fixed:
            tensors |= {f"constant.{index}.{weight.name}": weight.fixed for weight in member.bnn.weights}
    if watcher is None:
        return tensors
    tensors["best_lpp"] = torch.tensor(watcher.best_lpp, dtype=torch.float64)
    tensors["waited"] = torch.tensor(watcher.waited)
    if watcher.best is not None:
        tensors["best"] = watcher.best
    for name in watcher.history[0][0] if watcher.history[0] else ():
        history = [[check[name] for check in own] for own in watcher.history]
        tensors[f"validation.{name}"] = torch.tensor(history, dtype=torch.float64)
    return tensors


def _scaling_of(found: Checkpoint, like: Standardizer, index: int) -> Standardizer:
    """The standardisation of a replica; `like` has its shapes."""
    parts = {name: getattr(like, name) for name in _SCALING}
    take = found.numbers.take
    return Standardizer(
        **{name: take(f"standardizer.{index}.{name}", v.dtype, v.shape).to(v) for name, v in parts.items()}
    )


def _constants_of(member: Replica, found: Checkpoint, index: int) -> dict[str, Tensor]:
    """The MAP values of a replica's fixed weights."""
    return {
        weight.name: found.numbers.take(f"constant.{index}.{weight.name}", weight.fixed.dtype, weight.fixed.shape)
        for weight in member.bnn.weights
    }


def _restore(found: Checkpoint, run: Run, watcher: _Validation | None) -> None:
    """Set a run to where its checkpoint was."""
    take, params, count = found.numbers.take, run.state.params, len(run.members)
    if not 0 <= found.done <= run.num_steps:
        raise LoadError(f"the checkpoint in {found.directory} is damaged: {found.done} steps of {run.num_steps} done")
    for name in ("params", "first", "second"):
        getattr(run.state, name).copy_(take(name, params.dtype, params.shape))
    run.done, run.stopped = found.done, found.stopped
    run.losses.copy_(take("losses", params.dtype, run.losses.shape, finite=False))
    if run.losses[run.done :].any():
        raise LoadError(
            f"the checkpoint in {found.directory} is damaged: it has losses of more than {found.done} steps"
        )
    failed = take("failed", torch.int64, (count,)).tolist()
    run.failed = {index: step for index, step in enumerate(failed) if step >= 0}
    if watcher is not None:
        watcher.best_lpp = take("best_lpp", torch.float64, (count,), finite=False).tolist()
        watcher.waited = take("waited", torch.int64, (count,)).tolist()
        if "best" in found.numbers.left:
            watcher.best = take("best", params.dtype, params.shape).to(params).clone()
        shape = (count, run.done // watcher.every + (run.done == run.num_steps and run.done % watcher.every > 0))
        history = {
            name: take(f"validation.{name}", torch.float64, shape, finite=False).tolist()
            for name in list(found.numbers.names("validation."))
        }
        for index, own in enumerate(watcher.history):
            rows = zip(*(values[index] for values in history.values()), strict=True)
            own += [{n: int(v) if n == "step" else v for n, v in zip(history, row, strict=True)} for row in rows]
    if found.numbers.left:
        raise LoadError(
            f"the checkpoint in {found.directory} is damaged: it has the unknown {[*found.numbers.left][:9]}"
        )


# --- results ---------------------------------------------------------------------------------------


def _guide_with(prototype: AutoSPSNormal, member: Replica, loc: Tensor, rho: Tensor) -> AutoSPSNormal:
    """A guide of the member's model with the given parameters."""
    guide = AutoSPSNormal(member.bnn, init_scale=prototype.init_scale)
    guide.adopt(prototype, loc, rho)
    return guide


def _report_failures(
    fits: Fits, problem: Problem, run: Run, rows: int, num_data: int | None, replicas: int | None
) -> None:
    """Raise for a single fit whose loss is not finite, warn for replicas."""
    if not run.failed:
        return
    if replicas is not None:
        steps = ", ".join(f"{replica} (at step {step})" for replica, step in sorted(run.failed.items()))
        warnings.warn(
            f"the loss of replicas {steps} stopped being finite; they hold their last finite states",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    step = run.failed[0]
    site = _culprit(problem, run, step, num_data)
    raise NonFiniteLossError(
        f"the loss is not finite at step {step}, in the term of site {site!r}. Try a lower learning_rate (now "
        f"{run.rates(step):.3g}), standardize=True, a larger noise scale, a smaller constant c, or dtype float64. "
        "The exception's attribute `fit` holds the last finite state.",
        fits[0],
        step,
        site,
    )


def _culprit(problem: Problem, run: Run, step: int, num_data: int | None) -> str:
    """The term that is not finite: the failing step done once more, at the state that it left unchanged."""
    noise, x, y = next(run.arguments(step))
    if x.dim() > run.members[0].x.dim():
        x, y = x[0], y[0]
    params = {name: value[0] for name, value in run.layout.unpack(run.state.params).items()}
    assert noise is not None
    with pyro_session():
        terms = elbo_terms(
            problem,
            params["loc"],
            F.softplus(params["rho"]),
            noise[0],
            (x, y),
            {"num_data": num_data},
            problem.constrain(params),
        )
    return next((name for name, term in terms.items() if not term.isfinite()), "the gradient")
