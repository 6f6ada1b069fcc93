"""A prior that learns how large the weights of each tensor are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ..base.checks import require_positive
from ..network.units import WeightTensor

FAMILIES = ("lognormal", "halfnormal")


@dataclass(frozen=True)
class Hierarchical:
    r"""A scale for each weight tensor, sampled with the weights (Neal 1996, Bayesian Learning for Neural Networks).

    The prior of a stochastic weight of a tensor is :math:`w = s\,v`, with :math:`v \sim \mathcal N(0, b^2)` for
    each weight and one :math:`s` for the whole tensor. The base :math:`b` is `scale`/√fan-in for weights and
    `bias_scale` for biases, and :math:`\log s \sim \mathcal N(0, \mathrm{width}^2)` or :math:`s \sim`
    HalfNormal(`width`). So data says by how much each tensor acts, biases and a linear path (`mlp(skip=True)`)
    included. Where the outputs of the network are of two kinds, means and scales of noise
    (`HeteroscedasticGaussian`), the tensors that lead to them have a scale for each kind. Constants of fixed
    weights are not scaled.

    The model is written in the non-centred form, in which weights and scales are independent a priori: **the sites
    that are named after weight tensors hold** :math:`v`, **not the weights.** The sites of the scales are named
    after the tensor too: `0.weight_log_scale` (of log s), or `0.weight_scale` for the half-normal. Whatever gives
    weights gives :math:`w`: `BNN.assemble`, `BNN.free_weights`, `weights()` of samples, ArviZ conversion.

    Args:
        width: Scale of the prior of the scales.
        family: `"lognormal"` or `"halfnormal"`.
        scale: Standard deviation of weights with s = 1, times √fan-in.
        bias_scale: Standard deviation of biases with s = 1.
        noise_scale: What s is multiplied by, in weights that lead to outputs for scales of noise: how far noise may
            depend on the inputs, before data is seen. Below 1, noise of nearly one scale is what a few rows that say
            nothing of it are explained by.

    Raises:
        ValueError: If a number is not positive and finite or the family is not known.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.mlp([8, 50, 50, 1], skip=True)
        >>> bnn = sps.BNN(net, scheme=sps.Unmasked(), prior=sps.Hierarchical())
        >>> guide = sps.AutoSPSNormal(bnn)
        >>> sites = guide(torch.zeros(1, 8), torch.zeros(1, 1))
        >>> sites["skip.weight_log_scale"].shape, bnn.assemble(sites)["skip.weight"].shape
        (torch.Size([1]), torch.Size([1, 8]))
    """

    width: float = 1.0
    family: str = "lognormal"
    scale: float = 1.0
    bias_scale: float = 2.0
    noise_scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "scale", "bias_scale", "noise_scale"):
            require_positive(name, getattr(self, name))
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return dataclasses.asdict(self)

    def base(self, tensor: WeightTensor, like: Tensor) -> dist.Normal:
        """The prior of the entries of a tensor before they are scaled, :math:`v`.

        Args:
            tensor: The tensor.
            like: A tensor whose device and dtype it follows.
        """
        scale = self.scale / math.sqrt(tensor.fan_in) if tensor.is_matrix else self.bias_scale
        return dist.Normal(like.new_zeros(()), like.new_full((), scale))

    def site(self, name: str) -> str:
        """The sample site of the scales of the tensor of that name."""
        return f"{name}_log_scale" if self.family == "lognormal" else f"{name}_scale"

    def sample(self, name: str, count: int, like: Tensor) -> Tensor:
        """Sample the scales of a tensor.

        Args:
            name: The tensor's name.
            count: Number of scales.
            like: A tensor whose device and dtype they follow.

        Returns:
            The factors s, shape B + (count,).
        """
        width = like.new_full((count,), self.width)
        family = dist.Normal(like.new_zeros((count,)), width) if self.family == "lognormal" else dist.HalfNormal(width)
        return self._factor(pyro.sample(self.site(name), family.to_event(1)))

    def factor(self, name: str, sites: Mapping[str, Tensor]) -> Tensor:
        """The factors s of a tensor from values of the sites, shape B + (count,).

        Raises:
            ValueError: If there is no value of its site.
        """
        if (value := sites.get(self.site(name))) is None:
            raise ValueError(f"sites must have {self.site(name)!r}: the prior of {name!r} is hierarchical")
        return self._factor(value)

    def _factor(self, value: Tensor) -> Tensor:
        return value.exp() if self.family == "lognormal" else value
