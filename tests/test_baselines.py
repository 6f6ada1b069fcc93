"""Baselines against closed forms and against themselves trained alone."""

import dataclasses

import pytest
import torch
from torch import nn

from pyro_sps.study.baselines import Training, deep_ensemble, map_network, train_networks
from pyro_sps.study.problems import Problem

QUICK = {"num_steps": 20, "progress": False}


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
    mixtures = map_network(problem, num_steps=3000, learning_rate=0.05, final_learning_rate=1e-4, **options)
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
