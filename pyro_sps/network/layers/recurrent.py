"""Recurrent modules step by step: the fused ones of PyTorch cannot be mapped over sets of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

State = tuple[Tensor, ...]


def _lstm(own: Mapping[str, Tensor | None], gates: Tensor, state: State) -> State:
    h, c = state
    i, f, g, o = (gates + linear(h, _given(own["weight_hh"]), own["bias_hh"])).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if own.get("weight_hr") is None else linear(h, _given(own["weight_hr"]))), c


def _gru(own: Mapping[str, Tensor | None], gates: Tensor, state: State) -> State:
    (h,) = state
    hidden = linear(h, _given(own["weight_hh"]), own["bias_hh"])
    (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), hidden.chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + (z + hz).sigmoid() * (h - n),)


def _rnn(own: Mapping[str, Tensor | None], gates: Tensor, state: State) -> State:
    (h,) = state
    h = gates + linear(h, _given(own["weight_hh"]), own["bias_hh"])
    return (h.relu() if own.get("nonlinearity") is not None else h.tanh(),)


_STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _given(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight


def _forward(module: Any, input: Any, hx: Any = None) -> tuple[Tensor, Any]:
    """What `nn.RNN`, `nn.LSTM` and `nn.GRU` compute."""
    if not isinstance(input, Tensor):
        raise ValueError(f"{type(module).__name__} reads a {type(input).__name__}; a padded tensor is needed")
    unbatched = input.dim() == 2
    x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if module.batch_first else input
    kind = "LSTM" if isinstance(module, nn.LSTM) else "GRU" if isinstance(module, nn.GRU) else "RNN"
    directions, count = 1 + module.bidirectional, 2 if kind == "LSTM" else 1
    if hx is None:
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)[:count]
        states = [x.new_zeros(module.num_layers * directions, x.shape[1], size) for size in sizes]
    else:
        states = [part.unsqueeze(1) if unbatched else part for part in (hx if isinstance(hx, tuple) else (hx,))]
    last: list[State] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            names = (f"{name}_l{layer}{'_reverse' if direction else ''}" for name in _NAMES)
            own = {name: getattr(module, full, None) for name, full in zip(_NAMES, names, strict=True)}
            if getattr(module, "nonlinearity", "tanh") == "relu":
                own["nonlinearity"] = own["weight_hh"]
            gates = linear(x, _given(own["weight_ih"]), own["bias_ih"]).unbind(0)
            state = tuple(part[layer * directions + direction] for part in states)
            made = []
            for gate in reversed(gates) if direction else gates:
                state = _STEPS[kind](own, gate, state)
                made.append(state[0])
            last.append(state)
            outputs.append(torch.stack(made[::-1] if direction else made))
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        if layer + 1 < module.num_layers:
            x = dropout(x, module.dropout, module.training)
    ends = [torch.stack([state[part] for state in last]) for part in range(count)]
    if unbatched:
        x, ends = x.squeeze(1), [end.squeeze(1) for end in ends]
    elif module.batch_first:
        x = x.transpose(0, 1)
    return x, tuple(ends) if kind == "LSTM" else ends[0]


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class StepwiseRNN(nn.RNN):
    """`nn.RNN` in plain operations."""

    forward = _forward  # type: ignore[assignment]


class StepwiseLSTM(nn.LSTM):
    """`nn.LSTM` in plain operations."""

    forward = _forward  # type: ignore[assignment]


class StepwiseGRU(nn.GRU):
    """`nn.GRU` in plain operations."""

    forward = _forward  # type: ignore[assignment]


class StepwiseLSTMCell(nn.LSTMCell):
    """`nn.LSTMCell` in plain operations."""

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # type: ignore[override]
        """One step."""
        if hx is None:
            zero = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zero, zero)
        own = {"weight_hh": self.weight_hh, "bias_hh": self.bias_hh}
        return _lstm(own, linear(input, self.weight_ih, self.bias_ih), hx)


_STEPWISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: StepwiseRNN,
    nn.LSTM: StepwiseLSTM,
    nn.GRU: StepwiseGRU,
    nn.LSTMCell: StepwiseLSTMCell,
}


def make_stepwise(net: nn.Module) -> None:
    """Let the recurrent modules of a network run step by step."""
    for module in net.modules():
        if type(module) in _STEPWISE:
            module.__class__ = _STEPWISE[type(module)]
