"""What `pyro-sps fit` tells of its result in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .baselines import of_labels, of_numbers
from .method import predicted
from .scores import class_scores_of, scores_of
from .table import Training

if TYPE_CHECKING:
    import numpy as np

    from ..model.bnn import BNN
    from ..posterior.fit import Fit, Fits
    from ..posterior.samples import Samples


def metrics_of(result: Fit | Fits | Samples, training: Training, seed: int) -> tuple[dict[str, Any], str]:
    """What is told of the result in numbers, and in a line."""
    from ..posterior.samples import Samples

    if isinstance(result, Samples):
        draws, warmup = result.num_samples, int(result.settings["warmup"])
        metrics = {
            "chains": result.num_chains,
            "draws": draws,
            **_sizes(result.bnn, result.seconds),
            "warmup": warmup,
        }
        told = f"{result.num_chains} chains of {draws:,} draws after {warmup:,} steps of warm-up"
    else:
        fits: Sequence[Fit] = result if isinstance(result, tuple) else (result,)
        scales = [fit.bnn.constant_scale() for fit in fits]
        learned = [None if scale is None else scale.tolist() for scale in scales]
        elbos = [fit.elbo for fit in fits]
        many = len(fits) > 1
        metrics = {
            "replicas": len(fits),
            **_sizes(fits[0].bnn, fits[0].seconds),
            "learned_c": learned if many and learned[0] is not None else learned[0],
            "elbo": elbos if many else elbos[0],
            "steps": len(fits[0].losses),
        }
        told = f"ELBO {', '.join(f'{elbo:,.1f}' for elbo in elbos)} nats after {metrics['steps']:,} steps"
    metrics |= {"train_rows": len(training.y), "test_rows": len(training.x_test), **_scores(result, training, seed)}
    return metrics, f"{told}, {metrics['seconds']:.0f} s"


def _sizes(bnn: BNN, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {"weights": bnn.topology.num_weights, "fixed_weights": bnn.num_fixed, "seconds": sum(seconds.values())}


def _scores(result: Fit | Fits | Samples, training: Training, seed: int) -> dict[str, Any]:
    """Scores on the held-out rows, of simple models too; nothing without such rows."""
    x, y, x_test, y_test = training.x, training.y, training.x_test, training.y_test
    if not len(x_test):
        return {}
    prediction = predicted(result, x_test, 1000, seed, training.noise_test)
    if training.classes:
        own = class_scores_of(prediction, y_test)
        return own | {"baselines": of_labels(x, y, x_test, y_test, len(training.classes))}
    own = scores_of(prediction, prediction.interval(0.95), 0.95, y_test, scales_of(y), training.targets)
    return own | {"baselines": of_numbers(x, y, x_test, y_test)}


def scales_of(y: np.ndarray) -> np.ndarray:
    """Standard deviations of the targets; 1 for one that is constant in the training part."""
    spread = y.std(0)
    spread[spread == 0] = 1.0
    return spread
