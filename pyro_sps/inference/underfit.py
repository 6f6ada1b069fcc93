"""Whether a fit has left in its noise what a straight line would explain."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..model.likelihoods import Gaussian
from ..posterior.fit import Fit
from ..posterior.predict import Member, Prediction

# A learned noise below this share of the targets' own scale is none that hides a signal.
NOISE_SHARE = 0.5

# So much smaller than the learned noise must be what a linear model or the network's own mean leave.
RATIO = 3.0

# Rows that are looked at.
ROWS = 2000


@plain_torch()
def warn_of_underfit(fit: Fit) -> None:
    """Warn if the learned noise of a fit is near the targets' own scale although they can be predicted much better.

    It is compared with what a linear model leaves, by least squares on the training rows, with as many degrees of
    freedom less as it has coefficients, and with what the posterior mean of the network leaves.

    Args:
        fit: A fit with its training data.

    Warns:
        UserWarning: If the noise is several times as large.
    """
    likelihood = fit.bnn.likelihood
    if fit.x is None or fit.y is None or not isinstance(likelihood, Gaussian) or not likelihood.learn:
        return
    x, y = fit.x.reshape(len(fit.x), -1), fit.y
    if len(x) < 3 * (x.shape[1] + 1):
        return
    every = max(1, len(x) // ROWS)
    scale = y.double().std(0).clamp_min(torch.finfo(torch.float32).tiny)
    noise = (likelihood.noise_scale.detach().double() / scale).expand(y.shape[1])
    left = _linear(x[::every].double(), y[::every].double()) / scale
    line = (noise > NOISE_SHARE) & (noise > RATIO * left)
    if line.any():
        _warn(int(line.nonzero()[0]), noise, "a linear model leaves", left)
        return
    if not (noise > NOISE_SHARE).any():
        return
    member = Member(fit.bnn, fit.guide, Standardizer.identity(fit.bnn.like))
    mean = Prediction.of([member], fit.x[::every], 100, 0).mean.double()
    left = (mean - y[::every].double()).square().mean(0).sqrt() / scale
    own = (noise > NOISE_SHARE) & (noise > RATIO * left)
    if own.any():
        _warn(int(own.nonzero()[0]), noise, "the posterior mean of the network leaves", left)


def _linear(x: Tensor, y: Tensor) -> Tensor:
    """Residual standard deviation of each target after least squares."""
    design = torch.cat([x, x.new_ones((len(x), 1))], dim=1)
    residual = y - design @ (torch.linalg.pinv(design) @ y)
    return (residual.square().sum(0) / max(1, len(x) - design.shape[1])).sqrt()


def _warn(target: int, noise: Tensor, what: str, left: Tensor) -> None:
    warn_user(
        f"the fit seems to underfit: its learned noise is {noise[target].item():.2g} standard deviations of target "
        f"{target}, of which {what} {left[target].item():.2g}. With few rows the ELBO prefers a large noise to weights "
        "that it knows little of: try a sampler, a smaller prior_scale, a smaller network, a noise that is given, such "
        "as Gaussian(0.1), or more steps"
    )
