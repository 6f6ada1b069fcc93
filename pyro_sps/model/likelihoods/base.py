"""What all observation models have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ...data.observed import Observed


@dataclass(frozen=True)
class Latent:
    """Something that a likelihood learns, as a sample site: a vector with a normal prior in unconstrained space.

    Attributes:
        start: Its current value in unconstrained space, shape (n,).
        mean: Mean of the prior: a number or a tensor of shape (n,).
        std: Standard deviation of the prior.

    Example:
        >>> import pyro_sps as sps
        >>> sps.Gaussian(1.0, learn=True).latents()["log_scale"].prior().event_shape
        torch.Size([1])
    """

    start: Tensor
    mean: float | Tensor
    std: float

    def prior(self) -> dist.TorchDistribution:
        """The prior, with event shape (n,)."""
        like = self.start
        mean = self.mean.to(like) if isinstance(self.mean, Tensor) else like.new_full(like.shape, self.mean)
        return dist.Normal(mean, like.new_full(like.shape, self.std)).to_event(1)


class Likelihood(PyroModule):
    """Base of the observation models: a subclass defines `elementwise`, and `num_targets` if a target has many outputs.

    **Sampled or learned.** What a likelihood learns is a parameter of the model. With `sampled` set to True it is no
    parameter but a sample site `likelihood.NAME` for each of `latents()`, with the prior that is stated there: the
    sites are part of the model like those of the weights, and draws of them belong to draws of weights. `at` gives the
    likelihood for given values of them, which may have batch dimensions (particles, posterior draws).

    Example:
        >>> import pyro.distributions as dist, pyro_sps as sps
        >>> from pyro_sps.model.likelihoods import Likelihood
        >>> class Laplace(Likelihood):
        ...     real_valued = True
        ...     def elementwise(self, outputs):
        ...         return dist.Laplace(outputs, 0.1)
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), likelihood=Laplace())
    """

    #: Number of event dimensions of a target row, 1 for vectors, 0 for labels.
    event_dim = 1
    #: Whether targets are real numbers that may be standardised.
    real_valued = False
    #: Whether what is learned is sampled with the weights instead of being a parameter.
    sampled = False

    _given: Mapping[str, Tensor] = {}

    def elementwise(self, outputs: Tensor) -> dist.TorchDistribution:
        """Distribution of every single target given outputs of shape B + (rows, outputs)."""
        raise NotImplementedError

    def num_targets(self, num_outputs: int) -> int:
        """Number of target columns that this many network outputs describe."""
        return num_outputs

    def kinds(self, num_outputs: int) -> tuple[int, ...]:
        """What each output of the network is for, numbered from 0: means of targets 0, scales of noise 1."""
        return (0,) * num_outputs

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Distribution of the targets of every row, batch shape B + (rows,)."""
        return self.elementwise(outputs).to_event(self.event_dim)

    def elementwise_of(self, outputs: Tensor, y_scale: Tensor | None = None) -> dist.TorchDistribution:
        """`elementwise`, with a noise more that is known.

        Args:
            outputs: Shape B + (rows, outputs).
            y_scale: Its standard deviation, shape (rows, targets); None for none.

        Raises:
            ValueError: If the targets are not normally distributed, so that noises do not add up.
        """
        law = self.elementwise(outputs)
        if y_scale is None:
            return law
        if not isinstance(law, dist.Normal):
            raise ValueError(
                f"y_scale is the standard deviation of normal noise, which {type(self).__name__} does not have: use "
                "Gaussian or HeteroscedasticGaussian"
            )
        return dist.Normal(law.loc, torch.hypot(law.scale, y_scale.expand(law.loc.shape)))

    def of(self, outputs: Tensor, observed: Observed) -> dist.TorchDistribution:
        """Distribution of the targets of every row where some are gaps or have error bars; weights are not in it."""
        law = self.elementwise_of(outputs, observed.y_scale)
        if observed.measured is not None:
            law = law.mask(observed.measured)
        return law.to_event(self.event_dim)

    def log_density(self, outputs: Tensor, y: Tensor | Observed) -> Tensor:
        """Log density of every single target, times how often it counts: B + (rows, targets), or B + (rows,)."""
        if isinstance(y, Tensor):
            plain: Tensor = self.elementwise(outputs).log_prob(y)
            return plain
        log: Tensor = self.elementwise_of(outputs, y.y_scale).log_prob(y.y)
        counts = y.counts
        return log if counts is None else torch.where(counts > 0, log * counts, log.new_zeros(()))

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the targets given the outputs (class probabilities for labels)."""
        return self.elementwise(outputs).mean

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of the targets given the outputs."""
        return self.elementwise(outputs).variance

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    # --- what is learned --------------------------------------------------------------------------

    def latents(self) -> dict[str, Latent]:
        """What can be sampled, by name: nothing, unless a subclass learns something that has a prior."""
        return {}

    def starts(self) -> dict[str, Tensor]:
        """Values of the sample sites to start from, by name of the site; nothing unless `sampled`."""
        return {f"likelihood.{name}": own.start for name, own in self.latents().items()} if self.sampled else {}

    def sample(self) -> Likelihood:
        """In a Pyro model, outside of the plate of the data: sample what is `sampled`.

        Returns:
            The likelihood at these values.
        """
        sites = {}
        for name, own in self.latents().items() if self.sampled else ():
            value = pyro.sample(f"likelihood.{name}", own.prior())
            # With particles, dimension -2 is that of the plate of the data, of size 1.
            sites[f"likelihood.{name}"] = value.squeeze(-2) if value.dim() > 1 else value
        return self.at(sites)

    def at(self, sites: Mapping[str, Tensor]) -> Likelihood:
        """The likelihood at values of the sample sites; itself unless `sampled`.

        Args:
            sites: Values of shape B + the site's, by name of the site; others are not looked at.

        Raises:
            ValueError: If there is no value of a site.
        """
        names = list(self.latents()) if self.sampled else []
        if not names:
            return self
        if missing := [name for name in names if f"likelihood.{name}" not in sites]:
            raise ValueError(f"sites must have {[f'likelihood.{name}' for name in missing]}, which are sampled")
        other = copy.copy(self)
        other.__dict__["_given"] = {name: sites[f"likelihood.{name}"] for name in names}
        return other

    def _unconstrained(self, name: str) -> Tensor:
        """The unconstrained value of a learned parameter, unseen by Pyro: while sampled it is no part of the model."""
        value: Tensor = self.__dict__["_parameters"][f"{name}_unconstrained"]
        return value.detach()

    @contextmanager
    def constant_noise(self) -> Iterator[None]:
        """The scale of the noise does not depend on the inputs for a while; of no effect where it never does."""
        yield

    # --- targets ----------------------------------------------------------------------------------

    def adapt(self, targets: Tensor) -> None:
        """Settle what the user left to the training targets.

        Args:
            targets: The targets in the units of the network.
        """

    def check_targets(self, y: Tensor, num_outputs: int) -> None:
        """Check targets against the network before any work is done.

        Raises:
            ValueError: If their shape or their values do not fit.
        """
        expected = self.num_targets(num_outputs)
        name = type(self).__name__
        if self.event_dim == 0:
            if y.dim() != 1:
                raise ValueError(f"y must have shape (rows,) for {name}, got {tuple(y.shape)}")
        elif y.dim() != 2 or y.shape[1] != expected:
            raise ValueError(f"y must have shape (rows, {expected}) for {name} on this network, got {tuple(y.shape)}")
        self._check_support(y, num_outputs)

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        """Raise if a target is outside the distribution's support."""
        require(y, y.isfinite(), "finite numbers")


def require(y: Tensor, valid: Tensor, expected: str) -> None:
    """Raise `ValueError` with the first row of targets that is not valid."""
    if not valid.all():
        row = int((~valid).reshape(len(y), -1).any(-1).nonzero()[0])
        raise ValueError(f"y must hold {expected}, got {y[row].tolist()} in row {row}")
