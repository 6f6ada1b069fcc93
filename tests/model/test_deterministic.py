"""Networks that are stochastic in some parts and deterministic in others."""

import copy
import pickle
import warnings
from collections import OrderedDict

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_sps as sps

X = torch.linspace(-1, 1, 30, dtype=torch.float64).unsqueeze(1)


def net(dtype=None):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def fit(bnn, **options):
    return sps.fit(bnn, X, X**2, **{"num_steps": 40, "progress": False, "init": "random", **options})


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (["0"], ["0.weight", "0.bias"]),
        (["0", "2.bias"], ["0.weight", "0.bias", "2.bias"]),
        ({"0.weight": None}, ["0.weight"]),
    ],
)
def test_named_parts_keep_their_weights(parts, names):
    own = net()
    bnn = sps.BNN(own, scheme=sps.Unmasked(), values=sps.Zero(), deterministic=parts)
    assert list(bnn.deterministic) == names
    fitted = fit(bnn).bnn
    for name, parameter in own.named_parameters():
        if name in names:
            torch.testing.assert_close(fitted.fixed[name], parameter.detach())
        assert fitted.masks[name].all() == (name not in names)


def test_types_of_modules_are_parts():
    class Scaled(nn.Linear):
        pass

    own = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"names <class .*Scaled'>, which has no parameters in net"):
        sps.BNN(own, deterministic=[Scaled])
    with pytest.raises(ValueError, match="all weights"):
        sps.BNN(own, deterministic=[nn.Linear])


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ("0", TypeError, r"write \['0'\]"),
        (["5"], ValueError, r"^deterministic names '5', which has no parameters .* have some are \['0', '2', '4'\]$"),
        ([3], TypeError, "names and types of submodules, got 3"),
        ({"0": 1.0}, ValueError, r"deterministic\['0'\] must be None .* or sps.Point\(\), got 1.0"),
    ],
)
def test_wrong_parts_are_told(parts, error, words):
    with pytest.raises(error, match=words):
        sps.BNN(net(), deterministic=parts)


@pytest.mark.parametrize("example", [None, torch.zeros(2, 1, 8, 8)], ids=["without", "with an example"])
def test_wrong_parts_of_networks_that_are_run_are_told_as_such(example):
    """And not that the example was wrong, or that one is missing."""
    layers = [layer for _ in range(15) for layer in (nn.Conv2d(1, 1, 1), nn.ReLU())]
    own = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 2))
    words = r"^deterministic names '1', which has no parameters in net; .* \['0', '2', .*'22'\] and 4 more$"
    with pytest.raises(ValueError, match=words):
        sps.BNN(own, deterministic=["1"], example=example)


def test_weights_without_values_cannot_be_kept():
    with pytest.raises(ValueError, match=r"'0.weight'\] keep or start from the weights of net, .* meta device"):
        sps.BNN(sps.mlp([1, 5, 1], device="meta"), deterministic=["0"])


def test_scheme_and_values_are_those_of_the_rest():
    own = net()
    bnn = sps.BNN(own, sps.Heavy(), sps.Constant(2.0, learn=True), deterministic=["0"])
    assert bnn.scaled == ["2.weight", "4.weight"][: len(bnn.scaled)]
    fitted = fit(bnn).bnn
    c = fitted.constant_scale()
    assert c != 2.0
    torch.testing.assert_close(fitted.fixed["0.weight"], own[0].weight.detach())
    fixed = fitted.fixed["2.weight"][~fitted.masks["2.weight"]]
    torch.testing.assert_close(fixed.abs(), c.detach().expand_as(fixed))


def test_map_values_are_sought_for_the_rest():
    own = net()
    bnn = sps.BNN(own, sps.Random(like=0.5), sps.MAP(num_steps=50), deterministic=["4"])
    fitted = fit(bnn, init=None).bnn
    torch.testing.assert_close(fitted.fixed["4.weight"], own[4].weight.detach())
    assert fitted.fixed["2.weight"][~fitted.masks["2.weight"]].abs().min() > 0


def test_points_and_posterior_of_a_linear_model_have_their_closed_form():
    """For y = w x + b + noise the best mean-field w and point b are the joint MAP, whatever the variance of w."""
    torch.manual_seed(0)
    x = torch.randn(40, 1, dtype=torch.float64) + 0.5
    y = 1.3 * x - 0.7 + 0.2 * torch.randn_like(x)
    own = nn.Linear(1, 1).double()
    bnn = sps.BNN(own, sps.Unmasked(), sps.Point(), sps.Gaussian(0.2), prior_scale=1.0, deterministic=["bias"])
    fitted = sps.fit(
        bnn,
        x,
        y,
        num_steps=2500,
        standardize=False,
        num_particles=8,
        learning_rate=0.02,
        final_learning_rate=1e-4,
        progress=False,
        init="random",
    )
    design = torch.cat([x, torch.ones_like(x)], 1)
    precision = design.T @ design / 0.04 + torch.eye(2, dtype=torch.float64)
    mode = torch.linalg.solve(precision, design.T @ y / 0.04).flatten()
    found = torch.cat([fitted.guide.loc.detach(), fitted.bnn.fixed["bias"]])
    deviation = precision[0, 0].rsqrt()  # of w given b
    torch.testing.assert_close(found, mode, atol=0.15 * deviation.item(), rtol=0)
    torch.testing.assert_close(fitted.guide.scale.detach(), deviation.reshape(1), atol=0, rtol=0.1)


def test_points_move_and_are_saved_and_predict_the_same(tmp_path):
    own = net()
    bnn = sps.BNN(own, sps.Unmasked(), sps.Zero(), deterministic={"0": sps.Point(), "2": None})
    assert len(list(bnn.parameters())) == 2 + 1  # two points and the noise
    fitted = fit(bnn)
    assert not torch.equal(fitted.bnn.fixed["0.weight"], own[0].weight.detach())
    torch.testing.assert_close(fitted.bnn.fixed["2.weight"], own[2].weight.detach())
    fitted.save(tmp_path)
    for again in (sps.load(tmp_path, sps.topology.mlp([1, 6, 5, 1])), pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(again.predict(X, 20).mean, fitted.predict(X, 20).mean)
        assert again.bnn.deterministic == fitted.bnn.deterministic


@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_masked_entries_can_be_points():
    own = net()
    bnn = sps.BNN(own, sps.Heavy(), sps.Point())
    fitted = fit(bnn)
    mask = fitted.bnn.masks["2.weight"]
    assert not torch.equal(fitted.bnn.fixed["2.weight"][~mask], own[2].weight.detach()[~mask])
    assert (fitted.bnn.fixed["2.weight"][mask] == 0).all()
    # Values that an optimisation finds are all different.
    other = sps.BNN(net(), sps.Heavy(), sps.RandomConstant())
    assert fitted.bnn.symmetry().signed_permutations.after == other.symmetry().signed_permutations.after
    with pytest.raises(ValueError, match="are parameters"):
        fitted.bnn.set_fixed(sps.Zero())


def test_stock_inference_sees_points():
    bnn = sps.BNN(net(), sps.Unmasked(), sps.Zero(), deterministic={"0": sps.Point()}, likelihood=sps.Gaussian(0.1))
    x = X.float()
    before = copy.deepcopy(bnn.fixed["0.weight"])
    svi = SVI(bnn, AutoNormal(bnn), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(5):
        svi.step(x, x**2)
    assert not torch.equal(bnn.fixed["0.weight"], before)


def test_replicas_and_checkpoints(tmp_path):
    bnn = sps.BNN(net(), sps.Unmasked(), sps.Zero(), deterministic={"0": sps.Point()})
    fits = fit(bnn, replicas=2, checkpoint=tmp_path)
    again = sps.resume(tmp_path, bnn, X, X**2)
    for one, other in zip(fits, again, strict=True):
        assert torch.equal(one.bnn.fixed["0.weight"], other.bnn.fixed["0.weight"])
    assert not torch.equal(fits[0].bnn.fixed["0.weight"], fits[1].bnn.fixed["0.weight"])


class Waves(nn.Module):
    """Layers around operations that no rule is known of."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.first(x)).abs()
        return self.second(torch.cumsum(torch.tanh(self.first(x)), -1)) + spectrum


class Direct(Waves):
    """Such operations on what enters."""

    def forward(self, x):
        return self.second(x) + torch.fft.rfft(x).abs() * self.first(x)[..., :3]


def around(part):
    torch.manual_seed(2)
    layers = [("front", nn.Linear(2, 4)), ("act", nn.Tanh()), ("part", part), ("head", nn.Linear(3, 4))]
    return nn.Sequential(OrderedDict([*layers, ("last", nn.Tanh()), ("out", nn.Linear(4, 1))])).double()


@pytest.mark.parametrize(("part", "known"), [(Waves, True), (Direct, False)])
def test_a_deterministic_part_may_do_what_is_not_known(tmp_path, part, known):
    """Claimed is what is true of the numbers: units of `front` are interchangeable before a layer, not before a sum."""
    own, x = around(part()), torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(sps.UnsupportedLayerError, match=r"not known \(within a submodule whose weights are all in"):
        sps.BNN(own, example=x)
    with pytest.raises(sps.UnsupportedLayerError, match="'part"):
        sps.BNN(own, example=x, deterministic=["part.first"])  # of which the operations are not
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bnn = sps.BNN(own, sps.Unmasked(), sps.Zero(), example=x, deterministic=["part"])
    told = [str(one.message) for one in caught if "no rule says what is symmetric there" in str(one.message)]
    assert bool(told) != known
    if told:
        assert "layer 'part' (Direct), operation '_fft_r2c'" in told[0]
        assert caught[0].filename == __file__
    whole = sps.certify(bnn.topology, {})
    assert whole.permutations.after == 24 * (24 if known else 1)  # head, and front
    assert bnn.symmetry(verify=True).verification.ok
    weights = {name: torch.stack([value.detach(), -value.detach()]) for name, value in own.named_parameters()}
    torch.testing.assert_close(bnn.function(weights, x)[0], own(x))
    fitted = sps.fit(bnn, x, x.sum(1, keepdim=True), num_steps=20, progress=False)
    torch.testing.assert_close(fitted.bnn.fixed["part.first.weight"], own.part.first.weight.detach())
    fitted.save(tmp_path)
    torch.testing.assert_close(sps.load(tmp_path, own).predict(x).mean, fitted.predict(x).mean)
    chains = sps.sample(bnn, x, x.sum(1, keepdim=True), chains=2, warmup=5, num_samples=2, map_steps=5, progress=False)
    assert chains.predict(x).mean.shape == (20, 1)
