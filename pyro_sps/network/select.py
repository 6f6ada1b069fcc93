"""Which parameters of a network somebody means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

# Names that an error lists.
MOST_NAMES = 12


def parameters_of(name: str, net: nn.Module, selectors: Sequence[Any]) -> dict[Any, list[str]]:
    """Names of the parameters that are meant by names or types of submodules, or by their own names.

    Args:
        name: The argument's name, for errors.
        net: The network.
        selectors: Names of submodules (`"backbone"`, with all that is inside), types of modules (`nn.BatchNorm2d`), or
            names of parameters (`"0.bias"`).

    Returns:
        For each selector the names of its parameters, as in `net.named_parameters()`.

    Raises:
        TypeError: If a selector is neither a name nor a type of modules.
        ValueError: If it means no parameter.

    Example:
        >>> from torch import nn
        >>> from pyro_sps.network.select import parameters_of
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> parameters_of("deterministic", net, ["0", "2.bias"])
        {'0': ['0.weight', '0.bias'], '2.bias': ['2.bias']}
    """
    known = {id(parameter): own for own, parameter in net.named_parameters()}
    modules = dict(net.named_modules())
    found = {}
    for selector in selectors:
        if isinstance(selector, str):
            chosen = [own for own in known.values() if own == selector]
            if selector in modules:
                chosen += [known[id(parameter)] for parameter in modules[selector].parameters()]
        elif isinstance(selector, type) and issubclass(selector, nn.Module):
            inside = [module for module in modules.values() if isinstance(module, selector)]
            chosen = [known[id(parameter)] for module in inside for parameter in module.parameters()]
        else:
            raise TypeError(f"{name} must hold names and types of submodules, got {selector!r}")
        if not chosen:
            own = [own for own, module in modules.items() if own and any(True for _ in module.parameters())]
            more = f" and {len(own) - MOST_NAMES} more" if len(own) > MOST_NAMES else ""
            raise ValueError(
                f"{name} names {selector!r}, which has no parameters in net; submodules that have some are "
                f"{own[:MOST_NAMES]}{more}"
            )
        found[selector] = list(dict.fromkeys(chosen))
    return found


def submodules_of(net: nn.Module, names: Collection[str]) -> list[str]:
    """Names of the submodules that have parameters, and none but those that are named.

    Args:
        net: The network.
        names: Names of parameters.
    """
    known = {id(parameter): own for own, parameter in net.named_parameters()}
    inside = {name: [known[id(p)] for p in module.parameters()] for name, module in net.named_modules() if name}
    return [name for name, own in inside.items() if own and set(own) <= set(names)]


def replace_parameter(net: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter another value, in all places that share it.

    Args:
        net: The network, which is changed.
        name: Its name in `net.named_parameters()`.
        value: The value, on any device.
    """
    old = dict(net.named_parameters())[name]
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    for module in net.modules():
        for own, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[own] = new
