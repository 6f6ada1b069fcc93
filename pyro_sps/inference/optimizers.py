r"""The optimisers of a step: what the gradient is taken at, and what it does to the state.

An optimiser is an `Optimizer`: pure functions of flat vectors of shape (replicas, p), which `step` records into its
program. A gradient is a gradient of the loss per row, whoever asks for it.

**Adam** (Kingma and Ba 2015, algorithm 1) on all parameters.

**IVON** (Shen et al. 2024, arXiv 2402.17641, algorithm 1) on the weights, Adam on the model's own parameters. With N
rows (divided by the weight of the KL divergence), a normal prior :math:`\mathcal N(m_0, s_0^2)` and
:math:`\delta = 1 / (N s_0^2)`, the state is the mean m, a momentum g and a precision per row P, of which the standard
deviation is :math:`s = (N P)^{-1/2}` (P is the paper's :math:`h + \delta`). With :math:`\hat g` the gradient of the
expected negative log-likelihood per row by m and :math:`\hat g_s` by s, a step is

.. math::
   g &\leftarrow \beta_1 g + (1 - \beta_1) \hat g, \qquad
   d = (1 - \beta_2) (\hat g_s / s + \delta - P), \\
   P &\leftarrow P + d + d^2 / (2 P), \\
   m &\leftarrow m - \alpha \, \frac{g / (1 - \beta_1^t) + \delta (m - m_0)}{P},

since :math:`\hat g_s / s` estimates the curvature (Price's theorem). The learning rate :math:`\alpha` is that of a
natural gradient, whatever the units are: 1 is a step of Newton's method. (The authors' implementation multiplies it by
the precision at the start, unless `rescale_lr=False`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass
class State:
    """Everything a step changes.

    Attributes:
        params: All unconstrained parameters of a replica in one vector, shape (replicas, p).
        first: First moments, same shape.
        second: Second moments, same shape; IVON has its precisions there.
    """

    params: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def start(params: Tensor) -> State:
        """The state of Adam before the first step."""
        return State(params.clone(), torch.zeros_like(params), torch.zeros_like(params))


@dataclass(frozen=True)
class Optimizer:
    """An optimiser, as pure functions.

    Attributes:
        start: `params -> State`, before the first step.
        point: `(params, second) -> ` what the objective is evaluated at, of the shape of `params`.
        update: `(params, first, second, scalars, gradients, finite)` changes the first three in place, and nothing of a
            replica whose step is not finite (shape (replicas, 1)).
        scalars: `(rates, like, before) -> ` what a step needs besides, shape (steps, k), for steps t = before + 1, ...
            with these learning rates.
        settle: Brings those parameters up to date that `update` leaves behind, before somebody looks at them.
    """

    start: Callable[[Tensor], State]
    point: Callable[[Tensor, Tensor], Tensor]
    update: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    scalars: Callable[[Sequence[float], Tensor, int], Tensor]
    settle: Callable[[State], None] = lambda state: None


# --- Adam -------------------------------------------------------------------------------------------


def adam_scalars(rates: Sequence[float], like: Tensor, before: int = 0) -> Tensor:
    """What Adam needs in each step of a run besides its state: step size and √(1 - β₂ᵗ).

    Both come with the bias corrections of Kingma and Ba (2015), algorithm 1, worked out in double precision.

    Args:
        rates: Learning rates of steps t = before + 1, before + 2, ...
        like: A tensor whose device and dtype the result follows.
        before: Steps that the state has behind it.

    Returns:
        Shape (steps, 2).
    """
    count = before + np.arange(1, len(rates) + 1, dtype=np.float64)
    table = np.stack([np.asarray(rates) / (1 - BETA1**count), np.sqrt(1 - BETA2**count)], axis=1)
    return torch.from_numpy(table).to(like)


def adam_update(
    params: Tensor, first: Tensor, second: Tensor, scalars: Tensor, gradients: Tensor, finite: Tensor
) -> None:
    """Kingma and Ba (2015), algorithm 1; gradients that are not finite come as zeros."""
    # In half precision 1e-8 is zero, and 0 / 0 would follow.
    epsilon = max(EPSILON, torch.finfo(params.dtype).tiny)
    size, correction = scalars.unbind()
    first.lerp_(gradients, 1 - BETA1)
    second.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
    update = first / (second.sqrt() / correction).add(epsilon)
    params.sub_(torch.where(finite, size * update, size.new_zeros(())))


ADAM = Optimizer(State.start, lambda params, second: params, adam_update, adam_scalars)


# --- IVON -------------------------------------------------------------------------------------------

# Shorter than the authors' 1 - 1e-5, which is for 10^5 steps: fits of thousands must forget the curvature at the start.
IVON_BETA1, IVON_BETA2 = 0.9, 0.99

# Adam's learning rate of the model's own parameters, as a share of that of the weights.
OWN_RATE = 0.1


def ivon(num_data: float, loc: Tensor, scale: Tensor, beta2: float = IVON_BETA2) -> Optimizer:
    """IVON for parameters laid out as means, unconstrained scales, and the model's own.

    The objective is evaluated at means, *standard deviations* and own parameters, and its gradient must be that of the
    expected negative log-likelihood alone.

    Args:
        num_data: Rows of the data set, divided by the weight of the KL divergence: N.
        loc: Means of the prior, shape (n,).
        scale: Its standard deviations, shape (n,).
        beta2: Memory of the curvature.
    """
    count = len(loc)
    decay = (num_data * scale.square()).reciprocal()

    def deviations(precision: Tensor) -> Tensor:
        return (num_data * precision).rsqrt()

    def start(params: Tensor) -> State:
        state = State.start(params)
        precision = (num_data * F.softplus(params[:, count : 2 * count]).square()).reciprocal()
        state.second[:, :count] = precision
        return state

    def point(params: Tensor, second: Tensor) -> Tensor:
        return torch.cat([params[:, :count], deviations(second[:, :count]), params[:, 2 * count :]], dim=-1)

    def update(
        params: Tensor, first: Tensor, second: Tensor, scalars: Tensor, gradients: Tensor, finite: Tensor
    ) -> None:
        rate, debias, size, correction = scalars.unbind()
        centre, momentum, precision = params[:, :count], first[:, :count], second[:, :count]
        change = (1 - beta2) * (gradients[:, count : 2 * count] / deviations(precision) + decay - precision)
        change = change + change.square() / (2 * precision)
        precision.add_(torch.where(finite, change, change.new_zeros(())))
        momentum.lerp_(gradients[:, :count], 1 - IVON_BETA1)
        move = rate * (momentum / debias + decay * (centre - loc)) / precision
        centre.sub_(torch.where(finite, move, move.new_zeros(())))
        if params.shape[-1] > 2 * count:
            own, mean, square, gradient = (value[:, 2 * count :] for value in (params, first, second, gradients))
            adam_update(own, mean, square, torch.stack([size, correction]), gradient, finite)

    def scalars(rates: Sequence[float], like: Tensor, before: int = 0) -> Tensor:
        steps = before + np.arange(1, len(rates) + 1, dtype=np.float64)
        table = np.stack([np.asarray(rates), 1 - IVON_BETA1**steps], axis=1)
        own = adam_scalars([OWN_RATE * rate for rate in rates], like, before)
        return torch.cat([torch.from_numpy(table).to(like), own], dim=1)

    def settle(state: State) -> None:
        wide = deviations(state.second[:, :count])
        state.params[:, count : 2 * count] = wide + torch.log(-torch.expm1(-wide))

    return Optimizer(start, point, update, scalars, settle)
