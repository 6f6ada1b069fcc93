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

# By so many standard errors, and by this share, must a linear model be ahead on held-out rows.
SURELY, AHEAD = 3.0, 0.1

# Rows that are looked at.
ROWS = 2000


@plain_torch()
def warn_of_underfit(fit: Fit, held_out: tuple[Tensor, Tensor] | None = None) -> None:
    """Warn if a fit has left in its noise what can be predicted, or predicts worse than a straight line.

    The learned noise, where it is near the targets' own scale, is compared with what a linear model leaves, by least
    squares on the training rows, and with what the posterior mean of the network leaves: on the held-out rows where
    there are some, else on the training rows, with as many degrees of freedom less as the line has coefficients. On
    held-out rows the squared errors of the two are compared pair by pair, whatever the noise.

    Args:
        fit: A fit with its training data.
        held_out: Inputs and targets that it was validated on, in their own units.

    Warns:
        UserWarning: If the noise is several times as large, or the line surely better.
    """
    likelihood = fit.bnn.likelihood
    if fit.x is None or fit.y is None or not likelihood.event_dim or not fit.y.is_floating_point():
        return
    if fit.row_weights is not None or fit.y_scale is not None or fit.y.isnan().any():
        return  # least squares of plain rows are no measure
    learned = isinstance(likelihood, Gaussian) and likelihood.learn
    if not learned and held_out is None:
        return
    inputs, y = fit.x, fit.y
    x = inputs.reshape(len(inputs), -1)
    if len(x) < 3 * (x.shape[1] + 1):
        return
    seen = x.double(), y.double()
    if held_out is not None:
        known = ~held_out[1].isnan().any(1)
        if not known.any():
            return
        inputs = fit.standardizer.inputs(held_out[0][known])
        targets = fit.standardizer.targets(held_out[1][known])
        seen = inputs.reshape(len(inputs), -1).double(), targets.double()
    every = max(1, len(inputs) // ROWS)
    inputs, seen = inputs[::every], (seen[0][::every], seen[1][::every])
    scale = y.double().std(0).clamp_min(torch.finfo(torch.float32).tiny)
    step = max(1, len(x) // ROWS)
    training = x[::step].double(), y[::step].double()
    left = _residuals(training, seen)
    line = _deviation(left, x.shape[1] + 1 if held_out is None else 0) / scale
    noise = scale.new_zeros(y.shape[1])
    if learned:
        noise = (likelihood.noise_scale.detach().double() / scale).expand(y.shape[1])
        if _told(noise, line, "a linear model leaves"):
            return
        if held_out is None and not (noise > NOISE_SHARE).any():
            return
    member = Member(fit.bnn, fit.guide, Standardizer.identity(fit.bnn.like))
    errors = Prediction.of([member], inputs, 100, 0).mean.double() - seen[1]
    own = _deviation(errors, 0) / scale
    if _told(noise, own, "the posterior mean of the network leaves") or held_out is None:
        return
    lead = errors.square() - left.square()
    sure = lead.mean(0) > SURELY * lead.std(0) / len(lead) ** 0.5
    for target in (sure & (own > (1 + AHEAD) * line)).nonzero().flatten().tolist()[:1]:
        warn_user(
            f"on the held-out rows the fit predicts worse than a linear model: its error is {own[target].item():.2g} "
            f"standard deviations of target {target}, that of the line {line[target].item():.2g}. {_TRY}"
        )


def _residuals(training: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]) -> Tensor:
    """What least squares on the training rows leaves of other rows, shape (rows, targets)."""
    design, others = (torch.cat([x, x.new_ones((len(x), 1))], dim=1) for x in (training[0], seen[0]))
    return seen[1] - others @ (torch.linalg.pinv(design) @ training[1])


def _deviation(left: Tensor, coefficients: int) -> Tensor:
    """Standard deviation of what so many coefficients leave of each target."""
    return (left.square().sum(0) / max(1, len(left) - coefficients)).sqrt()


_TRY = (
    "Try a sampler (pyro_sps.sample), a smaller prior_scale, a smaller network, a noise that is given, such as "
    "Gaussian(0.1), or more steps"
)


def _told(noise: Tensor, left: Tensor, what: str) -> bool:
    """Warn of the first target whose noise is near its scale and several times what is left; whether there was one."""
    hidden = ((noise > NOISE_SHARE) & (noise > RATIO * left)).nonzero().flatten().tolist()
    for target in hidden[:1]:
        warn_user(
            f"the fit seems to underfit: its learned noise is {noise[target].item():.2g} standard deviations of target "
            f"{target}, of which {what} {left[target].item():.2g}. With few rows the ELBO prefers a large noise to "
            f"weights that it knows little of. {_TRY}"
        )
    return bool(hidden)
