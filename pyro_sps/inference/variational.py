"""Fitting: from a `BNN` and data to a posterior, and to a MAP estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..data.observed import Extras
from ..data.opening import data_of
from ..data.sources import Indexed, Streamed
from ..masks.values import MAP
from ..model.bnn import BNN
from ..posterior.fit import Fit, Fits
from .cluster import fit_on_cluster
from .loop import Callback
from .maximum import map_weights
from .members import members_of
from .run_fit import run_fit
from .settings import FitSettings


@plain_torch()
def fit(
    bnn: BNN,
    x: Any,
    y: Any = None,
    *,
    num_steps: int = FitSettings.num_steps,
    num_particles: int = FitSettings.num_particles,
    batch_size: int | None = FitSettings.batch_size,
    learning_rate: float | None = FitSettings.learning_rate,
    final_learning_rate: float | None = FitSettings.final_learning_rate,
    schedule: str = FitSettings.schedule,
    warmup_steps: int = FitSettings.warmup_steps,
    optimizer: str = FitSettings.optimizer,
    accumulate: int = FitSettings.accumulate,
    average_steps: int = FitSettings.average_steps,
    precision: str | None = FitSettings.precision,
    init: str | Mapping[str, Tensor] | None = FitSettings.init,
    init_scale: float = FitSettings.init_scale,
    map_steps: int = FitSettings.map_steps,
    start: Fit | Fits | None = None,
    kl_weight: float = FitSettings.kl_weight,
    max_grad_norm: float = FitSettings.max_grad_norm,
    standardize: bool = FitSettings.standardize,
    weights: Any = None,
    y_scale: Any = None,
    missing: str = FitSettings.missing,
    num_data: int | None = None,
    validation: Any = None,
    validate_every: int = FitSettings.validate_every,
    patience: int | None = FitSettings.patience,
    seed: int = FitSettings.seed,
    device: torch.device | str | None = FitSettings.device,
    progress: bool = FitSettings.progress,
    callbacks: Sequence[Callback] = (),
    compile: bool | None = FitSettings.compile,
    replicas: int | None = FitSettings.replicas,
    scheduler: Any = None,
    checkpoint: str | Path | None = FitSettings.checkpoint,
    checkpoint_every: int = FitSettings.checkpoint_every,
    checkpoint_errors: str = FitSettings.checkpoint_errors,
) -> Any:
    """Fit a mean-field normal posterior over the stochastic weights by maximising the ELBO.

    Adam (or IVON) with gradient clipping and a decaying learning rate; the ELBO is estimated with
    `num_particles` draws and the KL divergence in closed form (`pyro_sps.model.density`). `bnn` is not changed.

    In a script that `torchrun` has started several times, all processes make one fit together, which is that of one
    process but for rounding: each takes its share of the rows of a step, and the first writes checkpoints and shows the
    bar. `Fit.settings["processes"]` is their number.

    Args:
        bnn: The model. Constants of `values=MAP()` are looked for where they are not known; those of a fit's `bnn` or
            of `set_fixed` stay (`bnn.set_fixed(sps.MAP())` asks for new ones).
        x: Inputs, shape (rows, features), or (rows, ...) as the network takes them; of several inputs a tuple, or a
            dictionary by name. With `replicas`, also (replicas, rows, features) for data of their own.
            Or a data set that need not fit in memory (see `pyro_sps.data.opening`), whose rows are read in minibatches:
            a `torch.utils.data.Dataset` of pairs (x, y) or a `DataLoader` of it; a memory-mapped array; a Parquet file
            or folder (a path, or `ParquetData`); a `datasets.Dataset` of Hugging Face.
        y: Targets, shape (rows, targets) or (rows,); with `replicas`, likewise. Of files and tables the names of the
            target columns; nothing where the data set gives pairs.
        num_steps: Number of steps of the optimiser.
        num_particles: Posterior draws a step.
        batch_size: Rows a step, of all processes together; None or a number of at least the rows for all of them. A
            `DataLoader` has its own.
        learning_rate: Step size of the optimiser at the start; default 0.01 for Adam, 0.1 for IVON.
        final_learning_rate: At the end; default 0.3 of that at the start, or a hundredth with `schedule="cosine"`.
        schedule: How it decays: `"exponential"` or `"cosine"`.
        warmup_steps: Steps at the start in which it rises from nothing, in a straight line.
        optimizer: `"adam"`, or `"ivon"` (Shen et al. 2024, arXiv 2402.17641): natural gradients, with standard
            deviations from an estimate of the curvature; it needs normal priors of given scales for all that is
            sampled. See `pyro_sps.inference.optimizers`.
        accumulate: Number of minibatches of `batch_size` rows whose gradients are averaged in a step: the step of so
            many times the rows, in the memory of one.
        average_steps: The result's means are their average over so many last steps (stochastic weight averaging,
            Izmailov et al. 2018, arXiv 1803.05407), or as many as there were; 0 for those of the last one.
        precision: `"bf16-mixed"` for matrix products and convolutions in bfloat16 (autocast) on accelerators that have
            it, with parameters, KL divergence and optimiser in float32; None for the dtype of the network. A search for
            MAP values is not mixed.
        init: Where the guide's means start: `"random"` (normal, variance 1/fan-in), `"map"` (a MAP estimate of the
            same masked model; with `values=MAP()` the one that the constants are from), or values of the sample sites
            by name. Default: `"map"` where `values=MAP()` fixes weights, else `"random"`.
        init_scale: Initial standard deviation of every weight under the guide, in units of 1/√fan-in.
        map_steps: Steps of the MAP optimisation, with `init="map"`.
        start: A fit to go on from, of a model with the same masks: its means and scales, noise and learned c, constants
            of `values=MAP()`, and units (its standardisation); with `replicas`, `Fits` of as many. Where the model is
            the very same, the optimiser goes on from the state that it had, and draws and minibatches from where they
            were, so that the two are one run but for the learning rate, which starts anew. Data may be other data: for
            Bayesian updating see `Fit.as_prior`. A fit that was loaded has no state of the optimiser. `losses` are
            those of the new steps.
        kl_weight: Factor of the KL divergence, for comparisons with cold posteriors (Wenzel et al. 2020, arXiv
            2002.02405): what is approximated is the prior times the likelihood to the power 1/kl_weight. The prior of
            `values=Point()` is weighted alike; `losses` have the weight, `Fit.elbo` has not.
        max_grad_norm: Gradients of the loss per row are scaled down to this norm; infinity for never.
        standardize: Whether to shift and scale inputs, and real-valued targets, to mean 0 and standard deviation 1 of
            the training data; predictions come back in the original units. Constant columns are only shifted. A noise
            that is given (`Gaussian(0.1)`) counts in the units of the network, of scaled targets where they are scaled.
        weights: How often each row counts, shape (rows,): importance or class weights, for instance. A row of weight 2
            counts as if it were there twice, in the standardisation too. They are not normalised: their sum is what the
            data weighs against the prior. Zero leaves a row out. With data of their own for replicas, of each.
        y_scale: Known error bars of the targets, in their units, shape (rows,) or (rows, targets): standard deviations
            of a normal noise beside that of the likelihood, whose variances add up. What the likelihood learns then is
            what the error bars leave open; `Gaussian(1e-3)` leaves nothing. New rows: `predict(x, y_scale=...)`.
        missing: What gaps in `y` are (NaN, None, of labels also -1): an `"error"`, or targets that were not measured,
            which are to `"ignore"`: they count nothing.
        num_data: Number of rows of a data set that does not tell it, such as an `IterableDataset`: minibatches stand
            for so many.
        validation: Inputs and targets on which RMSE and LPP are tracked, in original units: a pair (x, y), or a data
            set of pairs, as `x` may be one, which is read through at each check.
        validate_every: Steps between these checks.
        patience: Stop after this many checks without a better LPP, and return the best state; None for never.
        seed: Seeds initialisation, noise and data order. Replica r is the fit with seed `seed + r`.
        device: Where to fit; default: where `bnn` is.
        progress: Whether to show a progress bar with the ELBO (on a terminal).
        callbacks: Functions of (step, losses of the replicas), called after every step; one that returns True stops.
            What they keep is theirs; the fit itself keeps one loss a step and one entry a validation.
        compile: Whether to compile the step with `torch.compile`; default: for fits long enough to gain from it.
        replicas: Number R of independent fits that run as one program; None for a single fit.
        scheduler: For replicas: address of a dask scheduler (`"tcp://..."`), or a client. Each replica is fitted by
            itself on some worker, to the same result but for rounding. One whose worker is killed is tried again, from
            its checkpoint if there is one (`checkpoint/replica-0`, ..., where all workers can read it); those that
            failed for good are left out, with a warning. Default: all replicas here, as one program.
        checkpoint: Directory for checkpoints, of this fit alone, from which `pyro_sps.resume` goes on; None for none.
            One file is replaced as a whole: whenever the process ends, the last checkpoint is whole.
        checkpoint_every: Steps between them. One more comes at the start, after any MAP optimisation, and one at the
            end, also after Ctrl-C. Each holds five numbers a parameter at most, and the losses so far.
        checkpoint_errors: What to do when one cannot be written, for instance to a full disk: `"warn"` and go on, or
            `"stop"` with the result so far. A directory that cannot be used at all is an error before any work.

    Returns:
        A `Fit`, or with `replicas` a `Fits`, a tuple of them. Ctrl-C ends it after the step at work, with the result
        so far; a second Ctrl-C raises no later than Python would. `Fit.stopped` says so, also where the constants of
        `values=MAP()` were still sought: they are what was reached then.

    Raises:
        ValueError: If an argument is out of range or the data does not fit the network, before any work.
        FileExistsError: If `checkpoint` holds the checkpoint of another fit, before any work.
        OSError: If `checkpoint` cannot be written, before any work.
        DataError: If a data set that is read in pieces is broken, or has another size than it should have.
        NonFiniteLossError: If the loss of a single fit stops being finite; it holds the last finite state.
        ProcessesError: If another process of the same fit has ended.

    Warns:
        UserWarning: If data is far from the scales that priors and starts are made for.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=20, progress=False)
        >>> fit.losses.shape
        (20,)
    """
    given = locals()
    asked = FitSettings(**{name: given[name] for name in FitSettings.names()})
    x, y, extras, batch_size = data_of(x, y, Extras(weights, y_scale), num_data, batch_size, FitSettings.batch_size)
    asked = replace(asked, batch_size=batch_size)
    if scheduler is not None:
        return fit_on_cluster(bnn, x, y, validation, callbacks, asked, extras, scheduler)
    return run_fit(bnn, x, y, validation, callbacks, asked, extras=extras)


@plain_torch()
def map_estimate(
    bnn: BNN,
    x: Any,
    y: Any = None,
    *,
    num_steps: int = MAP.num_steps,
    learning_rate: float = MAP.learning_rate,
    batch_size: int | None = None,
    held_out: float = 0.0,
    noise_share: float = MAP.noise_share,
    standardize: bool = FitSettings.standardize,
    weights: Any = None,
    y_scale: Any = None,
    missing: str = FitSettings.missing,
    num_data: int | None = None,
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
        weights: As in `fit`.
        y_scale: As in `fit`.
        missing: As in `fit`.
        num_data: As in `fit`.
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
    rule = MAP(num_steps, learning_rate, held_out, noise_share)
    if held_out == 0 and noise_share != MAP.noise_share:
        raise ValueError("noise_share has no effect without rows held out: give held_out, such as 0.1")
    x, y, extras, batch_size = data_of(x, y, Extras(weights, y_scale), num_data, batch_size, None)
    if held_out and isinstance(x, Indexed | Streamed):
        raise ValueError("held_out is for arrays: of data that is read in pieces no row is fitted often")
    asked = FitSettings(
        batch_size=batch_size, standardize=standardize, missing=missing, seed=seed, device=device, progress=progress
    )
    members = members_of(bnn, x, y, asked, extras=extras)
    rows = asked.rows(members[0].rows)
    estimate = map_weights(members, rule, rows, seed, progress, constant_noise=False)[0]
    return {tensor.name: estimate[tensor.name] for tensor in bnn.topology.tensors}
