"""Baselines against closed forms and against themselves trained alone."""

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn

from pyro_sps.study.baselines import (
    Training,
    _laplace,
    deep_ensemble,
    last_layer_laplace,
    map_network,
    mc_dropout,
    nuts,
    train_networks,
)
from pyro_sps.study.problems import Problem

QUICK = {"num_steps": 20, "progress": False}


def needs_laplace():
    try:
        _laplace()
    except ImportError as error:  # importorskip lets the RuntimeError of a torchvision of another build through
        pytest.skip(f"laplace-torch is in the extra `study`: {error}")


def random_problem(widths=(3, 6, 5, 2), splits=2, rows=20, held_out=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(splits, rows + held_out, widths[0], generator=generator, dtype=torch.float64)
    noise = torch.randn(splits, rows + held_out, widths[-1], generator=generator, dtype=torch.float64)
    y = x.sum(-1, keepdim=True).sin() + 0.3 * noise
    return Problem("random", widths, x[:, :rows], y[:, :rows], x[:, rows:], y[:, rows:])


def with_bias(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def ridge(x, y, noise, scales):
    """Posterior mean and covariance of (weights, bias) for each target, of Bayesian linear regression."""
    design = with_bias(x)
    covariance = torch.linalg.inv(design.mT @ design / noise**2 + torch.diag(scales**-2))
    return covariance @ design.mT @ y / noise**2, covariance


@pytest.mark.parametrize("scale_by_fan_in", [False, True])
def test_map_of_a_linear_model_is_ridge_regression(scale_by_fan_in):
    problem = random_problem(widths=(3, 2))
    # A prior and a noise of the size of the data's, so that the prior is felt.
    options = {"noise": 1.0, "prior_scale": 0.5, "scale_by_fan_in": scale_by_fan_in, "progress": False}
    mixtures = map_network(problem, num_steps=2000, learning_rate=0.05, final_learning_rate=1e-4, **options)
    scales = torch.tensor([0.5 / 3**0.5 if scale_by_fan_in else 0.5] * 3 + [0.5], dtype=torch.float64)
    for split, mixture in enumerate(mixtures):
        mean, _ = ridge(problem.x[split], problem.y[split], 1.0, scales)
        torch.testing.assert_close(mixture.means[0], with_bias(problem.x_test[split]) @ mean, rtol=0, atol=1e-6)
        assert (mixture.scales == 1.0).all()


def test_learned_noise_is_the_rms_of_the_residuals():
    problem = random_problem(widths=(3, 2))
    problem = dataclasses.replace(problem, x_test=problem.x, y_test=problem.y)
    options = {"noise": 1.0, "learn_noise": True, "learning_rate": 0.02, "final_learning_rate": 1e-5}
    for split, mixture in enumerate(map_network(problem, num_steps=1500, progress=False, **options)):
        expected = (mixture.means[0] - problem.y[split]).square().mean().sqrt()
        assert mixture.scales.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"batch_size": 8}, {"dropout": 0.2}, {"batch_size": 8, "learn_noise": True}])
def test_a_network_does_not_depend_on_those_beside_it(options):
    problem = random_problem(splits=3)
    training = Training(num_steps=20, **options)
    together = train_networks(problem, training, members=2, seed=1, progress=False)
    alone = train_networks(problem, training, seed=1, progress=False)
    fewer = dataclasses.replace(problem, x=problem.x[:1], y=problem.y[:1])
    first = train_networks(fewer, training, members=2, seed=1, progress=False)
    for found, expected in [(together[::2], alone), (together[:2], first)]:
        for own, other in zip([*found.weights, found.noise], [*expected.weights, expected.noise], strict=True):
            torch.testing.assert_close(own, other)
    assert not torch.allclose(together[:1].weights[0], together[1:2].weights[0])
    other_seed = train_networks(fewer, training, seed=2, progress=False)
    assert not torch.allclose(first[:1].weights[0], other_seed.weights[0])


def test_training_follows_the_gradient_of_the_joint_density():
    """One step of Adam moves each parameter by the rate, against its gradient's sign; torch says what that is."""
    problem = random_problem(splits=1)
    training = Training(num_steps=1, noise=0.5, prior_scale=0.3, scale_by_fan_in=True)
    start = train_networks(problem, dataclasses.replace(training, learning_rate=1e-300), progress=False)
    moved = train_networks(problem, training, progress=False)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for layer, weight, bias in zip(net[::2], start.weights, start.biases, strict=True):
            layer.weight.copy_(weight[0].T)
            layer.bias.copy_(bias[0, 0])
    x, y = problem.x[0], problem.y[0]
    joint = torch.distributions.Normal(net(x), 0.5).log_prob(y).sum()
    for layer in net[::2]:
        joint = joint + torch.distributions.Normal(0.0, 0.3 / layer.in_features**0.5).log_prob(layer.weight).sum()
        joint = joint + torch.distributions.Normal(0.0, 0.3).log_prob(layer.bias).sum()
    joint.backward()
    for layer, before, after in zip(net[::2], start.weights, moved.weights, strict=True):
        torch.testing.assert_close((after - before)[0].T, 0.01 * layer.weight.grad.sign(), rtol=1e-4, atol=0)
    torch.testing.assert_close(net(x), start.forward(problem.x)[0])


def test_the_ensemble_is_the_mixture_of_its_members():
    problem = random_problem()
    ensemble = deep_ensemble(problem, **QUICK)
    assert ensemble[1].means.shape == (10, 7, 2)
    assert ensemble[1].scales.shape == (10, 1, 1)
    for single, mixture in zip(map_network(problem, **QUICK), ensemble, strict=True):
        torch.testing.assert_close(single.means[0], mixture.means[0])
    again = deep_ensemble(problem, members=3, **QUICK)
    torch.testing.assert_close(again[1].means, ensemble[1].means[:3])


def test_dropout_at_rate_zero_is_the_map_network():
    problem = random_problem()
    for plain, dropped in zip(
        map_network(problem, **QUICK), mc_dropout(problem, dropout=0.0, draws=3, **QUICK), strict=True
    ):
        torch.testing.assert_close(dropped.means, plain.means.expand(3, -1, -1))
        torch.testing.assert_close(dropped.scales, plain.scales)


def test_dropped_units_of_a_draw():
    """With one hidden layer, the mean and variance over the masks are known."""
    problem = random_problem(widths=(3, 6, 2))
    rate, draws = 0.3, 4000
    mixtures = mc_dropout(problem, dropout=rate, draws=draws, **QUICK)
    networks = train_networks(problem, Training(dropout=rate, num_steps=20), progress=False)
    mean = networks.forward(problem.x_test)
    features = networks.features(problem.x_test)
    variance = rate / (1 - rate) * features.square() @ networks.weights[-1].square()
    for split, mixture in enumerate(mixtures):
        error = (variance[split] / draws).sqrt()
        assert ((mixture.means.mean(0) - mean[split]).abs() < 5 * error).all()
        # Of a sum of two-valued terms the sample variance has a relative standard error of less than √(3 / draws).
        torch.testing.assert_close(mixture.means.var(0), variance[split], rtol=5 * math.sqrt(3 / draws), atol=0)
    assert not torch.allclose(mixtures[0].means[0] - mean[0], mixtures[1].means[0] - mean[1])


def test_the_last_layer_under_dropout_is_ridge_regression():
    """Given the features, the expected loss over the masks is quadratic in the last layer."""
    problem = random_problem(widths=(3, 6, 2), splits=1)
    rate, noise, scale = 0.5, 1.0, 0.3
    options = {"num_steps": 2000, "final_learning_rate": 1e-4}
    networks = train_networks(problem, Training(noise, prior_scale=scale, dropout=rate, **options), progress=False)
    features, y = networks.features(problem.x)[0], problem.y[0]
    weights_penalty = 1 / scale**2 / (1 - rate) + rate / (1 - rate) * features.square().sum(0)
    penalty = torch.cat([weights_penalty, weights_penalty.new_full((1,), 1 / scale**2)])
    expected, _ = ridge(features, y, noise, penalty**-0.5)
    found = torch.cat([networks.weights[-1][0], networks.biases[-1][0]])
    # What is left is the noise of the masks in the last few hundred steps.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def laplace_problem(**options):
    needs_laplace()
    problem = random_problem(**options)
    training = {"noise": 0.3, "num_steps": 200, "progress": False, "scale_by_fan_in": True}
    networks = train_networks(problem, Training(0.3, scale_by_fan_in=True, num_steps=200), progress=False)
    return problem, training, networks


def test_last_layer_laplace_is_bayesian_linear_regression_on_the_features():
    problem, training, networks = laplace_problem()
    mixtures = last_layer_laplace(problem, optimize_prior=False, **training)
    features, tested = networks.features(problem.x), networks.features(problem.x_test)
    scales = torch.tensor([1 / math.sqrt(5)] * 5 + [1.0], dtype=torch.float64)
    for split, (mixture, plain) in enumerate(zip(mixtures, map_network(problem, **training), strict=True)):
        _, covariance = ridge(features[split], problem.y[split], 0.3, scales)
        design = with_bias(tested[split])
        variance = ((design @ covariance) * design).sum(-1, keepdim=True) + 0.3**2
        torch.testing.assert_close(mixture.scales[0], variance.sqrt().expand(-1, 2))
        torch.testing.assert_close(mixture.means, plain.means)


def test_the_optimised_prior_of_the_last_layer_maximises_the_evidence():
    problem, training, networks = laplace_problem(rows=60)
    mixtures = last_layer_laplace(problem, **training)
    for split, mixture in enumerate(mixtures):
        design = with_bias(networks.features(problem.x)[split])
        curvature = torch.linalg.eigvalsh(design.mT @ design / 0.3**2).repeat(2)
        square = networks.weights[-1][split].square().sum() + networks.biases[-1][split].square().sum()
        precision = torch.tensor(1.0, dtype=torch.float64)
        for _ in range(200):  # MacKay's fixed point: effective number of parameters over the weights' square
            precision = (curvature / (curvature + precision)).sum() / square
        scales = (precision**-0.5).expand(6)
        _, covariance = ridge(networks.features(problem.x)[split], problem.y[split], 0.3, scales)
        tested = with_bias(networks.features(problem.x_test)[split])
        variance = ((tested @ covariance) * tested).sum(-1, keepdim=True)
        torch.testing.assert_close(mixture.scales[0].square() - 0.3**2, variance.expand(-1, 2), rtol=1e-2, atol=1e-6)


def test_nuts_of_a_linear_model_is_the_exact_posterior():
    problem = random_problem(widths=(2, 1), splits=1)
    options = {"num_warmup": 100, "num_samples": 200, "num_chains": 1, "noise": 0.5, "prior_scale": 0.7}
    mixtures = nuts(problem, num_steps=200, progress=False, **options)
    for split, mixture in enumerate(mixtures):
        mean, covariance = ridge(problem.x[split], problem.y[split], 0.5, torch.full((3,), 0.7, dtype=torch.float64))
        design = with_bias(problem.x_test[split])
        deviation = ((design @ covariance) * design).sum(-1, keepdim=True).sqrt()
        # NUTS of a Gaussian gives at least half as many effective draws as draws.
        assert ((mixture.means.mean(0) - design @ mean).abs() < 5 * deviation / math.sqrt(100)).all()
        torch.testing.assert_close(mixture.means.std(0), deviation, rtol=5 / math.sqrt(2 * 100), atol=0)
        assert mixture.means.shape == (200, 7, 1)
        assert mixture.scales.item() == pytest.approx(0.5)


def test_nuts_starts_chains_from_networks_of_their_own():
    problem = random_problem(splits=1)
    options = {"num_warmup": 0, "num_samples": 4, "max_tree_depth": 1, "num_chains": 2}
    (mixture,) = nuts(problem, learn_noise=True, **options, **QUICK)
    assert mixture.means.shape == (8, 7, 2)
    (starts,) = map_network(problem, members=2, learn_noise=True, **QUICK)
    assert mixture.scales.item() == pytest.approx(starts.scales[0].item())
    distance = (mixture.means[[0, 4]].unsqueeze(1) - starts.means).square().mean((-1, -2))
    assert (distance.argmin(1) == torch.arange(2)).all()


def test_without_laplace_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    with pytest.raises(ImportError, match=r"pyro-sps\[study\]"):
        last_layer_laplace(random_problem(), **QUICK)


@pytest.mark.parametrize("method", [deep_ensemble, mc_dropout, last_layer_laplace, nuts])
def test_results_depend_on_the_seed_and_on_nothing_else(method):
    if method is last_layer_laplace:
        needs_laplace()
    problem = random_problem(splits=1)
    options = QUICK | ({"num_warmup": 2, "num_samples": 4, "max_tree_depth": 2} if method is nuts else {})
    state = torch.random.get_rng_state()
    first = method(problem, seed=3, **options)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(12)
    again, other = method(problem, seed=3, **options), method(problem, seed=4, **options)
    torch.random.set_rng_state(state)
    for own, same, different in zip(first, again, other, strict=True):
        assert own.means.dtype == torch.float64
        assert torch.equal(own.means, same.means)
        assert torch.equal(own.scales, same.scales)
        assert not torch.allclose(own.means, different.means)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (mc_dropout, {"dropout": -0.1}),
        (mc_dropout, {"draws": 0}),
        (last_layer_laplace, {"optimize_prior": "yes"}),
        (last_layer_laplace, {"noise": -1.0}),
        (nuts, {"num_warmup": -1}),
        (nuts, {"num_samples": 3}),
        (nuts, {"max_tree_depth": 0.5}),
        (nuts, {"num_chains": True}),
        (nuts, {"prior_scale": 0}),
    ],
)
def test_own_options_out_of_range(method, options):
    if method is last_layer_laplace:
        needs_laplace()
    with pytest.raises(ValueError, match=next(iter(options))):
        method(random_problem(), progress=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"noise": 0.0},
        {"noise": "0.1"},
        {"learn_noise": 1},
        {"prior_scale": -1.0},
        {"scale_by_fan_in": None},
        {"num_steps": 0},
        {"num_steps": 10.0},
        {"batch_size": 0},
        {"batch_size": 21},
        {"learning_rate": float("inf")},
        {"final_learning_rate": 0},
        {"dropout": 1.0},
        {"members": 0},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        map_network(random_problem(), progress=False, **options)


def test_unknown_options():
    with pytest.raises(TypeError, match="momentum"):
        map_network(random_problem(), momentum=0.9)


def test_diverged_training_is_an_error():
    with pytest.raises(FloatingPointError, match="learning_rate"):
        map_network(random_problem(), learning_rate=1e200, **QUICK)
