"""NUTS samples against Pyro's own target and against an exact posterior."""

import random
import warnings

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import nn

import pyro_sps as sps
from pyro_sps.data.arrays import make_generator
from pyro_sps.inference.program import make_program
from pyro_sps.model.target import Target

QUICK = {
    "kernel": "nuts",
    "num_samples": 4,
    "warmup": 3,
    "chains": 2,
    "starts": "prior",
    "standardize": False,
    "max_tree_depth": 3,
    "progress": False,
}


def regression(rows=12, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).sin()


def small(**options):
    net = sps.mlp([2, 3, 3, 1], dtype=torch.float64)
    return sps.BNN(net, **{"scheme": sps.Rigid(), "values": sps.Constant(1.0)} | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"values": sps.Constant(0.7, learn=True), "likelihood": sps.Gaussian(0.3, learn=True)},
        {"scheme": sps.Unmasked(), "ordered_biases": True, "prior_scale": 2.0},
        {"prior": pyro.distributions.StudentT(4.0, 0.0, 1.0), "likelihood": sps.Gaussian(0.2)},
        {"likelihood": sps.Bernoulli()},
    ],
    ids=["constant", "learned", "ordered", "student", "bernoulli"],
)
def test_the_target_is_that_of_pyro(options):
    x, y = regression()
    if isinstance(options.get("likelihood"), sps.Bernoulli):
        y = (y > 0).double()
    bnn = small(**options)
    pyro.clear_param_store()
    initial, potential, _, _ = initialize_model(bnn, (x, y))
    target = Target.of(bnn, x, y)
    program = make_program(
        torch.func.grad_and_value(target.energy), (torch.zeros(target.problem.size, dtype=x.dtype),), compile=False
    ).run
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        flat = torch.randn(target.problem.size, generator=generator, dtype=x.dtype)
        values = {site.name: site.view(flat).clone() for site in target.problem.sites}
        assert values.keys() == initial.keys()
        gradients, energy = potential_grad(potential, values)
        gradient, own = program(flat)
        torch.testing.assert_close(own, energy, rtol=1e-12, atol=1e-10)
        for site in target.problem.sites:
            torch.testing.assert_close(site.view(gradient), gradients[site.name], rtol=1e-10, atol=1e-10)
    pyro.clear_param_store()


def test_batches_and_the_likelihood_of_the_target():
    x, y = regression()
    for options in ({}, {"scheme": sps.Unmasked(), "ordered_biases": True}):
        target = Target.of(small(**options), x, y)
        flat = target.prior_draws(4, make_generator("cpu", 0))
        assert flat.shape == (4, target.problem.size)
        one_by_one = torch.stack([target.energy(row) for row in flat])
        torch.testing.assert_close(target.energy(flat), one_by_one)
        # Minus the energy is prior (with Jacobian) plus likelihood: without data only the former is left.
        empty = Target.of(target.bnn, x[:1], y[:1])
        both = [target.energy(flat) + target.log_likelihood(flat), empty.energy(flat) + empty.log_likelihood(flat)]
        torch.testing.assert_close(*both)
        torch.testing.assert_close(target.flat(target.sites(flat)), flat)


def test_draws_of_the_prior_have_its_moments():
    x, y = regression()
    bnn = small(scheme=sps.Unmasked(), prior_scale=2.0, ordered_biases=True)
    target, count = Target.of(bnn, x, y), 4000
    draws = target.sites(target.prior_draws(count, make_generator("cpu", 0)))
    for name, value in draws.items():
        scale = value.std(0)
        if name not in ("0.bias", "2.bias"):
            assert ((scale / 2 - 1).abs() < 5 / (2 * count) ** 0.5).all()
        else:
            assert (value.diff(dim=-1) >= 0).all()
            # The mean of the largest of three normals is 3 / (2 √π) standard deviations.
            expected = 2 * 1.5 / np.pi**0.5 * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
            assert ((value.mean(0) - expected).abs() < 5 * scale / count**0.5).all()


@pytest.fixture(scope="module")
def linear():
    """A linear Gaussian model with one fixed weight, its exact posterior, and draws."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 1.0
    mask, given = torch.tensor([[True, False, True]]), torch.tensor([[0.0, -1.5, 0.0]], dtype=torch.float64)
    bnn = sps.BNN(
        nn.Linear(3, 1).double(),
        scheme={"weight": mask},
        values=sps.Given({"weight": given}),
        likelihood=sps.Gaussian(0.8),
        prior_scale=1.0,
    )
    design = torch.cat([x[:, [0, 2]], torch.ones(20, 1, dtype=torch.float64)], 1)
    precision = design.T @ design / 0.8**2 + torch.eye(3, dtype=torch.float64)
    mean = torch.linalg.solve(precision, design.T @ (y[:, 0] + 1.5 * x[:, 1]) / 0.8**2)
    options = QUICK | {"num_samples": 400, "warmup": 150, "max_tree_depth": 10}
    nuts = sps.sample(bnn, x, y, **options)
    return bnn, x, y, mean, torch.linalg.inv(precision), nuts


def test_linear_gaussian_posterior(linear):
    *_, mean, covariance, nuts = linear
    draws = torch.cat([nuts.samples["weight"], nuts.samples["bias"]], -1)
    assert draws.shape == (2, 400, 3)
    for i in range(3):
        error = draws[..., i] - mean[i]
        assert abs(error.mean()) < 4 * az.mcse(draws[..., i].numpy())
        for j in range(i + 1):
            product = error * (draws[..., j] - mean[j])
            assert abs(product.mean() - covariance[i, j]) < 4 * az.mcse(product.numpy())
    assert (nuts.weights()["weight"][..., 0, 1] == -1.5).all()


def test_samples_look_like_a_pyro_mcmc_that_has_run(linear):
    bnn, x, y, *_, nuts = linear
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kernel = NUTS(bnn)
        mcmc = MCMC(kernel, num_samples=4, warmup_steps=4, disable_progbar=True)
        mcmc.run(x, y)
    for grouped in (True, False):
        theirs, ours = (one.get_samples(group_by_chain=grouped) for one in (mcmc, nuts))
        assert theirs.keys() == ours.keys()
        assert all(theirs[name].dim() == ours[name].dim() for name in theirs)
    theirs, ours = mcmc.diagnostics(), nuts.diagnostics()
    assert theirs.keys() == ours.keys()
    assert theirs["divergences"].keys() <= ours["divergences"].keys() == {"chain 0", "chain 1"}
    torch.testing.assert_close(ours["weight"]["r_hat"], torch.ones(2, dtype=torch.float64), rtol=0, atol=0.02)
    assert nuts.num_divergent == 0
    assert nuts.get_samples(7)["bias"].shape == (7, 1)


def test_predictions_are_those_of_the_draws(linear):
    _, x, *_, nuts = linear
    prediction = nuts.predict(x, num_samples=4000)
    outputs = nuts.bnn.function(nuts.weights(), x).flatten(0, 1)
    error = outputs.std(0) / 4000**0.5
    assert ((prediction.mean - outputs.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(prediction.std, (outputs.var(0) + 0.8**2).sqrt(), rtol=0.03, atol=0)


def test_seeded_and_without_traces():
    x, y = regression()
    bnn = small()
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    one, two = (sps.sample(bnn, x, y, seed=3, **QUICK) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items())
    more = sps.sample(bnn, x, y, seed=3, **QUICK | {"chains": 3})
    other = sps.sample(bnn, x, y, seed=4, **QUICK)
    for name, value in one.samples.items():
        assert torch.equal(value, two.samples[name])
        assert torch.equal(value, more.samples[name][:2])  # a chain does not depend on how many there are
        assert not torch.equal(value, other.samples[name])
        assert not torch.equal(value[0], value[1])


def test_standardised_data_gives_predictions_in_original_units():
    x, y = regression()
    units = [(value - value.mean(0)) / value.std(0, unbiased=False) for value in (x, y)]
    plain = sps.sample(small(), *units, **QUICK)
    far = sps.sample(small(), 100 + 7 * x, 5 * y + 3, **QUICK | {"standardize": True})
    for name, value in plain.samples.items():
        torch.testing.assert_close(value, far.samples[name], rtol=1e-6, atol=1e-8)
    expected = plain.predict(units[0]).mean * y.std(unbiased=False) + y.mean()
    torch.testing.assert_close(far.predict(100 + 7 * x).mean, 5 * expected + 3, rtol=1e-6, atol=1e-8)


def test_chains_start_where_they_are_told():
    x, y = regression()
    fits = sps.fit(
        small(likelihood=sps.Gaussian(1e-3)), x, y, num_steps=400, replicas=2, standardize=False, progress=False
    )
    options = QUICK | {"warmup": 0, "chains": 4, "max_tree_depth": 1}
    nuts = sps.sample(fits[0].bnn, x, y, **options | {"starts": fits})
    # Single leapfrog steps, of a size found for this sharp posterior, lead nowhere.
    for chain in range(4):
        guide, other = fits[chain % 2].guide, fits[1 - chain % 2].guide
        place = torch.cat([nuts.samples[site.name][chain, 0] for site in guide.sites])
        assert (place - guide.loc).norm() < 0.3 * (place - other.loc).norm()
    given = {name: value[:, 0] for name, value in nuts.samples.items()}
    again = sps.sample(fits[0].bnn, x, y, **options | {"starts": given})
    for name, value in again.samples.items():
        torch.testing.assert_close(value[:, 0], given[name], rtol=0, atol=0.3)
    assert sps.sample(fits[0].bnn, x, y, **options | {"starts": fits[0]}).num_chains == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a positive integer, got 0"),
        ({"num_samples": 3}, "num_samples must be an integer of at least 4 for nuts, got 3"),
        ({"warmup": -1}, "warmup must be a non-negative integer, got -1"),
        ({"chains": 1.5}, "chains must be a positive integer, got 1.5"),
        ({"max_tree_depth": 0}, "max_tree_depth must be a positive integer"),
        ({"target_accept": 1.0}, r"target_accept must be in \(0, 1\), got 1.0"),
        ({"seed": -1}, "seed must be"),
        ({"starts": []}, "at least one fit"),
        ({"starts": {"0.weight": torch.zeros(2, 1)}}, "site '0.weight' must have values of shape"),
        ({"starts": {}}, "got nothing"),
        ({"x": torch.zeros(3, 5)}, "x must have 2 features"),
        ({"y": torch.zeros(5)}, "y must have as many rows as x"),
    ],
)
def test_bad_arguments(options, message):
    x, y = regression()
    with pytest.raises(ValueError, match=message):
        sps.sample(small(), **{"x": x, "y": y, **QUICK} | options)


def test_starts_need_a_row_a_chain():
    x, y = regression()
    starts = {weight.name: torch.zeros(3, weight.num_free) for weight in small().weights}
    with pytest.raises(ValueError, match="a row for each of 2 chains"):
        sps.sample(small(), x, y, **QUICK | {"starts": starts})


def test_models_that_cannot_be_sampled():
    x, y = regression()
    with pytest.raises(TypeError, match=r"bnn must be a pyro_sps\.BNN, got Sequential"):
        sps.sample(sps.mlp([2, 3, 1]), x, y)
    nothing = {name: torch.zeros_like(mask) for name, mask in small().masks.items()}
    with pytest.raises(ValueError, match="no stochastic weight"):
        sps.sample(small(scheme=nothing, values=sps.Given(small().fixed)), x, y)
    fit = sps.fit(small(values=sps.MAP(num_steps=5)), x, y, num_steps=5, progress=False)
    nuts = sps.sample(fit.bnn, x, y, **QUICK)
    assert all(torch.equal(nuts.bnn.fixed[name], value) for name, value in fit.bnn.fixed.items())
    sought = sps.sample(small(values=sps.MAP(num_steps=5)), x, y, **QUICK)
    assert any(value.any() for value in sought.bnn.fixed.values())


def test_the_names_of_before_say_what_to_call():
    for name in ("sample_nuts", "NutsSamples"):
        with pytest.raises(AttributeError, match=r"is now pyro_sps\.[sS]ample"):
            getattr(sps, name)


def test_large_networks_are_warned_of(monkeypatch):
    monkeypatch.setattr("pyro_sps.inference.nuts.MANY_WEIGHTS", 10)
    x, y = regression()
    with pytest.warns(RuntimeWarning, match="NUTS on 2. stochastic weights takes very long"):
        sps.sample(small(), x, y, **QUICK)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sps.sample(small(), x, y, **QUICK)


def test_pictures_take_samples():
    x, y = regression()
    nuts = sps.sample(small(), x, y, **QUICK)
    axes = sps.plots.plot_twins(nuts, "layer 1", (0, 1))
    np.testing.assert_allclose(axes[0].lines[1].get_xdata(), nuts.weights()["0.weight"][0, :, 0, 0])
    assert "unit 0 of layer 1" in sps.plots.plot_unit({"nuts": nuts}).get_title()
