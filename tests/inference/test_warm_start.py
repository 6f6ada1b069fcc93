"""Going on from a fit: one run in two parts is the run; what is taken over, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pyro_sps as sps
from pyro_sps.data.arrays import Standardizer

QUICK = {"num_particles": 2, "batch_size": 8, "progress": False}
FLAT = {"learning_rate": 0.01, "final_learning_rate": 0.01}  # so that two parts have the rates of the whole


def data(rows=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 3 + torch.randn(rows, 2, generator=generator)
    return x, x.prod(1, keepdim=True)


def model(**options):
    return sps.BNN(sps.mlp([2, 4, 1]), **{"scheme": sps.Rigid(), "values": sps.Zero(), **options})


def parameters(fit):
    return [fit.guide.loc, fit.guide.scale, *(value for name, value in fit.bnn.named_parameters())]


@pytest.mark.parametrize(("values", "replicas"), [(sps.Constant(1.0, learn=True), None), (sps.MAP(num_steps=3), 2)])
def test_two_parts_are_one_run(replicas, values):
    bnn, (x, y) = model(values=values), data()
    options = {**QUICK, **FLAT, "replicas": replicas, "init": "random"}
    whole = sps.fit(bnn, x, y, num_steps=9, **options)
    first = sps.fit(bnn, x, y, num_steps=4, **options)
    del options["init"]
    second = sps.fit(bnn, x, y, num_steps=5, start=first, **options)
    wholes, seconds = (whole, second) if replicas else ((whole,), (second,))
    for one, other in zip(wholes, seconds, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(other), strict=True))
        assert all(torch.equal(value, other.bnn.fixed[name]) for name, value in one.bnn.fixed.items())
        np.testing.assert_array_equal(one.losses[4:], other.losses)
        assert other.settings["start"] == "given"


def test_a_checkpoint_of_a_run_that_goes_on(tmp_path):
    bnn, (x, y) = model(values=sps.MAP(num_steps=3)), data()
    first = sps.fit(bnn, x, y, num_steps=4, **QUICK, **FLAT)
    options = {**QUICK, **FLAT, "start": first, "kl_weight": 0.3}
    whole = sps.fit(bnn, x, y, num_steps=6, **options)
    sps.fit(bnn, x, y, num_steps=3, **options, checkpoint=tmp_path)
    again = sps.resume(tmp_path, bnn, x, y, num_steps=6, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(again), strict=True))
    assert (again.settings["start"], again.settings["kl_weight"]) == ("given", 0.3)
    assert again.optimizer.steps == whole.optimizer.steps == 10


def test_a_loaded_fit_and_another_model_start_without_the_state_of_the_optimiser(tmp_path):
    bnn, (x, y) = model(), data()
    first = sps.fit(bnn, x, y, num_steps=4, **QUICK)
    first.save(tmp_path)
    still = {**QUICK, "num_steps": 1, "learning_rate": 1e-12}
    for start, other in (
        (sps.load(tmp_path, sps.mlp([2, 4, 1])), bnn),
        (first, model(prior_scale=3.0, likelihood=sps.StudentT())),
    ):
        fit = sps.fit(other, x, y, start=start, **still)
        torch.testing.assert_close(fit.guide.loc, first.guide.loc)
        torch.testing.assert_close(fit.guide.scale, first.guide.scale)
        assert fit.optimizer.steps == 1
    assert type(fit.bnn.likelihood) is sps.StudentT


def test_new_rows_stay_in_the_units_of_the_start():
    bnn, (x, y) = model(), data()
    first = sps.fit(bnn, x, y, num_steps=2, **QUICK)
    second = sps.fit(bnn, x + 5, y - 7, start=first, num_steps=1, **QUICK)
    assert second.standardizer == first.standardizer
    assert second.settings["standardize"] is True
    streamed = sps.fit(first.as_prior(), TensorDataset(x + 5, y - 7), start=first, num_steps=1, **QUICK)
    assert streamed.standardizer == first.standardizer
    plain = replace(first, standardizer=Standardizer.identity(bnn.like))
    again = sps.fit(bnn, x + 5, y, start=plain, num_steps=1, **QUICK)
    torch.testing.assert_close(again.x, x + 5)
    assert again.settings["standardize"] is False


def other_masks():
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[3, 1] = False
    return sps.BNN(sps.mlp([2, 4, 1]), {"0.weight": mask}, sps.Zero())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"start": 3}, TypeError, "start must be a Fit, got int"),
        ({"replicas": 2}, TypeError, "start must be the Fits of 2 replicas, got Fit"),
        ({"init": "map"}, ValueError, "init has no effect with start="),
        ({"init_scale": 0.1}, ValueError, "init_scale has no effect with start="),
        ({"map_steps": 7}, ValueError, "map_steps has no effect with start="),
        ({"standardize": False}, ValueError, "standardize=False has no effect here"),
        ({"bnn": other_masks()}, ValueError, "same weights and masks"),
        ({"bnn": sps.BNN(sps.mlp([2, 3, 1]), sps.Rigid(), sps.Zero())}, ValueError, "same weights and masks"),
        ({"bnn": model(prior=sps.Hierarchical())}, ValueError, "start must be a fit of the same sample sites"),
    ],
)
def test_what_is_no_start_is_named_before_any_work(monkeypatch, change, error, words):
    from pyro_sps.inference import loop

    x, y = data()
    start = sps.fit(model(), x, y, num_steps=1, **QUICK)

    def no_work(*_):
        raise AssertionError("work was done")

    monkeypatch.setattr(loop.Run, "__post_init__", no_work)
    options = {"bnn": model(), "start": start, **QUICK, **change}
    with pytest.raises(error, match=words):
        sps.fit(options.pop("bnn"), x, y, **options)


# --- a weight of the KL divergence ------------------------------------------------------------------


def test_a_kl_weight_is_a_power_of_the_likelihood_in_a_linear_model():
    """With orthogonal inputs the posterior is a product of normals of precision 1/prior² + Σx²/(noise² weight)."""
    weight, generator = 4.0, torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))[0] * torch.tensor([2.0, 3.0])
    y = x @ torch.tensor([[1.0], [-0.5]], dtype=torch.float64) + 0.5
    bnn = sps.BNN(
        nn.Linear(2, 1, bias=False).double(),
        sps.Unmasked(),
        sps.Zero(),
        sps.Gaussian(0.5),
        prior_scale=0.8,
    )
    rates = {"learning_rate": 0.05, "final_learning_rate": 1e-4}
    fit = sps.fit(
        bnn, x, y, num_steps=800, num_particles=8, kl_weight=weight, standardize=False, progress=False, **rates
    )
    precision = 1 / 0.8**2 + x.square().sum(0) / (0.5**2 * weight)
    mean = (x * y).sum(0) / (0.5**2 * weight) / precision
    sd = precision.rsqrt()
    # Adam's noise at the end is some ten of its last steps, 1e-4.
    assert ((fit.guide.loc - mean).abs() < 0.05 * sd).all()
    torch.testing.assert_close(fit.guide.scale.detach(), sd, rtol=0.02, atol=0)
    assert fit.settings["kl_weight"] == weight


def test_losses_have_the_kl_weight_and_the_prior_of_points_too():
    bnn, (x, y) = model(values=sps.Point()), data()
    losses = {
        weight: sps.fit(bnn, x, y, num_steps=1, num_particles=2, kl_weight=weight, progress=False).losses[0]
        for weight in (1.0, 3.0)
    }
    guide = sps.fit(bnn, x, y, num_steps=1, num_particles=2, learning_rate=1e-12, progress=False).guide
    prior = torch.cat([torch.as_tensor(bnn.prior_of(t).scale).expand(t.shape).flatten() for t in bnn.topology.tensors])
    free = torch.cat([weight.mask.flatten() for weight in bnn.weights])
    normal = torch.distributions.Normal(guide.loc, guide.scale)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, prior[free])).sum()
    points = torch.cat([bnn.fixed[weight.name][~weight.mask] for weight in bnn.weights])
    expected = (kl - torch.distributions.Normal(0.0, prior[~free]).log_prob(points).sum()).item()
    assert losses[3.0] - losses[1.0] == pytest.approx(2 * expected, rel=1e-3)
