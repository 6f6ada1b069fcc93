"""From numbers to a posterior: which method, for how long, and with which likelihood."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..inference.sample_settings import SampleSettings
from ..inference.sampling import sample
from ..inference.settings import FitSettings
from ..inference.variational import fit
from ..masks.rigid import Rigid
from ..masks.schemes import Heavy, Light, Random, Unmasked
from ..masks.values import MAP, Constant, Ladder, RandomConstant, Zero
from ..model.bnn import BNN
from ..model.hierarchy import Hierarchical
from ..model.likelihoods import Gaussian, HeteroscedasticGaussian, HeteroscedasticStudentT, Likelihood
from ..network.build import mlp
from ..posterior.fit import Fits
from ..posterior.outputs import Member
from ..posterior.samples import Samples

SCHEMES: dict[str, Callable[[], Any]] = {
    "none": Unmasked,
    "light": Light,
    "heavy": Heavy,
    "rigid": Rigid,
    "random": lambda: Random(like=0.85),
}
VALUES: dict[str, Callable[[], Any]] = {
    "zero": Zero,
    "constant": lambda: Constant(1.0),
    "learned-constant": lambda: Constant(1.0, learn=True),
    "normal": lambda: RandomConstant(1.0),
    "ladder": lambda: Ladder(1.0),
    "map": MAP,
}

#: Tables are sampled up to so many rows x weights: 10,000 rows and the default widths. A step of ten chains was
#: measured at 2 ms + 3.2 ns for each row x weight, on one core and without compilation, so that default chains take
#: ten minutes there, and one for 1,000 rows.
AFFORDABLE = 30_000_000

#: On a GPU up to 100,000 rows and the default widths: ten chains on 6,553 rows took 1.0 ms a step on an H200, of which
#: the arithmetic is a tenth. Fifteen times as much is an extrapolation: some milliseconds a step there, and some tens
#: on a small GPU, which are minutes for default chains.
AFFORDABLE_ON_CUDA = 300_000_000

#: Chains that will take longer than so many seconds are told of, once so many steps have shown it.
LONG, STEPS_TO_SEE = 600.0, (20, 120)

#: Steps from one draw of a chain to the next, by default.
THINNING = 40

#: Beyond so many rows a step of a fit takes more of them, and there are more steps.
MANY_ROWS, LARGE_BATCH, EPOCHS, MOST_STEPS = 20_000, 1024, 20, 20_000

#: With fewer rows no likelihood is chosen on rows held out: it would be a guess.
ROWS_TO_CHOOSE, TRIAL_STEPS = 100, 1_500

#: Networks for labels have a linear path up to so many rows.
LINEAR_ROWS = 200

#: With fewer seconds nothing is compiled.
SHORT = 60.0


def has_linear_path(method: str, rows: int, labels: bool) -> bool:
    """Whether networks have a path from inputs to outputs beside their layers, as those of chains can have.

    It brings chains to the linear model that a few rows ask for. For numbers it does no harm to more of them, for the
    prior lets it vanish. For labels it is learned before the layers are, and then explains what they would explain
    better; and of many inputs it overfits by itself. What a linear model costs a network without a path falls with the
    rows, and this does not. Log loss with it and without: iris, of 120 rows, 0.041 and 0.058, wine, of 143, 0.030 and
    0.038 (three splits each); breast cancer, of 456, 0.104 and 0.076 (three), three unequal classes, of 500, 0.148 and
    0.100 (one), digits, of 1,438, 0.177 and 0.123; labels that a linear model draws, of 60 rows, 0.657 and 0.678, of
    300, 0.631 and 0.650 (two each), which is the price.
    """
    return method == "sample" and (not labels or rows <= LINEAR_ROWS)


@dataclass(frozen=True)
class Recipe:
    """What a network and its inference should be like; the options of the estimators explain it."""

    method: str
    hidden: tuple[int, ...]
    activation: str
    scheme: Any
    values: Any
    chains: int
    replicas: int
    num_steps: int | None
    seed: int
    device: Any
    progress: bool

    def resolved(self, rows: int, features: int, outputs: int) -> Recipe:
        """The same with a method, a scheme and values in place of `"auto"`."""
        widths = [features, *self.hidden, outputs]
        weights = sum(width * (other + 1) for width, other in itertools.pairwise(widths))
        method = self.method
        if method == "auto":
            affordable = AFFORDABLE_ON_CUDA if str(self.device).startswith("cuda") else AFFORDABLE
            method = "sample" if rows * weights <= affordable else "fit"
        # Copies of modes do a sampler no harm; a mean-field fit predicts better with fixed weights.
        scheme = ("none" if method == "sample" else "random") if self.scheme == "auto" else self.scheme
        values = ("zero" if scheme == "none" else "map") if self.values == "auto" else self.values
        return dataclasses.replace(self, method=method, scheme=scheme, values=values)

    def chain(self) -> dict[str, Any]:
        """Options of `sample` that say how long it runs, where that is asked for: a third of the steps is warm-up."""
        if self.num_steps is None:
            return {}
        third = max(1, self.num_steps // 3)
        draws = max(1, 2 * third // THINNING)
        return {"warmup": third, "num_samples": draws, "map_steps": max(1, self.num_steps // 2)}

    def steps(self, rows: int) -> tuple[int, int]:
        """Number of steps, and rows of one at most."""
        batch = LARGE_BATCH if rows > MANY_ROWS else FitSettings.batch_size or rows
        epochs = math.ceil(EPOCHS * rows / batch) if rows > MANY_ROWS else 0
        return self.num_steps or max(FitSettings.num_steps, min(epochs, MOST_STEPS)), batch

    def limits(self, seconds: float | None) -> dict[str, Any]:
        """Options of `sample` or `fit` that end it after so many seconds; without a limit long chains are told of."""
        if self.method == "sample":
            return {"time_limit": seconds, "callbacks": [Forecast(self.chain())] if seconds is None else []}
        return {"callbacks": [] if seconds is None else [_stop_after(seconds)]}

    def bnn(self, rows: int, features: int, targets: int, likelihood: Likelihood) -> BNN:
        """The model."""
        outputs = targets * (2 if isinstance(likelihood, HeteroscedasticGaussian) else 1)
        values = VALUES[self.values]() if isinstance(self.values, str) else self.values
        if self.values == "map" and self.num_steps is not None:
            values = MAP(num_steps=min(MAP.num_steps, self.num_steps))
        # On no device: its weights are a skeleton, and to draw them would move torch's random state.
        skip = has_linear_path(self.method, rows, likelihood.event_dim == 0)
        net = mlp([features, *self.hidden, outputs], self.activation, device="meta", skip=skip)
        return BNN(
            net,
            scheme=SCHEMES[self.scheme]() if isinstance(self.scheme, str) else self.scheme,
            values=values,
            likelihood=likelihood,
            # Chains find how much each layer does, nothing but the linear path included; mean field does not.
            prior=Hierarchical() if self.method == "sample" else None,
            seed=self.seed,
        )


def infer(
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    outputs: int,
    likelihood: Likelihood,
    seconds: float | None,
    weights: np.ndarray | None = None,
) -> Fits | Samples:
    """The posterior of a network, given numbers.

    Args:
        recipe: What it should be like, with nothing left to choose.
        x: Inputs that have been scaled, shape (rows, features).
        y: Targets in their units, shape (rows, targets), or numbers of classes, shape (rows,).
        outputs: Number of targets, or of classes.
        likelihood: Observation model, in units of the standard deviations of the targets.
        seconds: When to stop at the latest, if not before the first step; None for never.
        weights: How often each row counts, shape (rows,); None for once.
    """
    mean, scale = _moments(y, weights) if likelihood.real_valued else (np.zeros(()), np.ones(()))
    bnn = recipe.bnn(len(x), x.shape[1], outputs, likelihood)
    own = (y - mean) / scale if likelihood.real_valued else y
    if recipe.method == "sample":
        samples = sample(
            bnn,
            x,
            own,
            chains=recipe.chains,
            **recipe.chain(),
            standardize=False,
            weights=weights,
            seed=recipe.seed,
            device=recipe.device,
            progress=recipe.progress,
            **recipe.limits(seconds),
        )
        return dataclasses.replace(samples, standardizer=_units(mean, scale, samples.bnn.like))
    steps, batch = recipe.steps(len(x))
    fits: Fits = fit(
        bnn,
        x,
        own,
        num_steps=steps,
        batch_size=batch,
        standardize=False,
        weights=weights,
        replicas=recipe.replicas,
        seed=recipe.seed,
        device=recipe.device,
        progress=recipe.progress,
        # What takes half a minute to compile does not pay where there is a minute.
        compile=None if seconds is None or seconds > SHORT else False,
        **recipe.limits(seconds),
    )
    return Fits(dataclasses.replace(one, standardizer=_units(mean, scale, one.bnn.like)) for one in fits)


def choose_likelihood(
    recipe: Recipe, x: np.ndarray, y: np.ndarray, seconds: float | None, weights: np.ndarray | None = None
) -> Likelihood:
    """Noise that depends on the inputs, where there is reason to think so.

    Fits: where it predicts held-out rows better by more than two standard errors. Chains: from 100 rows on, for under
    their hierarchical prior noise depends on the inputs as far as the data says; with tails that forgive outliers.

    Args:
        recipe: As in `infer`.
        x: As in `infer`.
        y: Targets, shape (rows, targets).
        seconds: Most time for each of the two trials.
        weights: As in `infer`.
    """
    per_output = y.shape[1] if y.shape[1] > 1 else None
    constant = Gaussian(learn=True, per_output=per_output)
    if len(x) < ROWS_TO_CHOOSE:
        return constant
    if recipe.method == "sample":  # of which the prior decides how much of it there is
        # With a normal law a single held-out row whose inputs are those of training rows that agreed with each other
        # took 120 to 160 nats of tables of 600 and 800 rows; with eight degrees of freedom it takes 16 to 20.
        return HeteroscedasticStudentT()
    order = np.random.default_rng(recipe.seed).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :][:MANY_ROWS]
    trial = dataclasses.replace(
        recipe,
        method="fit",
        scheme="none",
        values="zero",
        replicas=1,
        num_steps=min(TRIAL_STEPS, recipe.num_steps or TRIAL_STEPS),
    )
    logs = []
    # The trials are short: a noise that starts at 0.1 would still be on its way.
    for likelihood in (Gaussian(0.5, learn=True, per_output=per_output), HeteroscedasticGaussian()):
        own = None if weights is None else weights[train]
        fits = infer(trial, x[train], y[train], y.shape[1], likelihood, seconds, own)
        logs.append(fits.predict(x[test], num_samples=100, seed=recipe.seed).log_prob(y[test]).mean(-1))
    gain = (logs[1] - logs[0]).clamp(-1e3, 1e3)
    if weights is not None:
        share = torch.as_tensor(weights[test]).to(gain)
        gain = gain * share / share.mean()
    return HeteroscedasticGaussian() if gain.mean() > 2 * gain.std() / math.sqrt(len(gain)) else constant


def _moments(y: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each target in double precision; 1 for a constant one."""
    mean = np.average(y, axis=0, weights=weights)
    scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=weights))
    return mean, np.where(scale <= 1e-12 * np.abs(y).max(0), 1.0, scale)


def _units(mean: np.ndarray, scale: np.ndarray, like: torch.Tensor) -> Standardizer:
    none = Standardizer.identity(like)
    return dataclasses.replace(none, y_mean=torch.as_tensor(mean).to(like), y_scale=torch.as_tensor(scale).to(like))


def members_of(samples: Samples, num_samples: int, labels: bool) -> tuple[list[Member], int]:
    """What predictions of chains are made of, in equal parts, and the number of draws of them together.

    Args:
        samples: The chains.
        num_samples: Most draws.
        labels: Whether labels are predicted: then half of the draws are of the networks that the chains start from.
            `BNNClassifier` says why.
    """
    chains = samples.num_chains
    most = chains * samples.num_samples
    if not labels or samples.starts is None:  # saved before they were kept
        draws = min(num_samples, most)
        return [samples.member(draws)], draws
    half = min(max(1, num_samples // 2), most)
    half -= half % chains if half > chains else 0  # all alike
    return [samples.member(half), samples.starting_member(half)], 2 * half


class Forecast:
    """A callback of `sample` that tells of chains that will take long, once some of their steps have been timed.

    Args:
        options: Options of `sample` that say how many steps there are; the others have their defaults.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        asked = SampleSettings(**options)
        warmup, thinning = asked.steps
        self.steps, self.begun = warmup + asked.num_samples * thinning, math.nan

    def __call__(self, step: int, _: Any) -> None:
        """After a step, counted from 0."""
        first, last = STEPS_TO_SEE
        if step == first:
            self.begun = time.monotonic()
        elif step == last and (left := self._left(last - first)) > LONG:
            warn_user(
                f"the chains will take about {left / 60:.0f} minutes more; time_limit= ends them before, and "
                "method='fit' takes less time and knows less of its uncertainty"
            )

    def _left(self, timed: int) -> float:
        """Seconds that are left, where `timed` steps have been."""
        return (time.monotonic() - self.begun) / timed * (self.steps - STEPS_TO_SEE[1])


def _stop_after(seconds: float) -> Callable[..., bool]:
    end = time.monotonic() + seconds
    return lambda *_: time.monotonic() > end
