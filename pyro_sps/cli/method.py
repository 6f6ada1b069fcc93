"""How `pyro-sps fit` finds a posterior: by chains, or by fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..inference.settings import LEARNING_RATES
from .network import Settings
from .options import given_of
from .table import Training

if TYPE_CHECKING:
    from ..estimators.methods import Recipe
    from ..posterior.fit import Fit, Fits
    from ..posterior.predict import Prediction
    from ..posterior.samples import Samples

#: Options that only one of the two ways has.
OF_FITS = {"replicas", "particles", "batch_size", "optimizer", "learning_rate", "init"}
OF_CHAINS = {"chains"}


def method_asked(context: click.Context) -> str:
    """The method that the options ask for: `"auto"` where they leave it open.

    Raises:
        UsageError: If an option is of no use with it.
    """
    own = {"fit": given_of(context, OF_FITS), "sample": given_of(context, OF_CHAINS)}
    if context.params["values"].startswith("learned"):
        own["fit"].append(f"--values {context.params['values']}")  # chains hold c
    method: str = context.params["method"]
    if method == "auto":
        if own["fit"] and own["sample"]:
            one, other = (flags[0] for flags in own.values())
            raise click.UsageError(f"{one} is for --method fit and {other} for --method sample: leave one of them out")
        return next((name for name, flags in own.items() if flags), "auto")
    other = {"fit": "sample", "sample": "fit"}[method]
    if own[other]:
        raise click.UsageError(f"{own[other][0]} is for --method {other}, not {method}")
    return method


def resolved(
    settings: Settings, training: Training, method: str, options: Mapping[str, Any], progress: bool
) -> tuple[Settings, Recipe]:
    """Settings with nothing left open but the likelihood, and how the posterior is found.

    The rules are those of `BNNRegressor` and `BNNClassifier`.
    """
    from ..estimators.methods import Recipe

    settings.of(training).model(training)  # which refuses networks that are too large
    outputs = len(training.classes) if training.classes else len(training.targets)
    recipe = Recipe(
        method=method,
        hidden=tuple(settings.hidden),
        activation=settings.activation,
        scheme=settings.scheme if settings.fraction is None else "random",
        values=settings.values,
        chains=options["chains"],
        replicas=options["replicas"] or 1,
        num_steps=options["steps"],
        seed=options["seed"],
        device=options["device"],
        progress=progress,
    ).resolved(len(training.x), training.x.shape[1], outputs)
    return replace(settings, scheme=recipe.scheme, values=recipe.values, method=recipe.method), recipe


def with_likelihood(
    settings: Settings, recipe: Recipe, training: Training, auto: bool, say: Callable[[str], None]
) -> Settings:
    """Settings with a likelihood: that of the estimators, for chains and where the method was left to the rules."""
    chosen = settings.of(training)
    plain = training.weights is None and training.noise is None
    by_rule = auto or settings.method == "sample"
    if not by_rule or settings.likelihood or settings.noise or training.classes or not plain:
        return chosen
    import numpy as np

    from ..estimators.methods import choose_likelihood
    from ..model.likelihoods import HeteroscedasticGaussian, HeteroscedasticStudentT

    x = training.x
    if training.encoder is None and settings.method == "fit":  # trials are on inputs of scale one
        spread = x.std(0)
        x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    found = choose_likelihood(recipe, x, training.y, None)
    if not isinstance(found, HeteroscedasticGaussian):
        return chosen
    heavy = isinstance(found, HeteroscedasticStudentT)
    tails = ", and forgives outliers" if heavy else ""
    say(f"the noise may depend on the inputs{tails}; --likelihood gaussian has one for all rows")
    return replace(chosen, likelihood="student-t" if heavy else "heteroscedastic")


def options_of(recipe: Recipe, options: Mapping[str, Any], standardize: bool, rows: int) -> dict[str, Any]:
    """What `pyro_sps.sample` or `pyro_sps.fit` is asked for."""
    always = {"standardize": standardize, "seed": options["seed"]}
    if recipe.method == "sample":
        return {"chains": recipe.chains, **recipe.chain(), **always}
    steps, batch = recipe.steps(rows)
    rate = options["learning_rate"]
    return {
        "num_steps": steps,
        "num_particles": options["particles"],
        "batch_size": options["batch_size"] or batch,
        "optimizer": options["optimizer"],
        "learning_rate": LEARNING_RATES[options["optimizer"]] if rate is None else rate,
        "init": options["init"],
        "replicas": options["replicas"],
        **always,
    }


def predicted(result: Fit | Fits | Samples, x: Any, num_samples: int, seed: int, y_scale: Any = None) -> Prediction:
    """The predictive distribution at new inputs; of chains as the estimators have it."""
    from ..estimators.methods import members_of
    from ..posterior.predict import Prediction
    from ..posterior.samples import Samples

    if not isinstance(result, Samples):
        return result.predict(x, num_samples, seed, y_scale=y_scale)
    labels = result.bnn.likelihood.event_dim == 0
    members, draws = members_of(result, num_samples, labels)
    return Prediction.of(members, x, draws, seed) if labels else result.predict(x, draws, seed, y_scale=y_scale)
