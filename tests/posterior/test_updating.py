"""A posterior as the prior of the next data set, against the exact posterior of a linear model."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from saved_files import FILE, make_up, take_apart
from torch import nn

import pyro_sps as sps

NOISE, PRIOR = 0.5, 0.8


def halves():
    """Two data sets, each with orthogonal inputs, so that the exact posteriors are products."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for sizes in ([2.0, 3.0], [1.0, 4.0]):
        x = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))[0] * torch.tensor(sizes)
        noise = NOISE * torch.randn(12, 1, generator=generator, dtype=torch.float64)
        parts.append((x, x @ torch.tensor([[1.0], [-0.5]], dtype=torch.float64) + noise))
    return parts


def linear(**options):
    net = nn.Linear(2, 1, bias=False).double()
    options = {"prior_scale": PRIOR, **options} if "prior" not in options else options
    return sps.BNN(net, sps.Unmasked(), sps.Zero(), sps.Gaussian(NOISE), **options)


def exact(parts, weights):
    """Mean and standard deviation with the likelihood of each part to some power, the prior once."""
    precision = 1 / PRIOR**2 + sum(w * x.square().sum(0) / NOISE**2 for (x, _), w in zip(parts, weights, strict=True))
    moment = sum(w * (x * y).sum(0) / NOISE**2 for (x, y), w in zip(parts, weights, strict=True))
    return moment / precision, precision.rsqrt()


OPTIONS = {"num_particles": 8, "num_steps": 800, "learning_rate": 0.05, "final_learning_rate": 1e-4}
OPTIONS |= {"standardize": False, "progress": False}


def test_one_half_after_the_other_is_all_at_once():
    parts = halves()
    first = sps.fit(linear(), *parts[0], **OPTIONS)
    second = sps.fit(first.as_prior(), *parts[1], start=first, **OPTIONS)
    mean, sd = exact(parts, [1.0, 1.0])
    # Adam's noise at the end is some ten of its last steps, 1e-4.
    assert ((second.guide.loc - mean).abs() < 0.05 * sd).all()
    torch.testing.assert_close(second.guide.scale.detach(), sd, rtol=0.02, atol=0)


def at(bnn, mean, sd, parts):
    """A fit of the model with this posterior."""
    fit = sps.fit(bnn, *parts[0], **{**OPTIONS, "num_steps": 1})
    fit.guide.loc = nn.Parameter(mean)
    fit.guide.scale = sd
    return fit


@pytest.mark.parametrize("forgetting", [1.0, 0.6])
def test_the_first_prior_counts_once_however_often_it_is_forgotten(forgetting):
    """Exact posteriors put in for fits: after k data sets the first counts forgetting^(k - 1)."""
    parts = halves()
    fit = at(linear(), *exact(parts[:1], [1.0]), parts)
    weights = [1.0]
    for _ in range(3):
        weights = [*(forgetting * weight for weight in weights), 1.0]
        prior = fit.as_prior(forgetting).prior["weight"]
        mean, sd = exact([parts[0]] * (len(weights) - 1), weights[:-1])
        torch.testing.assert_close(prior.loc[0], mean)
        torch.testing.assert_close(prior.scale[0], sd)
        fit = at(fit.as_prior(forgetting), *exact([parts[0]] * len(weights), weights), parts)


def test_only_stochastic_weights_change_and_units_stay():
    x = torch.linspace(2, 9, 20).unsqueeze(1)
    bnn = sps.BNN(sps.mlp([1, 3, 1]), sps.Rigid(), sps.Constant(1.0, learn=True))
    fit = sps.fit(bnn, x, x**2, num_steps=3, progress=False)
    new = fit.as_prior()
    for weight, own in zip(new.weights, fit.bnn.weights, strict=True):
        assert torch.equal(weight.mask, own.mask)
        assert torch.equal(weight.fixed, own.fixed)
        before = bnn.prior_of(bnn.topology.tensors[[w.name for w in new.weights].index(weight.name)])
        fixed = ~weight.mask
        prior = new.prior[weight.name]
        assert (prior.scale[fixed] == before.scale).all()
        assert (prior.scale[weight.mask] != before.scale).all()
    assert torch.equal(new.constant_scale(), fit.bnn.constant_scale())
    again = sps.fit(new, 3 * x, x**2, num_steps=1, progress=False)  # without start, and still in the units of the first
    assert again.standardizer == fit.standardizer
    assert bnn.prior is None
    other = sps.fit(bnn, 3 * x, x, num_steps=1, progress=False)
    with pytest.raises(ValueError, match="start and bnn must be in the same units"):
        sps.fit(new, x, x, start=other, num_steps=1, progress=False)


def test_samplers_see_the_new_prior():
    """The density that they climb is the exact one, up to a constant."""
    from pyro_sps.model.target import Target

    parts = halves()
    mean, sd = exact(parts[:1], [1.0])
    bnn = at(linear(), mean, sd, parts).as_prior()
    points = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.3, 2.0]], dtype=torch.float64)
    found = -Target.of(bnn, *parts[1]).energy(points)
    mean, sd = exact(parts, [1.0, 1.0])
    expected = dist.Normal(mean, sd).log_prob(points).sum(-1)
    torch.testing.assert_close(found - found[0], expected - expected[0])


@pytest.mark.parametrize("forgetting", [0, -0.5, 1.5, math.nan, "0.5", True, None])
def test_factors_out_of_range_are_refused(forgetting):
    fit = sps.fit(linear(), *halves()[0], **{**OPTIONS, "num_steps": 1})
    with pytest.raises(ValueError, match=r"forgetting must be a number in \(0, 1\]"):
        fit.as_prior(forgetting)


@pytest.mark.parametrize(
    ("options", "forgetting", "words"),
    [
        ({"prior": sps.Hierarchical()}, 1.0, "needs a model of which only"),
        ({"ordered_biases": True}, 1.0, "no ordered biases"),
        ({"prior": dist.Laplace(0.0, 1.0)}, 0.5, "needs a normal prior to go back to"),
    ],
)
def test_models_that_cannot_be_are_refused(options, forgetting, words):
    bnn = sps.BNN(sps.mlp([2, 2, 1]).double(), sps.Unmasked(), sps.Zero(), **options)
    x, y = halves()[0]
    fit = sps.fit(bnn, x, y, **{**OPTIONS, "num_steps": 1})
    with pytest.raises(ValueError, match=words):
        fit.as_prior(forgetting)
    if forgetting < 1:
        assert isinstance(fit.as_prior().prior["0.weight"], dist.Normal)


def saved_update(folder, net, **options):
    """The file of a fit whose prior is the posterior of another one, its fit, and the data."""
    x = torch.linspace(2, 9, 20, dtype=torch.float64).unsqueeze(1)
    bnn = sps.BNN(net, sps.Rigid(), sps.Constant(1.0, learn=True), **options)
    first = sps.fit(bnn, x[::2], x[::2] ** 2, num_steps=3, progress=False)
    fit = sps.fit(first.as_prior(0.7 if "prior" not in options else 1.0), x, x**2, num_steps=3, progress=False)
    fit.save(folder)
    return fit, first, x


def test_a_file_holds_a_prior_that_is_a_posterior(tmp_path):
    net = sps.mlp([1, 3, 1], dtype=torch.float64)
    fit, first, x = saved_update(tmp_path, net)
    again = sps.load(tmp_path, net)
    assert torch.equal(again.predict(x, 20).draws, fit.predict(x, 20).draws)
    # The models go on in the same way: with the same prior, first prior and units.
    next_of = [sps.fit(own.as_prior(0.5), x, x, start=own, num_steps=3, progress=False) for own in (again, fit)]
    assert torch.equal(next_of[0].guide.loc, next_of[1].guide.loc)
    np.testing.assert_array_equal(next_of[0].losses, next_of[1].losses)
    again.save(tmp_path / "again")
    once_more = sps.load(tmp_path / "again", net)
    assert all(torch.equal(prior.loc, once_more.bnn.prior[name].loc) for name, prior in fit.bnn.prior.items())
    with pytest.raises(sps.LoadError, match="has its own prior; leave prior= out"):
        sps.load(tmp_path, net, prior=first.as_prior().prior)
    header, tensors = take_apart(tmp_path / FILE)
    name = "prior.scale.0.weight"
    wrong = [
        ({**tensors, name: -tensors[name]}, "scale of the prior of '0.weight' is not positive"),
        ({**tensors, name: tensors[name] * math.nan}, "values that are not possible"),
        ({**tensors, name: tensors[name][:2].clone()}, "has dtype .* and shape"),
        ({key: value for key, value in tensors.items() if key != "first_prior.loc.0.bias"}, "is missing"),
    ]
    for numbers, words in wrong:
        make_up(tmp_path / FILE, header, numbers)
        with pytest.raises(sps.LoadError, match=words):
            sps.load(tmp_path, net)
    for said in (False, 1, "yes", None):
        make_up(tmp_path / FILE, header | {"prior": header["prior"] | {"numbers": said}}, tensors)
        with pytest.raises(sps.LoadError, match="unknown tensors"):
            sps.load(tmp_path, net)


def test_a_first_prior_that_is_not_normal_must_be_given_again(tmp_path):
    net = sps.mlp([1, 3, 1], dtype=torch.float64)
    fit, first, x = saved_update(tmp_path, net, prior=dist.Laplace(torch.tensor(0.0).double(), torch.tensor(1.0)))
    with pytest.raises(sps.LoadError, match="give it as prior="):
        sps.load(tmp_path, net)
    again = sps.load(tmp_path, net, prior=first.as_prior().prior)
    assert torch.equal(again.predict(x, 20).draws, fit.predict(x, 20).draws)
