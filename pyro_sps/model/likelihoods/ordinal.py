"""Observation model of grades: ordered classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import transform_to

from ...base.checks import is_integer, is_number, require_positive
from .base import Latent, Likelihood, require


class Ordinal(Likelihood):
    r"""Grades, such as marks or stars: ordered classes whose distances say little (McCullagh 1980, cumulative logit).

    With cut points :math:`c_1 < \ldots < c_{K-1}` and the network's output :math:`f` a target is at most the k-th grade
    with probability :math:`\sigma(c_k - f)`: numbers between grades get nothing, unlike under a normal density. Mean,
    standard deviation, RMSE and intervals of predictions are in grades; log densities are log probabilities of grades.

    Args:
        levels: The grades, in increasing order, or their number K for the grades 0 ... K - 1.
        cut_points: Where the latent scale is cut, K - 1 increasing numbers; where they are learned, at the start.
            Default: such that all grades are equally probable for outputs of 0.
        learn: Whether they are learned: as a parameter, optimised with the ELBO, or sampled.
        prior_std: Where they are sampled, standard deviation of the normal priors, around `cut_points`, of the first
            one and of the logarithms of the distances between them.
        sampled: Whether learned cut points are a sample site, `likelihood.cuts`, and no parameter.

    Raises:
        ValueError: If the grades or cut points do not increase, their numbers do not fit, or cut points that are not
            learned should be sampled.

    Example:
        >>> import torch, pyro_sps as sps
        >>> likelihood = sps.Ordinal([3, 4, 5, 6, 7, 8])
        >>> likelihood.mean(torch.zeros(1, 1)).item()
        5.5
        >>> likelihood.probabilities(torch.zeros(1, 1)).shape
        torch.Size([1, 1, 6])
    """

    def __init__(
        self,
        levels: int | Sequence[float],
        cut_points: Sequence[float] | None = None,
        learn: bool = True,
        prior_std: float = 1.0,
        sampled: bool = False,
    ) -> None:
        super().__init__()
        given: Any = levels
        grades = list(range(int(given))) if is_integer(given, 2) else given
        if not _increases(grades) or len(grades) < 2:
            raise ValueError(f"levels must be at least two increasing numbers, or their number, got {levels!r}")
        count = len(grades)
        if cut_points is None:
            cut_points = [math.log(k / (count - k)) for k in range(1, count)]
        if not _increases(cut_points) or len(cut_points) != count - 1:
            raise ValueError(f"cut_points must be {count - 1} increasing numbers, got {cut_points!r}")
        require_positive("prior_std", prior_std)
        if sampled and not learn:
            raise ValueError("sampled=True needs learn=True: given cut points are not sampled")
        self.levels: list[float] = list(grades)
        self.initial_cut_points, self.learn = list(cut_points), learn
        self.prior_std, self.sampled = prior_std, sampled
        value = torch.tensor(self.initial_cut_points, dtype=torch.float64)
        if learn:
            self.cut_points = PyroParam(value, constraint=constraints.ordered_vector)
        else:
            self.register_buffer("cut_points", value)

    @property
    def cuts(self) -> Tensor:
        """The cut points, of shape (K - 1,); where they are sampled (`at`), B + (1, 1, K - 1)."""
        given = self._given.get("cuts")
        if given is not None:
            return transform_to(constraints.ordered_vector)(given).unsqueeze(-2).unsqueeze(-2)
        cuts: Any = self.cut_points
        return cuts

    def latents(self) -> dict[str, Latent]:
        """The first of learned cut points, and the logarithms of the distances between them."""
        if not self.learn:
            return {}
        start = self._unconstrained("cut_points")
        mean = transform_to(constraints.ordered_vector).inv(start.new_tensor(self.initial_cut_points))
        return {"cuts": Latent(start, mean, self.prior_std)}

    def elementwise(self, outputs: Tensor) -> OrderedLogistic:
        """Distribution over the grades."""
        return OrderedLogistic(outputs, self.cuts.to(outputs.dtype), outputs.new_tensor(self.levels))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of the grades, shape B + (rows, targets, K)."""
        return self.elementwise(outputs).log_probabilities.exp()

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        own = {"levels": self.levels, "cut_points": self.initial_cut_points, "learn": self.learn}
        return own | {"prior_std": self.prior_std, "sampled": self.sampled}

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        grades = y.new_tensor(self.levels)
        known = torch.isin(y, grades)
        require(y, known, f"grades among {self.levels}")


class OrderedLogistic(dist.TorchDistribution):
    """Grades under a cumulative logit model.

    Pyro's distribution of the same name has the classes 0 ... K - 1 and takes differences of probabilities, which are
    zero in the tails.

    Args:
        predictor: What is compared with the cut points, of any shape.
        cut_points: Increasing in their last dimension, shape (..., K - 1); (...) broadcasts against the predictor.
        grades: The values, shape (K,).

    Example:
        >>> import torch
        >>> from pyro_sps.model.likelihoods.ordinal import OrderedLogistic
        >>> law = OrderedLogistic(torch.zeros(()), torch.tensor([0.0]), torch.tensor([1.0, 2.0]))
        >>> law.log_prob(torch.tensor(2.0)).exp()
        tensor(0.5000)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "predictor": constraints.real,
        "cut_points": constraints.ordered_vector,
    }
    has_rsample = False

    def __init__(
        self, predictor: Tensor, cut_points: Tensor, grades: Tensor, validate_args: bool | None = None
    ) -> None:
        batch = torch.broadcast_shapes(predictor.shape, cut_points.shape[:-1])
        self.predictor, self.cut_points, self.grades = predictor.expand(batch), cut_points, grades
        super().__init__(batch, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The grades."""
        return _Grades(self.grades)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderedLogistic:
        """The same distribution with a larger batch shape."""
        return OrderedLogistic(self.predictor.expand(batch_shape), self.cut_points, self.grades, validate_args=False)

    @property
    def log_probabilities(self) -> Tensor:
        """Logarithms of the probabilities of all grades, batch shape + (K,).

        For grades between two cut points a < b of the latent scale,
        log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)), which loses no digits in the tails.
        """
        above = self.cut_points - self.predictor.unsqueeze(-1)
        upper, lower = F.logsigmoid(above), F.logsigmoid(-above)
        between = torch.log(-torch.expm1(-self.cut_points.diff(dim=-1)))
        return torch.cat([upper[..., :1], upper[..., 1:] + lower[..., :-1] + between, lower[..., -1:]], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of grades."""
        index = torch.bucketize(value, (self.grades[1:] + self.grades[:-1]) / 2)
        logs = self.log_probabilities
        shape = torch.broadcast_shapes(index.shape, logs.shape[:-1])
        return logs.expand((*shape, -1)).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Expected grade."""
        return self.log_probabilities.exp() @ self.grades

    @property
    def variance(self) -> Tensor:
        """Variance of the grade."""
        deviation = self.grades - self.mean.unsqueeze(-1)
        return (self.log_probabilities.exp() * deviation.square()).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws: the latent variable is the predictor and logistic noise."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.predictor.dtype, device=self.predictor.device)
        latent = self.predictor + torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)
        return self.grades[(self.cut_points < latent.unsqueeze(-1)).sum(-1)]


class _Grades(constraints.Constraint):
    """One of some values."""

    is_discrete = True

    def __init__(self, grades: Tensor) -> None:
        self.grades = grades
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which values are among them."""
        return torch.isin(value, self.grades)


def _increases(values: Any) -> bool:
    """Whether something is a sequence of finite numbers of which each is larger than the one before."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(map(is_number, values)):
        return False
    return all(map(math.isfinite, values)) and all(a < b for a, b in itertools.pairwise(values))
