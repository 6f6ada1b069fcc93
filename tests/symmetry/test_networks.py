# ruff: noqa: E501
"""Certificates of networks that are not fully connected, against all relabellings and signs tried one by one.

The group of the network without masks is found by numbers: of all permutations within groups, with all signs, those that
leave the outputs of random weights as they are. What a mask leaves is then counted among these.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network.networks import (
    NETWORKS,
    SOME,
    Net,
    attention_by_hand,
    build,
    concatenated,
    conv,
    example,
    gated,
    heads_of_one_tensor,
    last_step,
    normed,
    numbers,
    rows_of_scales,
    side_by_side,
    stacked_layers,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import pyro_sps as sps
from pyro_sps.network.trace import trace
from pyro_sps.symmetry.certificate import certify
from pyro_sps.symmetry.entries import apply_to_places
from pyro_sps.symmetry.verify import random_weights


def residual(net, x):
    x = F.relu(net.n0(net.stem(x)))
    return net.out((x + net.n1(net.c1(x)).tanh()).mean((2, 3)))


def tied(net, ids):
    x = net.e(ids)
    return F.linear(x + net.a(x.tanh()), net.e.weight)[:, -1]


def two_heads(net, x):
    rows, length, _ = x.shape
    q, k, v = (layer(x).view(rows, length, 2, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return net.out(y.transpose(1, 2).reshape(rows, length, -1).mean(1))


def shared_keys(net, x):
    """Four heads of one unit, of which two share a key and a value."""
    q, k, v = (layer(x).transpose(1, 2).unsqueeze(-1) for layer in (net.q, net.k, net.v))
    k, v = (part.repeat_interleave(2, 1) for part in (k, v))
    return net.out(F.scaled_dot_product_attention(q, k, v).squeeze(-1).mean(2))


# Name: network, shape of a row, and whether every symmetry that numbers show is claimed.
FAMILIES = {
    "convolution and flatten": (lambda: nn.Sequential(conv(1, 2, 2), nn.Tanh(), conv(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)), (1, 3, 3), True),
    "flatten of positions": (lambda: nn.Sequential(conv(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)), (1, 3, 3), True),
    "grouped": (lambda: nn.Sequential(conv(1, 4, 1), nn.ReLU(), conv(4, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)), (1, 1, 1), True),
    "depthwise": (lambda: nn.Sequential(conv(1, 3, 1), nn.Tanh(), conv(3, 3, (1, 2), groups=3), nn.Tanh(), nn.Flatten(), nn.Linear(3, 1)), (1, 1, 2), True),
    "depthwise, twice as many": (lambda: nn.Sequential(conv(1, 2, 1), nn.Tanh(), conv(2, 4, 1, groups=2), nn.GELU(), nn.Flatten(), nn.Linear(4, 1)), (1, 1, 1), True),
    "residual, batch norm": (lambda: Net(residual, stem=conv(1, 2, 1), n0=nn.BatchNorm2d(2), c1=conv(2, 2, 1, bias=False), n1=nn.BatchNorm2d(2), out=nn.Linear(2, 1)), (1, 2, 2), True),
    "residual, group norm": (lambda: Net(residual, stem=conv(1, 4, 1, bias=False), n0=nn.GroupNorm(2, 4), c1=conv(4, 4, 1, bias=False), n1=nn.Identity(), out=nn.Linear(4, 1)), (1, 2, 2), True),
    "layer norm": (lambda: normed(nn.LayerNorm(4), nn.Tanh()), (3,), True),
    "rms norm": (lambda: nn.Sequential(nn.Linear(2, 3), nn.RMSNorm(3), nn.GELU(), nn.Linear(3, 1)), (2,), True),
    "concatenation": (lambda: Net(concatenated, a=nn.Linear(3, 3), b=nn.Linear(3, 3), out=nn.Linear(9, 1)), (3,), True),
    "lstm": (lambda: Net(last_step, cell=nn.LSTM(2, 3, batch_first=True), out=nn.Linear(3, 1)), (3, 2), True),
    "gru": (lambda: Net(last_step, cell=nn.GRU(2, 3, batch_first=True), out=nn.Linear(3, 1)), (3, 2), True),
    "rnn of two layers": (lambda: Net(last_step, cell=nn.RNN(2, 2, num_layers=2, batch_first=True), out=nn.Linear(2, 1)), (3, 2), True),
    "two heads": (lambda: Net(two_heads, q=nn.Linear(2, 4, False), k=nn.Linear(2, 4, False), v=nn.Linear(2, 2, False), out=nn.Linear(2, 1)), (3, 2), True),
    "shared keys": (lambda: Net(shared_keys, q=nn.Linear(2, 4, False), k=nn.Linear(2, 2, False), v=nn.Linear(2, 2), out=nn.Linear(4, 1)), (3, 2), True),
    "attention block": (lambda: Net(attention_by_hand, embed=nn.Linear(2, 2, False), qkv=nn.Linear(2, 6, False), proj=nn.Linear(2, 2, False), norm=nn.RMSNorm(2), out=nn.Linear(2, 1)), (3, 2), True),
    "gated unit": (lambda: nn.Sequential(nn.Linear(2, 6), nn.GLU(), nn.Linear(3, 1)), (2,), True),
    "gated, residual": (lambda: Net(gated, first=nn.Linear(2, 2), gate=nn.Linear(2, 2), up=nn.Linear(2, 2), down=nn.Linear(2, 2), out=nn.Linear(2, 1)), (2,), True),
    "tied embedding": (lambda: Net(tied, e=nn.Embedding(3, 3), a=nn.Linear(3, 3, False)), "ids", True),
    "weight norm, convolutions": (lambda: nn.Sequential(weight_norm(nn.Conv1d(1, 2, 2)), nn.Softplus(), weight_norm(nn.Conv1d(2, 2, 2)), nn.GELU(), nn.Flatten(), nn.Linear(2, 1)), (1, 3), True),
    "batch norm of the input": (lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), (2,), True),
    "radial basis functions": (lambda: Net(lambda n, x: n.out((-torch.cdist(n.a(x).relu(), n.centres)).exp()), a=nn.Linear(2, 3), centres=nn.Parameter(torch.randn(3, 3)), out=nn.Linear(3, 1)), (2,), True),
    "bilinear": (lambda: Net(lambda n, x: n.out(n.c(n.a(x).relu(), n.b(x).relu()).relu()), a=nn.Linear(2, 3), b=nn.Linear(2, 3), c=nn.Bilinear(3, 3, 2), out=nn.Linear(2, 1)), (2,), True),
    "sums of some": (lambda: Net(lambda n, x: n.out((n.a(x).relu()[..., None] * SOME).sum(1)), a=nn.Linear(2, 3), out=nn.Linear(3, 1)), (2,), True),
    "in order": (lambda: Net(lambda n, x: n.out(torch.cat([n.a(x).sort(1).values[:, 1:], n.b(x).topk(1).values], 1)), a=nn.Linear(2, 3), b=nn.Linear(2, 3), out=nn.Linear(3, 1)), (2,), True),
    "the largest": (lambda: Net(lambda n, x: n.out(torch.cat([n.a(x).argmax(1, keepdim=True) + n.b(x), n.a(x)], 1).relu()), a=nn.Linear(2, 3), b=nn.Linear(2, 3), out=nn.Linear(6, 1)), (2,), True),
    "in between": (lambda: Net(lambda n, x: n.out(torch.lerp(n.a(x).relu(), n.b(x), n.g(x).sigmoid())), a=nn.Linear(2, 3), b=nn.Linear(2, 3), g=nn.Linear(2, 3), out=nn.Linear(3, 1)), (2,), True),
    "heads of one tensor": (lambda: Net(heads_of_one_tensor, q=numbers(2, 2, 2), k=numbers(2, 2, 2), shift=numbers(2, 2), v=numbers(2, 2, 1), o=numbers(2, 1, 1), out=nn.Linear(1, 1)), (3, 2), True),
    "side by side": (lambda: Net(side_by_side, first=numbers(2, 2, 2), bias=numbers(2, 1, 2), second=numbers(2, 2, 2), out=nn.Linear(2, 1)), (2,), True),
    "stacked layers": (lambda: Net(stacked_layers, a=nn.Linear(2, 3), weights=numbers(2, 3, 3), biases=numbers(2, 3), out=nn.Linear(3, 1)), (2,), True),
    "rows of scales": (lambda: Net(rows_of_scales, a=nn.Linear(2, 4), scale=numbers(2, 4), shift=numbers(2, 4), out=nn.Linear(4, 1)), (2,), True),
    "affine embeddings": (lambda: Net(lambda n, x: n.out(torch.addcmul(n.bias, n.weight, x[..., None]).relu().flatten(1)), weight=numbers(3, 3), bias=numbers(3, 3), out=nn.Linear(9, 1)), (3,), True),
    "three sides": (lambda: Net(lambda n, x: n.out(torch.einsum("ni,oij,nj->no", n.a(x).tanh(), n.weight, n.b(x).tanh()).relu()), a=nn.Linear(2, 2), b=nn.Linear(2, 2), weight=numbers(2, 2, 2), out=nn.Linear(2, 1)), (2,), True),
    "product of two": (lambda: Net(lambda n, x: n.out(n.a(x) * n.b(x)), a=nn.Linear(2, 2), b=nn.Linear(2, 2), out=nn.Linear(2, 1)), (2,), False),
}  # fmt: skip


class Case:
    """A network, and every relabelling with signs that numbers show to be a symmetry of it.

    Attributes:
        topology: Its topology.
        index: For each tensor where its entries come from, by symmetry, shape (symmetries, entries).
        sign: Their signs.
        unsigned: Which symmetries change no sign.
    """

    def __init__(self, name):
        make, shape, self.complete = FAMILIES[name]
        torch.manual_seed(0)
        net = make().double().eval()
        x = torch.randint(0, 3, (4, 3)) if shape == "ids" else torch.randn(4, *shape, dtype=torch.float64)
        self.topology, function = trace(net, x[:2])
        topology = self.topology
        vertices = topology.first[-1] if topology.structure is None else len(topology.structure.unit)
        if topology.structure is None:
            flips = np.repeat([g.odd and not g.pinned for g in topology.groups], [g.size for g in topology.groups])
        else:
            flips = topology.structure.flips & (topology.structure.unit >= 0)
        free = np.flatnonzero(flips)
        orders = [
            list(itertools.permutations(range(group.size))) if not group.pinned else [tuple(range(group.size))]
            for group in topology.groups
        ]
        count = math.prod(map(len, orders)) * 2 ** len(free)
        assert count <= 200_000, count
        generator = torch.Generator().manual_seed(1)
        weights = random_weights(topology, generator)
        numbered = {  # with the sign in the sign, and the place in the size
            t.name: torch.arange(1, t.numel + 1, dtype=torch.float64).reshape(t.shape) for t in topology.tensors
        }
        with torch.no_grad():
            expected = function(weights, x)
        kept = []
        first = topology.first[:-1]
        # Signs that are wrong for the identity are wrong for every relabelling that is right, so relabellings first.
        for order in itertools.product(*orders):
            goes = np.concatenate([start + np.array(own) for start, own in zip(first, order, strict=True)])
            candidates = []
            for signs in itertools.product([1.0, -1.0], repeat=len(free)):
                factors = np.ones(vertices)
                factors[free] = signs
                candidates.append((goes, factors))
            try:
                apply_to_places(topology, numbered, *candidates[0])
            except ValueError:  # it takes the units of a grouped convolution apart
                continue
            for chunk in (
                itertools.batched(candidates, 512) if hasattr(itertools, "batched") else _batched(candidates, 512)
            ):
                moved = [apply_to_places(topology, numbered, *candidate) for candidate in chunk]
                stacked = {key: torch.stack([one[key] for one in moved]) for key in numbered}
                own = {key: weights[key].flatten()[v.abs().long() - 1] * v.sign() for key, v in stacked.items()}
                with torch.no_grad():
                    same = (function(own, x) - expected).abs().flatten(1).amax(1) < 1e-9
                for i in torch.nonzero(same).flatten().tolist():
                    kept.append((chunk[i][1], {key: value[i].flatten().numpy() for key, value in stacked.items()}))
        # Moves that do the same to the weights are one.
        unique = {b"".join(v[key].tobytes() for key in sorted(v)): (factors, v) for factors, v in kept}
        self.index = {key: np.stack([np.abs(v[key]) - 1 for _, v in unique.values()]).astype(int) for key in numbered}
        self.sign = {key: np.stack([np.sign(v[key]) for _, v in unique.values()]) for key in numbered}
        self.unsigned = np.array([(factors > 0).all() for factors, _ in unique.values()])

    def left(self, masks, values):
        """Numbers of relabellings, and of relabellings with signs, that keep the fixed entries."""
        stays = np.ones(len(self.unsigned), dtype=bool)
        for key, index in self.index.items():
            fixed, value = ~masks[key].numpy().ravel(), values[key].numpy().ravel()
            value = np.where(fixed, value, 0.0)
            stays &= (fixed[index] == fixed).all(1) & (self.sign[key] * value[index] == value).all(1)
        return int((stays & self.unsigned).sum()), int(stays.sum())


def _batched(items, size):
    for start in range(0, len(items), size):
        yield items[start : start + size]


@functools.cache
def case(name):
    return Case(name)


def random_masks(topology, rng):
    """Masks and values at random: single entries, whole connections, or patterns; values that are often equal."""
    kind, density = rng.integers(4), rng.random() ** 2
    masks, values = {}, {}
    for tensor in topology.tensors:
        shape = tensor.shape
        free = rng.random(shape) >= density
        if kind == 1 and len(shape) > 1:  # rows
            free = np.broadcast_to((rng.random(shape[0]) >= density).reshape(-1, *(1,) * (len(shape) - 1)), shape)
        elif kind == 2:
            free = np.fromfunction(lambda i, *j: (i + sum(j)) % 2 == 0, shape)
        elif kind == 3 and not tensor.is_matrix:
            free = np.ones(shape, dtype=bool)
        if len(tensor.places) > 2:  # its entries cannot be fixed
            free = np.ones(shape, dtype=bool)
        masks[tensor.name] = torch.from_numpy(np.array(free, dtype=bool))
        choices = ([0.0, -0.0], [1.0, -1.0], [0.0, 1.0, -1.0, 2.0])[rng.integers(3)]
        values[tensor.name] = torch.from_numpy(np.asarray(rng.choice(choices, shape), dtype=np.float64))
    if kind == 3:
        for joint in topology.joints:
            connected = torch.from_numpy(rng.random([topology.groups[g].size for g in joint.groups]) < density)
            masks[joint.tensor] = ~topology.entries_of(joint, connected)
    return masks, values


def counts(topology, masks, values):
    report = certify(topology, masks, values)
    plain = report.permutations.after
    return plain, plain if report.signed_permutations is None else report.signed_permutations.after


CASES = 170  # of each family: more than 3,000 in all


@pytest.mark.parametrize("name", FAMILIES)
def test_certificates_equal_brute_force(name):
    own = case(name)
    topology = own.topology
    free = topology.check_masks({})
    zeros = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in topology.tensors}
    whole = own.left(free, zeros)
    claimed = counts(topology, free, zeros)
    assert (
        claimed == whole if own.complete else all(found % one == 0 for found, one in zip(whole, claimed, strict=True))
    )
    rng = np.random.default_rng([5, sorted(FAMILIES).index(name)])
    symmetric = 0
    for _ in range(CASES if own.complete else 0):
        masks, values = random_masks(topology, rng)
        found = own.left(masks, values)
        assert counts(topology, masks, values) == found
        symmetric += found[1] > 1
    assert symmetric > 10 or not own.complete  # the cases are not all rigid


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32))
def test_a_mask_and_a_distinct_value_leave_subgroups(name, seed):
    topology = case(name).topology
    rng = np.random.default_rng(seed)
    masks, values = random_masks(topology, rng)
    before = counts(topology, masks, values)
    for all_of_it, some in zip(counts(topology, topology.check_masks({}), values), before, strict=True):
        assert all_of_it % some == 0
    fixable = {key: mask for key, mask in masks.items() if len(topology[key].places) < 3}
    free = [(key, index) for key, mask in fixable.items() for index in torch.nonzero(mask).tolist()]
    if free:
        key, index = free[rng.integers(len(free))]
        masks[key][tuple(index)] = False
        values[key][tuple(index)] = 17.25
        for larger, smaller in zip(before, counts(topology, masks, values), strict=True):
            assert larger % smaller == 0


@pytest.mark.parametrize("name", ["lstm", "grouped", "residual, group norm", "attention block"])
@pytest.mark.parametrize("scheme", [sps.Unmasked(), sps.Light(), sps.Heavy()], ids=["none", "light", "heavy"])
@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_what_a_scheme_leaves_is_what_numbers_show(name, scheme):
    own = case(name)
    masks = scheme(own.topology)
    zeros = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in own.topology.tensors}
    assert counts(own.topology, masks, zeros) == own.left(masks, zeros)


@pytest.mark.parametrize("name", ["grouped", "depthwise, twice as many"])
@pytest.mark.parametrize("values", [None, sps.Ladder()], ids=["equal", "distinct"])
def test_rigid_leaves_nothing_of_grouped_convolutions(name, values):
    """What is fixed is rigid by all relabellings tried, and with equal constants no part of it is."""
    own = case(name)
    topology = own.topology
    masks = sps.Rigid()(topology, values=values)
    constants = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in topology.tensors}
    left = own.left(masks, constants if values is None else values(topology, masks).tensors(torch.float64))
    assert left[0] == 1
    if values is None:
        for key, mask in masks.items():
            for index in torch.nonzero(~mask).tolist():
                fewer = {**masks, key: mask.clone()}
                fewer[key][tuple(index)] = True
                assert own.left(fewer, constants)[0] > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_rigid_removes_the_signs_of_norms_gates_and_cells_too(name):
    own = case(name)
    masks = sps.Rigid(signs=True)(own.topology, values=sps.Ladder())
    constants = sps.Ladder()(own.topology, masks).tensors(torch.float64)
    assert counts(own.topology, masks, constants) == (1, 1)
    if own.complete:
        assert own.left(masks, constants) == (1, 1)


GROUPED = {
    "shuffled": (nn.Sequential(conv(2, 4, 1), nn.ReLU(), conv(4, 4, 1, groups=2), nn.ReLU(), nn.ChannelShuffle(2), conv(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2)), (2, 1, 1)),
    "on the input": (nn.Sequential(conv(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)), (2, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("entries", ["one", "connection"])
@pytest.mark.parametrize("values", [None, sps.Ladder()], ids=["equal", "distinct"])
def test_rigid_fixes_whole_connections_of_grouped_convolutions(name, entries, values):
    net, shape = GROUPED[name]
    topology = sps.Topology.of(net, torch.zeros(2, *shape))
    masks = sps.Rigid(entries=entries)(topology, values=values)
    constants = None if values is None else values(topology, masks)
    assert sps.certify(topology, masks, constants).permutations.is_rigid
    if entries == "connection":
        for mask in (masks[t.name] for t in topology.matrices if len(t.shape) > 2):
            kernels = mask.flatten(2)
            assert (kernels.all(-1) | ~kernels.any(-1)).all()


def test_rigid_says_where_no_mask_of_a_grouped_convolution_was_found():
    net = nn.Sequential(conv(1, 6, 1), nn.ReLU(), conv(6, 6, 1, groups=6), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(ValueError, match="cannot tell the 6 units of layer 1 apart with equal constants"):
        sps.Rigid()(sps.Topology.of(net, torch.zeros(2, 1, 1, 1)))


@pytest.mark.parametrize("name", ["residual, group norm", "layer norm", "attention block", "lstm"])
def test_vertices_that_are_held_do_not_change_what_is_counted(name, monkeypatch):
    """The way of large networks, on small ones."""
    monkeypatch.setattr("pyro_sps.symmetry.automorphisms._LARGE", 2)
    own = case(name)
    rng = np.random.default_rng(11)
    for _ in range(60):
        masks, values = random_masks(own.topology, rng)
        assert counts(own.topology, masks, values) == own.left(masks, values)


@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_held_vertices_and_one_search_agree(monkeypatch):
    topology = sps.Topology.of(sps.networks.resnet20(norm="group", blocks=1, width=8), torch.zeros(2, 3, 8, 8))
    masks = sps.Light()(topology)
    found = certify(topology, masks).signed_permutations.after
    monkeypatch.setattr("pyro_sps.symmetry.automorphisms._LARGE", 10**9)
    assert found == certify(topology, masks).signed_permutations.after > 2**60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_signs_of_a_large_residual_network_are_counted():
    """Each block of group norms has signs that hold another's: holding both ways of each took for ever."""
    bnn = sps.BNN(sps.networks.resnet20(norm="group"), sps.Light(), sps.Zero(), example=torch.zeros(2, 3, 8, 8))
    report = bnn.symmetry(time_limit=300)
    assert report.signed_permutations.after % report.permutations.after == 0
    assert len(report.signed_permutations.generators) > 100
    assert report.verify(bnn, most=20).ok


def test_a_certificate_is_tried_on_numbers_on_request():
    net = nn.Sequential(conv(1, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    topology, function = trace(net, torch.zeros(2, 1, 3, 3))
    masks = topology.check_masks({"0.weight": torch.arange(16).reshape(4, 1, 2, 2) >= 8})
    values = {t.name: torch.full(t.shape, 0.3) for t in topology.tensors}
    assert certify(topology, masks, values).verification is None
    for verify in (net, function):
        report = certify(topology, masks, values, verify=verify)
        assert report.verification.ok
        assert report.verification.checked > 10
        assert "tried on numbers" in str(report)
        assert report.to_dict()["verification"]["ok"]

    def unlike(weights, x):
        return function(weights, x) + weights["0.bias"][..., :1, None]

    with pytest.warns(UserWarning, match="what is claimed is not true of the network's numbers"):
        assert not certify(topology, masks, values, verify=unlike).verification.ok
    with pytest.raises(ValueError, match="net has another topology"):
        certify(topology, masks, values, verify=nn.Sequential(conv(1, 3, 2), nn.Flatten(), nn.Linear(12, 2)))
    bnn = sps.BNN(sps.mlp([2, 4, 1]), sps.Rigid(), sps.Ladder())
    assert bnn.symmetry(verify=True).verification.ok
    with pytest.raises(ValueError, match="verify must be True or False"):
        bnn.symmetry(verify=net)


def test_outputs_that_are_not_finite_are_no_violation():
    """A direction of `weight_norm` that is fixed at zero has no length."""
    net = nn.Sequential(weight_norm(nn.Conv1d(2, 3, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1)).double()
    topology = sps.Topology.of(net, torch.zeros(2, 2, 2, dtype=torch.float64))
    masks = topology.check_masks({})
    masks["0.parametrizations.weight.original1"][0] = False
    report = certify(topology, masks, verify=net)
    assert report.verification.ok
    assert report.verification.checked > 3


@pytest.mark.parametrize("name", ["residual gain", "divided by one number", "one scale"])
def test_one_number_for_several_units_has_a_sign_that_is_told_of(name):
    """It is not among those that are counted; nothing is called rigid while it is left."""
    torch.manual_seed(0)
    net = NETWORKS[name][0]().double()
    topology, function = trace(net, torch.randn(2, 3, dtype=torch.float64))
    number = topology.uncounted[0]
    weights = random_weights(topology, torch.Generator().manual_seed(0))
    x = torch.randn(5, 3, dtype=torch.float64)
    other = {key: -value if key in (number, "b.weight", "b.bias") else value for key, value in weights.items()}
    if name != "residual gain":
        other = {key: -value if key in (number, "out.weight") else value for key, value in weights.items()}
    torch.testing.assert_close(function(other, x), function(weights, x))

    for values in (sps.Constant(1.0), sps.Ladder()):
        bnn = sps.BNN(net, sps.Rigid(signs=True), values, example=x)
        assert not bnn.masks[number].any()
        assert bnn.symmetry().is_rigid
        masks = {**bnn.masks, number: torch.ones_like(bnn.masks[number])}
        report = certify(topology, masks, bnn.fixed)
        assert all(one.is_rigid for one in report.classes)
        assert (report.is_rigid, report.uncounted) == (False, (number,))
        assert any(note.startswith(f"{number}: one number for several units") for note in report.notes)
        assert report.to_dict()["uncounted"] == [number]
        zero = {**bnn.fixed, number: torch.zeros_like(bnn.fixed[number])}
        assert certify(topology, bnn.masks, zero).uncounted == (number,)
    with pytest.raises(ValueError, match="cannot remove sign flips with values=Zero"):
        sps.Rigid(signs=True)(topology, values=sps.Zero())


def test_where_units_are_told_apart_for_want_of_a_rule_is_told():
    """What is counted there is true, and may not be all."""
    found = {name: sps.Topology.of(build(name), example(name)).unfollowed for name in NETWORKS}
    assert {name for name, places in found.items() if places} == {
        "with itself, rolled", "two of three experts", "the largest", "padded units",
    }  # fmt: skip
    mean = Net(lambda n, x: ((x @ n.first).tanh() @ n.second).mean(0), first=numbers(3, 2, 4), second=numbers(3, 4, 1))
    topology = sps.Topology.of(mean, torch.zeros(2, 2))
    report = certify(topology, {})
    members = math.factorial(3) * math.factorial(4) ** 3
    assert members == report.permutations.before < math.factorial(12)  # as a sum they are one network of 12 units
    assert any("there may be more" in note for note in report.notes)
    masks = {tensor.name: torch.zeros(tensor.shape, dtype=torch.bool) for tensor in topology.tensors}
    values = {
        tensor.name: torch.arange(1, tensor.numel + 1, dtype=torch.float64).reshape(tensor.shape)
        for tensor in topology.tensors
    }
    fixed = certify(topology, masks, values)
    assert all(one.is_rigid for one in fixed.classes)
    assert fixed.is_rigid is None


def test_axes_that_say_together_which_unit_it_is():
    """Counts of networks whose parameters have more than two axes, or a unit for each number."""
    two, four, five = math.factorial(2), math.factorial(4), math.factorial(5)
    expected = {
        "heads of one tensor": two * (two * two) ** 2 * four,  # heads; of each queries and values; what is read of them
        "side by side": 6 * four**3 * two,  # networks; units of each; classes, which are averaged in pairs
        "stacked layers": four**3,
        "affine embeddings": four**3,
        "periodic embeddings": four**3 * two**3,
        "feature tokens": four * two * (two * two) ** 2 * five,  # the width; heads as above; the hidden layer
    }
    for name, count in expected.items():
        topology = sps.Topology.of(build(name), example(name))
        assert (certify(topology, {}).permutations.before, topology.unfollowed) == (count, ()), name
    # One tensor of all heads is what one layer of all of them is.
    topology = sps.Topology.of(build("heads of one tensor"), example("heads of one tensor"))
    plain = Net(
        heads_of_one_layer, q=nn.Linear(3, 4), k=nn.Linear(3, 4, False), v=nn.Linear(3, 4, False),
        o=nn.Linear(4, 4, False), out=nn.Linear(4, 2),
    )  # fmt: skip
    layered = sps.Topology.of(plain, example("heads of one tensor"))
    for one, other in zip(certify(topology, {}).classes, certify(layered, {}).classes, strict=True):
        assert (one.name, one.before) == (other.name, other.before)
    assert sorted(m.size for m in topology.mixtures) == sorted(m.size for m in layered.mixtures) == [2, 2, 2, 2]


def heads_of_one_layer(net, x):
    q, k, v = (layer(x).unflatten(2, (2, 2)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    z = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return net.out(net.o(z.transpose(1, 2).flatten(2)).tanh().mean(1))


class Block(nn.Module):
    """A residual block of ConvNeXt (Liu et al. 2022): the norm's sign is shared by channels whose own signs are free."""

    def __init__(self, width):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gain * self.down(F.gelu(self.up(inner)))).permute(0, 3, 1, 2)


def test_channels_are_not_held_one_after_the_other(monkeypatch):
    """How often a graph is refined does not grow with the channels, and their signs and orders are counted."""
    from pyro_sps.symmetry import automorphisms

    held, times = automorphisms._held, []
    monkeypatch.setattr(automorphisms, "_held", lambda *args: times.append(1) or held(*args))
    done = []
    for width in (20, 40):
        net = nn.Sequential(nn.Conv2d(1, width, 2), Block(width), Block(width), nn.Flatten(), nn.Linear(4 * width, 1))
        topology = sps.Topology.of(net, torch.randn(2, 1, 3, 3))
        report = certify(topology, sps.Unmasked()(topology))
        orders = math.factorial(width) * math.factorial(2 * width) ** 2
        assert report.permutations.before == orders
        # Of a channel the sign; in each block those of its gain and of its scale in the norm; and one of the whole norm.
        assert report.signed_permutations.before == orders * 2 ** (width + 2 * (2 * width + 1))
        done.append(len(times))
        times.clear()
    assert done[0] == done[1] > 0


@pytest.mark.parametrize("name", ["one scale of the input", "scale and shift", "slots that are not named"])
def test_other_numbers_are_counted_or_have_no_sign(name):
    make, shape = NETWORKS[name]
    assert sps.Topology.of(make(), torch.randn(2, *shape)).uncounted == ()


def test_what_was_not_determined_without_masks_is_not_called_one():
    make, shape = NETWORKS["multihead attention"]
    report = certify(sps.Topology.of(make(), torch.randn(2, *shape)), {}, time_limit=0)
    assert report.signed_permutations is not None
    for one in (report.permutations, report.signed_permutations):
        assert (one.before, one.after, one.log10_before, one.is_rigid) == (None, None, None, None)
        assert one.text(after=False) == "not determined"
        assert one.to_dict()["before"] is None
    assert str(report).count("not determined within 0 s") == 2
