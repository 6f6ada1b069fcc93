"""What follows of a posterior: kinds of uncertainty, derivatives, and the network at the posterior mean."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.plain import plain_torch
from ..data.arrays import Standardizer
from ..model.bnn import BNN
from ..model.guides import AutoSPSNormal
from ..network.inputs import FLOAT, Inputs, are_several, arguments, with_names
from .outputs import Outputs


class Uncertainty(NamedTuple):
    """A predictive uncertainty and its two parts, which add up to it.

    Attributes:
        total: Of the predictions.
        epistemic: From not knowing the weights: it goes with more data.
        aleatoric: From the noise of the targets: it stays.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 1]), sps.Unmasked(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> found = fit.predict(x, 100).uncertainty()
        >>> torch.allclose(found.total, found.epistemic + found.aleatoric)
        True
    """

    total: Tensor
    epistemic: Tensor
    aleatoric: Tensor


@plain_torch()
@torch.no_grad()
def split_variance(outputs: Outputs) -> Uncertainty:
    """Var[y] = Var[E[y|w]] + E[Var[y|w]], in the units of the targets squared; of one-hot encoded labels."""
    parts = []
    for start, _, chunk in outputs.chunks():
        means = outputs.means_of(chunk).double()
        noise = [
            outputs.variance(part, start).double() * part.member.standardizer.y_scale.double() ** 2 for part in chunk
        ]
        parts.append((means.var(0, unbiased=False), torch.cat(noise).mean(0)))
    epistemic, aleatoric = (torch.cat(own) for own in zip(*parts, strict=True))
    return Uncertainty(epistemic + aleatoric, epistemic, aleatoric)


@plain_torch()
@torch.no_grad()
def split_entropy(outputs: Outputs, labels: bool) -> Uncertainty:
    """H[y] = I[y; w] + E[H[y|w]] in nats, of classes or of yes/no answers."""
    parts = []
    for _, _, chunk in outputs.chunks():
        p = outputs.means_of(chunk).double()  # probabilities
        p = p if labels else torch.stack([p, 1 - p], dim=-1)
        total = torch.special.entr(p.mean(0)).sum(-1)
        parts.append((total, torch.special.entr(p).sum(-1).mean(0)))
    total, aleatoric = (torch.cat(own) for own in zip(*parts, strict=True))
    return Uncertainty(total, total - aleatoric, aleatoric)


@plain_torch()
def gradient_of_mean(outputs: Outputs) -> Any:
    """Derivatives of the predictive mean by the inputs, shape (rows, targets or classes, *input shape).

    Of several inputs a tuple or dictionary of them, with None for whole numbers and masks.
    """
    bnn = outputs.members[0].bnn
    inputs = bnn.topology.inputs
    if bnn.dropout == "always":
        raise ValueError("gradient is that of a network without masks, but its BNN has dropout='always'; use 'train'")
    if all(one.kind != FLOAT for one in inputs) and inputs:
        raise ValueError("the network reads whole numbers alone, by which nothing has a derivative")
    chunks = []
    rows = outputs.rows_at_once()
    for start in range(0, len(outputs.x), rows):
        x = outputs.x[start : start + rows].detach().clone().requires_grad_()
        total = None
        for member, weights in outputs.weights():
            output = member.bnn.function(weights, member.standardizer.inputs(x))
            likelihood = member.bnn.likelihood
            mean = (member.standardizer.y_mean + likelihood.mean(output) * member.standardizer.y_scale).sum(0)
            columns = [torch.autograd.grad(own.sum(), x, retain_graph=True)[0] for own in mean.unbind(-1)]
            part = torch.stack(columns, dim=1).double()
            total = part if total is None else total + part
        assert total is not None
        chunks.append((total / outputs.num_samples).to(x.dtype))
    gradient = torch.cat(chunks)
    if not are_several(inputs):
        return gradient
    parts = zip(inputs, gradient.split([one.size for one in inputs], dim=-1), strict=True)
    shape = gradient.shape[:-1]
    return with_names(inputs, [p.reshape(*shape, *one.shape[1:]) if one.kind == FLOAT else None for one, p in parts])


class MeanNetwork(nn.Module):
    """A network with one value for each weight, in the user's units.

    Args:
        net: The network.
        scaling: Shift and scale of its inputs and of its outputs.
        likelihood_scales: Whether its outputs are in the units of the targets, and are scaled back.
        inputs: What the network is called with.
    """

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    def __init__(self, net: nn.Module, scaling: Standardizer, likelihood_scales: bool, inputs: Inputs = ()) -> None:
        super().__init__()
        self.net, self.scales, self.inputs = net, likelihood_scales, inputs
        for name in scaling.__dataclass_fields__:
            self.register_buffer(name, getattr(scaling, name).detach().clone())

    def forward(self, *x: Tensor, **named: Tensor) -> Tensor:
        """Outputs in the units of the targets; logits or log rates where the likelihood takes those.

        Args:
            *x: The inputs, as the network takes them.
            **named: Inputs of a network that was read with names.
        """
        outputs: Tensor
        if are_several(self.inputs):
            sizes = [one.size for one in self.inputs]
            scaled = []
            given = [named[str(one.name)] for one in self.inputs] if named else x
            scales = (own.expand(sum(sizes)).split(sizes) for own in (self.x_mean, self.x_scale))
            for one, part, mean, scale in zip(self.inputs, given, *scales, strict=True):
                shape = one.shape[1:]
                scaled.append((part - mean.view(shape)) / scale.view(shape) if one.kind == FLOAT else part)
            args, kwargs = arguments(with_names(self.inputs, scaled))
            outputs = self.net(*args, **kwargs)
        else:
            (one_x,) = (*x, *named.values())
            outputs = self.net((one_x - self.x_mean) / self.x_scale if one_x.is_floating_point() else one_x)
        return outputs * self.y_scale + self.y_mean if self.scales else outputs


@plain_torch()
@torch.no_grad()
def mean_network(bnn: BNN, guide: AutoSPSNormal, scaling: Standardizer) -> MeanNetwork:
    """The network at the guide's means (medians, of weights with a constrained support).

    Raises:
        ValueError: If outputs of the network are no predictions: where some of them are scales.
    """
    likelihood = bnn.likelihood
    scales = likelihood.real_valued
    if scales and likelihood.num_targets(bnn.num_outputs) != bnn.num_outputs:
        raise ValueError(
            f"{type(likelihood).__name__} takes some outputs of the network as scales, so that they have no common "
            "unit; use fit.predict"
        )
    net = copy.deepcopy(bnn.function.skeleton)  # type: ignore[attr-defined]
    for name, value in bnn.assemble(guide.median()).items():
        owner, _, own = name.rpartition(".")
        setattr(net.get_submodule(owner), own, nn.Parameter(value.detach().clone()))
    return MeanNetwork(net.eval(), scaling, scales, bnn.topology.inputs)
