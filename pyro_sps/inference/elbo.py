"""The ELBO for stock `SVI`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from ..model.density import Problem, _nesting, _trace, negative_elbo
from ..model.guides import AutoSPSNormal


class MeanFieldELBO(ELBO):
    """The ELBO for stock `SVI` with an `AutoSPSNormal` guide: `TraceMeanField_ELBO` at a fraction of its cost.

    All particles run at once, the KL divergence of every latent site is taken once, in closed form where it is
    known, and guide and model are not traced. Equal to `TraceMeanField_ELBO` in expectation.

    Args:
        num_particles: Number of draws S the likelihood is averaged over.

    Example:
        >>> import torch, pyro, pyro_sps as sps
        >>> from pyro.infer import SVI
        >>> pyro.clear_param_store()
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> svi = SVI(bnn, sps.AutoSPSNormal(bnn), pyro.optim.Adam({"lr": 0.01}), sps.MeanFieldELBO(16))
        >>> loss = svi.step(torch.zeros(3, 1), torch.zeros(3, 1))
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._problems: dict[int, tuple[Any, Any, Problem]] = {}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("MeanFieldELBO does not trace guide and model")

    def differentiable_loss(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO as a differentiable scalar.

        Raises:
            TypeError: If the guide is not an `AutoSPSNormal`.
        """
        if not isinstance(guide, AutoSPSNormal):
            raise TypeError(
                f"guide must be an AutoSPSNormal, got {type(guide).__name__}; use TraceMeanField_ELBO for others"
            )
        problem = self._problem(model, guide, args, kwargs)
        with guide._pyro_context:  # so that SVI sees the guide's parameters
            loc, scale = guide.parameters_of_sites()
        noise = torch.randn((self.num_particles, len(loc)), dtype=loc.dtype, device=loc.device)
        return negative_elbo(problem, loc, scale, noise, args, kwargs)

    def _problem(self, model: Any, guide: AutoSPSNormal, args: Any, kwargs: Any) -> Problem:
        known = self._problems.get(id(guide))
        if known is None or known[0] is not model or known[1] is not guide:
            with torch.no_grad():
                trace = _trace(model, guide, args, kwargs)
            known = (model, guide, Problem(model, guide.sites, _nesting(trace), {}))
            self._problems[id(guide)] = known
        return known[2]

    def loss(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO; its gradients are added to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()
