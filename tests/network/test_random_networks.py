"""Networks put together at random from the usual operations: what is claimed of them must be true of numbers."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from network.networks import Net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import pyro_sps as sps


class Program:
    """A random network of values of shape (rows, positions, units); its layers, and what its forward does."""

    def __init__(self, seed, operations=None):
        self.rng, self.operations = np.random.default_rng(seed), OPERATIONS if operations is None else operations
        self.layers, self.steps = {}, []
        self.widths = [(3, 4)]  # positions and units of each value so far; the first is the input
        for _ in range(self.rng.integers(3, 9)):
            self.add()
        self.close()

    def layer(self, module):
        name = f"l{len(self.layers)}"
        self.layers[name] = module
        return name

    def pick(self, *condition):
        fitting = [i for i, width in enumerate(self.widths) if all(test(*width) for test in condition)]
        return int(self.rng.choice(fitting)) if fitting else None

    def then(self, function, positions, units):
        self.steps.append(function)
        self.widths.append((positions, units))

    def add(self):
        kind = self.rng.choice(list(self.operations))
        self.operations[kind](self)

    def close(self):
        i = len(self.widths) - 1
        positions, units = self.widths[i]
        flat = self.rng.random() < 0.4
        name = self.layer(nn.Linear(positions * units if flat else units, 2))
        self.then(lambda net, v: getattr(net, name)(v[i].flatten(1) if flat else v[i].mean(1)), 1, 2)

    def network(self):
        def forward(net, x):
            values = [x]
            for step in self.steps:
                values.append(step(net, values))
            return values[-1]

        return Net(forward, **self.layers).double().eval()


def linear(p):
    i = p.pick()
    positions, units = p.widths[i]
    width = int(p.rng.choice([2, 4, 6]))
    name = p.layer(nn.Linear(units, width, bool(p.rng.random() < 0.7)))
    p.then(lambda net, v: getattr(net, name)(v[i]), positions, width)


def again(p):
    """A layer that is there already is used once more."""
    known = [name for name, layer in p.layers.items() if isinstance(layer, nn.Linear)]
    if known:
        name = str(p.rng.choice(known))
        layer = p.layers[name]
        i = p.pick(lambda _, units: units == layer.in_features)
        if i is not None:
            p.then(lambda net, v: getattr(net, name)(v[i]), p.widths[i][0], layer.out_features)


def over_positions(p):
    i = p.pick()
    positions, units = p.widths[i]
    name = p.layer(nn.Linear(positions, positions))
    p.then(lambda net, v: getattr(net, name)(v[i].transpose(1, 2)).transpose(1, 2), positions, units)


def convolution(p):
    i = p.pick(lambda _, units: units % 2 == 0)
    positions, units = p.widths[i]
    groups = int(p.rng.choice([1, 2, units]))
    width = units if groups == units else int(p.rng.choice([2, 4]))
    name = p.layer(
        nn.Conv1d(units, width, 3, padding=1, groups=groups, padding_mode=str(p.rng.choice(["zeros", "circular"])))
    )
    p.then(lambda net, v: getattr(net, name)(v[i].transpose(1, 2)).transpose(1, 2), positions, width)


def function(p):
    i = p.pick()
    f = p.rng.choice([torch.tanh, torch.relu, F.gelu, torch.abs, torch.square, torch.sigmoid, F.softshrink, torch.neg])
    p.then(lambda net, v: f(v[i]), *p.widths[i])


def two(p):
    i = p.pick()
    j = p.pick(lambda *width: width == p.widths[i])
    f = p.rng.choice([torch.add, torch.sub, torch.mul, torch.maximum, lambda a, b: a / (1 + b.square())])
    p.then(lambda net, v: f(v[i], v[j]), *p.widths[i])


def scaled(p):
    i = p.pick()
    units = p.widths[i][1]
    shape = [(units,), (1,), (1, p.widths[i][0], units)][p.rng.integers(3)]
    name, plus = p.layer(nn.Parameter(torch.ones(shape))), bool(p.rng.random() < 0.5)
    p.then(lambda net, v: v[i] + getattr(net, name) if plus else v[i] * getattr(net, name), *p.widths[i])


def norm(p):
    i = p.pick(lambda positions, units: units % 2 == 0 and positions > 1)
    units = p.widths[i][1]
    kinds = [
        nn.LayerNorm(units),
        nn.RMSNorm(units),
        nn.BatchNorm1d(units),
        nn.GroupNorm(2, units),
        nn.InstanceNorm1d(units, affine=True),
    ]
    which = int(p.rng.integers(len(kinds)))
    name = p.layer(kinds[which])
    turned = which >= 2
    p.then(
        lambda net, v: getattr(net, name)(v[i].transpose(1, 2)).transpose(1, 2) if turned else getattr(net, name)(v[i]),
        *p.widths[i],
    )


def softmax(p):
    i = p.pick()
    dim = int(p.rng.choice([1, 2]))
    p.then(lambda net, v: v[i].softmax(dim), *p.widths[i])


def joined(p):
    i = p.pick()
    j = p.pick(lambda positions, _: positions == p.widths[i][0])
    p.then(lambda net, v: torch.cat([v[i], v[j]], 2), p.widths[i][0], p.widths[i][1] + p.widths[j][1])


def behind(p):
    i = p.pick()
    j = p.pick(lambda _, units: units == p.widths[i][1])
    p.then(lambda net, v: torch.cat([v[i], v[j]], 1), p.widths[i][0] + p.widths[j][0], p.widths[i][1])


def half(p):
    i = p.pick(lambda _, units: units % 2 == 0)
    positions, units = p.widths[i]
    part = int(p.rng.integers(2))
    p.then(lambda net, v: v[i].chunk(2, 2)[part], positions, units // 2)


def gate(p):
    i = p.pick(lambda _, units: units % 2 == 0)
    positions, units = p.widths[i]
    p.then(lambda net, v: F.glu(v[i], 2), positions, units // 2)


def attention(p):
    i = p.pick(lambda _, units: units % 2 == 0)
    j = p.pick(lambda *width: width == p.widths[i])
    k = p.pick(lambda *width: width == p.widths[i])
    positions, units = p.widths[i]

    def heads(value):
        return value.reshape(len(value), positions, 2, units // 2).transpose(1, 2)

    def run(net, v):
        y = (heads(v[i]) @ heads(v[j]).transpose(-2, -1)).softmax(-1) @ heads(v[k])
        return y.transpose(1, 2).reshape(len(v[i]), positions, units)

    p.then(run, positions, units)


def grouped_attention(p):
    """Two heads share keys and values."""
    i = p.pick(lambda _, units: units % 4 == 0)
    j = p.pick(lambda *width: width == p.widths[i])
    positions, units = p.widths[i]
    kind = int(p.rng.integers(3))

    def heads(value):
        return value.reshape(len(value), positions, -1, units // 4).transpose(1, 2)

    def shared(value):
        if kind == 0:
            return value.repeat_interleave(2, 1)
        if kind == 1:  # those of every other head
            return value.repeat(1, 2, 1, 1)
        return value[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)

    def run(net, v):
        keys, values = (shared(heads(half)) for half in v[j].chunk(2, 2))
        y = (heads(v[i]) @ keys.transpose(-2, -1)).softmax(-1) @ values
        return y.transpose(1, 2).reshape(len(v[i]), positions, units)

    p.then(run, positions, units)


def shifted(p):
    """Each position has the units of the one before it, and the first a number."""
    i = p.pick(lambda positions, _: positions > 1)
    if i is not None:
        number = float(p.rng.integers(2))
        p.then(lambda net, v: torch.cat([torch.full_like(v[i][:, :1], number), v[i][:, :-1]], 1), *p.widths[i])


def padded(p):
    """Further units, of which each is one number."""
    i = p.pick()
    more, number = (int(part) for part in p.rng.integers(1, 3, 2))
    p.then(lambda net, v: F.pad(v[i], (0, more), value=number - 1.0), p.widths[i][0], p.widths[i][1] + more)


def moved(p):
    i = p.pick()
    f = p.rng.choice([lambda a: a.flip(2), lambda a: a.roll(1, 2), lambda a: a.roll(1, 1), lambda a: a.repeat(1, 1, 1)])
    p.then(lambda net, v: f(v[i]), *p.widths[i])


def reshaped(p):
    """Positions become units, or units positions."""
    i = p.pick(lambda positions, units: positions * units <= 24)
    positions, units = p.widths[i]
    if p.rng.random() < 0.5:
        p.then(lambda net, v: v[i].reshape(len(v[i]), 1, -1), 1, positions * units)
    else:
        p.then(lambda net, v: v[i].transpose(1, 2).reshape(len(v[i]), 1, -1), 1, positions * units)


def pooled(p):
    i = p.pick()
    f = p.rng.choice(
        [lambda a: a.mean(1, keepdim=True), lambda a: a.amax(1, keepdim=True), lambda a: a.sum(1, keepdim=True)]
    )
    p.then(lambda net, v: f(v[i]), 1, p.widths[i][1])


def squeezed(p):
    """A number for all units, or a block of them, multiplies each."""
    i = p.pick(lambda _, units: units % 2 == 0)
    units = p.widths[i][1]
    blocks = int(p.rng.choice([1, 2]))

    def run(net, v):
        split = v[i].unflatten(2, (blocks, units // blocks))
        return (split * split.sigmoid().mean(-1, keepdim=True)).flatten(2)

    p.then(run, *p.widths[i])


def ordered(p):
    """Sorted, or picked by size, along positions or units: values alone, or what says whose they are."""
    i = p.pick()
    dim, kind = int(p.rng.choice([1, 2])), int(p.rng.integers(5))
    size = p.widths[i][dim - 1]

    def run(net, v):
        value = v[i]
        if kind == 0:
            return value.sort(dim).values
        if kind == 1:
            return value.topk(size, dim).values
        if kind == 2:
            return value - value.median(dim, keepdim=True).values
        if kind == 3:
            return value * (value.argmax(dim, keepdim=True) + 1)
        return value.gather(dim, value.argsort(dim))

    p.then(run, *p.widths[i])


def three(p):
    """Functions of three values, or of two and a number, that PyTorch has one operation for."""
    i = p.pick()
    j, k = (p.pick(lambda *width: width == p.widths[i]) for _ in range(2))
    kind = int(p.rng.integers(6))
    functions = [
        lambda a, b, c: torch.addcmul(a, b, c, value=0.5),
        lambda a, b, c: torch.addcdiv(a, b, 1 + c.square()),
        lambda a, b, c: torch.lerp(a, b, c),
        lambda a, b, c: torch.clamp(a, b, c),
        lambda a, b, c: torch.lerp(a, b, 0.3).addcmul_(b, c),
        lambda a, b, c: torch.hypot(a, torch.logaddexp(b, c)),
    ]
    p.then(lambda net, v: functions[kind](v[i], v[j], v[k]), *p.widths[i])


def distances(p):
    i = p.pick()
    positions, units = p.widths[i]
    name = p.layer(nn.Parameter(torch.ones(3, units)))
    p.then(lambda net, v: torch.cdist(v[i], getattr(net, name)), positions, 3)


def bilinear(p):
    i = p.pick()
    j = p.pick(lambda positions, _: positions == p.widths[i][0])
    name = p.layer(nn.Bilinear(p.widths[i][1], p.widths[j][1], 3))
    p.then(lambda net, v: getattr(net, name)(v[i], v[j]), p.widths[i][0], 3)


def weight_normed(p):
    i = p.pick()
    positions, units = p.widths[i]
    name = p.layer(weight_norm(nn.Conv1d(units, 4, 3, padding=1), dim=int(p.rng.integers(2))))
    p.then(lambda net, v: getattr(net, name)(v[i].transpose(1, 2)).transpose(1, 2), positions, 4)


def added_up(p):
    """Positions, or units, are sent to others and added up there."""
    i = p.pick()
    dim = int(p.rng.choice([1, 2]))
    index = torch.from_numpy(p.rng.integers(p.widths[i][dim - 1], size=p.widths[i][dim - 1]))
    p.then(lambda net, v: torch.zeros_like(v[i]).index_add(dim, index, v[i]), *p.widths[i])


def constants(p):
    """Products and sums with constants of few different numbers, which leave some units alike."""
    i = p.pick()
    positions, units = p.widths[i]
    kind = int(p.rng.integers(4))
    shape = [(units,), (positions, units), (units, 4), (positions, units, 4)][kind]
    numbers = torch.from_numpy(p.rng.integers(2, size=shape)).double()
    if kind < 2:
        plus = bool(p.rng.random() < 0.5)
        return p.then(lambda net, v: v[i] + numbers if plus else v[i] * numbers, positions, units)
    summed = bool(p.rng.random() < 0.5)

    def run(net, v):
        if summed:
            return (v[i].unsqueeze(-1) * numbers).sum(-2)
        return v[i] @ numbers if kind == 2 else torch.einsum("npu,puk->npk", v[i], numbers)

    p.then(run, positions, 4)


def matrices(p):
    """A matrix for each position, and numbers that are added or multiplied there."""
    i = p.pick()
    positions, units = p.widths[i]
    width = int(p.rng.choice([2, 4]))
    weight = p.layer(nn.Parameter(torch.ones(positions, units, width)))
    number = p.layer(nn.Parameter(torch.ones(positions, width)))
    way, kind = p.rng.integers(2), p.rng.integers(3)

    def run(net, v):
        own, more = getattr(net, weight), getattr(net, number)
        y = torch.einsum("npu,puk->npk", v[i], own) if way else (v[i].transpose(0, 1) @ own).transpose(0, 1)
        return (y, y + more, y.relu() * more)[kind]

    p.then(run, positions, width)


def in_heads(p):
    """A matrix for each of two heads, whose units lie side by side, or are put together."""
    i = p.pick()
    positions, units = p.widths[i]
    weight, other = (p.layer(nn.Parameter(torch.ones(2, units, 2))) for _ in range(2))
    way, kind = p.rng.integers(2), p.rng.integers(4)

    def run(net, v):
        first, second = getattr(net, weight), getattr(net, other)
        y = torch.einsum("npu,huk->nhpk", v[i], first) if way else v[i].unsqueeze(1) @ first
        if kind == 0:
            return y.transpose(1, 2).flatten(2)
        if kind == 1:
            return y.tanh().sum(1)
        if kind == 2:
            return torch.einsum("nhpk,huk->npu", y.relu(), second)
        return (y.tanh() @ second.mT).softmax(-1).mean(1)

    p.then(run, positions, (4, 2, units, units)[kind])


def slices(p):
    """Layers whose weights and biases are slices of one tensor."""
    i = p.pick()
    positions, units = p.widths[i]
    weight = p.layer(nn.Parameter(torch.ones(2, units, units)))
    bias = p.layer(nn.Parameter(torch.ones(2, units)))

    def run(net, v):
        y = v[i]
        for w, b in zip(getattr(net, weight), getattr(net, bias), strict=True):
            y = (y @ w + b).relu()
        return y

    p.then(run, positions, units)


def by_itself(p):
    """Each unit becomes two, as embeddings of numbers do."""
    i = p.pick(lambda _, units: units <= 4)
    if i is None:
        return
    positions, units = p.widths[i]
    weight, shift = (p.layer(nn.Parameter(torch.ones(units, 2))) for _ in range(2))
    p.then(
        lambda net, v: (v[i].unsqueeze(-1) * getattr(net, weight) + getattr(net, shift)).relu().flatten(2),
        positions,
        2 * units,
    )


# Parameters of several axes.
SEVERAL = (in_heads, slices, by_itself)

OPERATIONS = {
    f.__name__: f
    for f in (
        linear, again, over_positions, convolution, function, two, scaled, norm, softmax, joined, behind,
        half, gate, attention, grouped_attention, shifted, padded, moved, reshaped, pooled, squeezed, ordered,
        three, distances, bilinear, weight_normed, added_up, constants, matrices, *SEVERAL,
    )
} | {"more linear": linear, "one more linear": linear, "more function": function}  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)  # others are run on demand, with max_examples of thousands
@given(st.integers(0, 2**32))
def test_what_is_claimed_is_true_of_numbers(seed):
    net = Program(seed).network()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    result = sps.Topology.of(net, x).verify(net, seed=1, example=x)
    assert result.ok, result


def scalings_of(net, x, names):
    """Dimension of the rescalings of weights that leave a function as it is: a with Σ a_i θ_i ∂f/∂θ_i = 0 for all θ."""
    weights = {name: net.get_parameter(name).detach() for name in names}
    size = sum(weight.numel() for weight in weights.values())
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(size // 2 + 8):  # rectifiers are off in some
        own = {name: torch.randn(w.shape, dtype=w.dtype, generator=generator) for name, w in weights.items()}
        inputs = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        jacobian = torch.func.jacrev(lambda w, x=inputs: torch.func.functional_call(net, w, (x,)).flatten())(own)
        rows.append(torch.cat([(jacobian[name] * own[name]).flatten(1) for name in names], 1))
    matrix = torch.cat(rows)
    matrix = matrix / matrix.abs().amax(1, keepdim=True).clamp_min(1e-12)
    singular = torch.linalg.svdvals(matrix)
    return size - int((singular > 1e-10 * singular[0]).sum())


def usual(p):
    """Functions of which no two in a row are less than both, and that pass signs or scales on, or neither."""
    i = p.pick()
    f = p.rng.choice([torch.tanh, F.leaky_relu, F.gelu])
    p.then(lambda net, v: f(v[i]), *p.widths[i])


def batch_norm(p):
    i = p.pick()
    name = p.layer(nn.BatchNorm1d(p.widths[i][1]))
    p.then(lambda net, v: getattr(net, name)(v[i].transpose(1, 2)).transpose(1, 2), *p.widths[i])


# Operations of which no scales are left out: around `weight_norm`, of three groups of units and of one number for all
# units they are.
ORDINARY = {f.__name__: f for f in (linear, convolution, joined, behind, gate, usual, batch_norm, *SEVERAL)} | {
    "more linear": linear,
    "more usual": usual,
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_scalings_are_those_that_numbers_have(seed):
    net = Program(seed, ORDINARY).network()
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    topology = sps.Topology.of(net, x)
    assume(topology.num_weights < 150 and not topology.unfollowed)
    report = sps.certify(topology, {})
    claimed = 0 if report.scalings is None else report.scalings.before
    assert claimed == scalings_of(net, x, [tensor.name for tensor in topology.tensors])
