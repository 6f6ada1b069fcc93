"""A network as a pure function of its weights, which other processes can be sent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

# (weights by name, inputs) -> outputs, see `pyro_sps.network.trace.trace`.
NetworkFunction = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class WeightFunction:
    """The network as a function of its weights.

    Args:
        net: The network.
        run: Its graph, rewritten as a function of weights and inputs.
        rebuild: What makes this of a network without numbers; it is sent to other processes by its name.
    """

    def __init__(self, net: nn.Module, run: fx.GraphModule, rebuild: Callable[[nn.Module], NetworkFunction]) -> None:
        self.run, self.rebuild = run, rebuild
        # The network without its numbers: what it takes to trace it again there.
        weightless: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in net.parameters()
        }
        self.skeleton = copy.deepcopy(net, weightless)

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs for weights of shape B + their own."""
        outputs: Tensor = self.run(weights, x)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return self.rebuild, (self.skeleton,)
