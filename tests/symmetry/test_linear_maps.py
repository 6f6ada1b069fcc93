"""Linear maps of units are ridges: their dimension is that of the null space of the network's derivative by weights."""

import pytest
import torch
from network.networks import Net
from torch import nn

import pyro_sps as sps
from pyro_sps.network.trace import trace


def attention():
    """Two heads of two dimensions."""

    def forward(net, x):
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in net.into(x).chunk(3, -1))
        y = ((q @ k.mT) / 2**0.5).softmax(-1) @ v
        return net.out(y.transpose(1, 2).flatten(2)).tanh().mean(1)

    return Net(forward, into=nn.Linear(4, 12, bias=False), out=nn.Linear(4, 4, bias=False)), (2, 4, 4), [2] * 4


def grouped():
    """Four heads of two dimensions, of which two share keys and values."""

    def forward(net, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (net.q, net.k, net.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return net.out(y.transpose(1, 2).flatten(2)).tanh().mean(1)

    layers = {"q": nn.Linear(4, 8, bias=False), "k": nn.Linear(4, 4, bias=False), "v": nn.Linear(4, 4, bias=False)}
    return Net(forward, **layers, out=nn.Linear(8, 4, bias=False)), (2, 4, 4), [2] * 4


def projection():
    """The state of an LSTM that is projected."""
    net = Net(
        lambda net, x: net.last(net.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(2, 4, proj_size=2, bias=False, batch_first=True),
        last=nn.Linear(2, 2, bias=False),
    )
    return net, (2, 4, 2), [2]


def bottleneck():
    """Channels without an activation."""
    net = nn.Sequential(
        nn.Conv1d(3, 2, 1, bias=False),
        nn.Conv1d(2, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 2, bias=False),
    )
    return net, (2, 3, 4), [2]


def table():
    """Embedded words that are averaged and read by a layer."""
    net = Net(
        lambda net, x: net.last(net.first(net.words(x).mean(1)).tanh()),
        words=nn.Embedding(5, 3),
        first=nn.Linear(3, 4, bias=False),
        last=nn.Linear(4, 2, bias=False),
    )
    return net, None, [3]


def nullity(function, topology, masks, x):
    """Dimension of the changes of the free weights that change no output, at random weights with zeros where fixed."""
    generator = torch.Generator().manual_seed(1)
    free = [(t.name, masks[t.name]) for t in topology.tensors]
    weights = [torch.randn(mask.shape, dtype=torch.float64, generator=generator)[mask] for _, mask in free]

    def outputs(*own):
        full = {}
        for (name, mask), value in zip(free, own, strict=True):
            full[name] = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, value)
        return function(full, x).flatten()

    parts = torch.autograd.functional.jacobian(outputs, tuple(weights))
    derivative = torch.cat(parts, 1)
    singular = torch.linalg.svdvals(derivative)
    return derivative.shape[1] - int((singular > 1e-9 * singular[0]).sum())


@pytest.mark.parametrize("made", [attention, grouped, projection, bottleneck, table])
def test_dimensions_are_those_of_the_null_space(made):
    net, shape, sizes = made()
    words = shape is None
    example = torch.zeros(2, 3, dtype=torch.int64) if words else torch.zeros(shape)
    topology, function = trace(net, example)
    assert [mixture.size for mixture in topology.mixtures] == sizes
    assert topology.verify(net, example=example).ok
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randint(0, 5, (60, 3), generator=generator)
        if words
        else torch.randn(60, *shape[1:], dtype=torch.float64, generator=generator)
    )
    masks = topology.check_masks({})
    report = sps.certify(topology, masks)
    assert report.linear_maps.before == report.linear_maps.after == sum(size**2 for size in sizes)
    assert nullity(function, topology, masks, x) == report.linear_maps.after
    for trial in range(6):  # with some weights fixed at zero, few enough that no more is lost than maps
        masks = {}
        for tensor in topology.tensors:
            mask = torch.ones(tensor.shape, dtype=torch.bool)
            if tensor is not topology.tensors[-1]:
                mask.view(-1)[torch.randperm(mask.numel(), generator=generator)[: 1 + trial % 2]] = False
            masks[tensor.name] = mask
        assert nullity(function, topology, masks, x) == sps.certify(topology, masks).linear_maps.after


def test_constants_that_are_not_zero_hold_units():
    net, shape, _ = bottleneck()
    topology = sps.Topology.of(net, torch.zeros(shape))
    mask = torch.ones(2, 3, 1, dtype=torch.bool)
    mask[0] = False
    for value, left in ((0.0, 3), (1.0, 2)):  # zeros: unit 0 may be scaled too
        values = {"0.weight": torch.full((2, 3, 1), value)}
        assert sps.certify(topology, {"0.weight": mask}, values).linear_maps.after == left


@pytest.mark.parametrize(
    "spoil",
    [torch.relu, torch.abs, lambda h: h * h.sigmoid().mean(1, keepdim=True), lambda h: h.amax(2, keepdim=True), None],
)
def test_what_is_not_linear_is_not_claimed(spoil):
    net = Net(
        lambda net, x: net.last((net.scale[:, None] * net.first(x) if spoil is None else spoil(net.first(x))).mean(2)),
        first=nn.Conv1d(2, 3, 1),
        scale=nn.Parameter(torch.ones(3)),
        last=nn.Linear(3, 2),
    )
    topology = sps.Topology.of(net, torch.zeros(2, 2, 4))
    if spoil is not None and spoil not in (torch.relu, torch.abs):
        # A factor that all units share is another matter: the mean over units already ties them.
        assert all(mixture.size < 3 for mixture in topology.mixtures)
    else:
        assert not topology.mixtures
    assert topology.verify(net, example=torch.zeros(2, 2, 4)).ok


def test_zeros_leave_all_scalings_among_the_maps():
    net = sps.networks.vit_tiny(classes=5, size=32, patch=16, width=16, depth=1, heads=2)
    topology = sps.Topology.of(net, torch.zeros(2, 3, 32, 32))
    units = sum(mixture.size for mixture in topology.mixtures)
    for share in (0.3, 0.6, 0.9):
        masks = sps.Random(like=share)(topology, torch.Generator().manual_seed(0))
        assert sps.certify(topology, masks).linear_maps.after >= units
