"""Networks that end in a function that the likelihood applies once more."""

from __future__ import annotations

from ..base.process import warn_user
from ..network.probe import last_operation
from ..network.run import NetworkFunction
from .likelihoods import Bernoulli, Categorical, Likelihood, Poisson

_SIGMOIDS = ("sigmoid", "hardsigmoid", "logsigmoid", "expit", "softmax")

# What outputs count as, and at the end of which functions they cannot be that.
_LINKS: dict[type[Likelihood], tuple[str, tuple[str, ...]]] = {
    Bernoulli: ("logits", (*_SIGMOIDS, "relu", "relu6", "softplus", "exp")),
    Categorical: ("logits", (*_SIGMOIDS, "relu", "relu6", "softplus", "exp")),
    Poisson: ("log rates", ("exp", "softplus", "relu", "relu6", *_SIGMOIDS)),
}

# Functions whose values are limited on a side near zero.
_LIMITED = (*_SIGMOIDS, "relu", "relu6", "softplus", "exp", "tanh", "softsign", "hardtanh", "erf", "sin", "elu")


def warn_of_link(likelihood: Likelihood, function: NetworkFunction) -> None:
    """Warn of a network that ends in what the likelihood does with its outputs anyway.

    Args:
        likelihood: The likelihood.
        function: The network as a function of its weights.

    Warns:
        UserWarning: If, for instance, a network ends in a sigmoid, and its outputs count as logits.
    """
    last = last_operation(function)
    for family, (what, ends) in _LINKS.items():
        if isinstance(likelihood, family) and _plain(last) in ends:
            warn_user(
                f"the network ends in {last}, but {family.__name__} takes its outputs as {what} and squashes them once "
                f"more: leave the {last} out"
            )


def warn_of_limits(likelihood: Likelihood, function: NetworkFunction) -> None:
    """Warn of a network whose outputs cannot reach targets that are shifted to mean 0 and scaled.

    Args:
        likelihood: The likelihood.
        function: The network as a function of its weights.

    Warns:
        UserWarning: If the network ends in a function with limits.
    """
    last = last_operation(function)
    if likelihood.real_valued and _plain(last) in _LIMITED:
        warn_user(
            f"the network ends in {last}, which limits its outputs, but the targets are standardised: leave the {last} "
            "out, or use standardize=False for targets within its limits"
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("special", "")
