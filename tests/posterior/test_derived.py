"""Kinds of uncertainty, derivatives and the network at the posterior mean, by their definitions."""

import pytest
import torch

import pyro_sps as sps


def make(likelihood=None, outputs=2, replicas=None, **options):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(25, 3, generator=generator, dtype=torch.float64) + 1
    y = torch.randint(0, 2, (25,), generator=generator) if likelihood is not None else 50 * x[:, :outputs].sin() + 7
    net = sps.mlp([3, 4, outputs], dtype=torch.float64)
    bnn = sps.BNN(net, sps.Heavy(), sps.Constant(1.0), likelihood)
    fit = sps.fit(bnn, x, y, num_steps=20, replicas=replicas, progress=False, **options)
    return fit, x, net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replicas", [None, 2])
def test_variances_are_those_of_draws(replicas):
    fit, x, _ = make(replicas=replicas)
    prediction = fit.predict(x, 40)
    found = prediction.uncertainty()
    torch.testing.assert_close(found.epistemic, prediction.function_draws.var(0, unbiased=False))
    torch.testing.assert_close(found.total, prediction.std**2)
    torch.testing.assert_close(found.total, found.epistemic + found.aleatoric)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("likelihood", "outputs"), [(sps.Categorical(), 2), (sps.Bernoulli(), 1)])
def test_entropies_are_those_of_draws(likelihood, outputs):
    fit, x, _ = make(likelihood, outputs)
    prediction = fit.predict(x, 40)
    p = prediction.function_draws
    p = p if outputs == 2 else torch.stack([p, 1 - p], -1)
    found = prediction.uncertainty("entropy")
    torch.testing.assert_close(found.total, -(p.mean(0) * p.mean(0).log()).sum(-1))
    torch.testing.assert_close(found.aleatoric, -(p * p.log()).sum(-1).mean(0))
    assert (found.epistemic > -1e-12).all()
    with pytest.raises(ValueError, match="measure must be 'variance' or 'entropy', got 'spread'"):
        prediction.uncertainty("spread")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replicas", [None, 2])
def test_gradients_are_those_of_differences(replicas):
    fit, x, _ = make(replicas=replicas)
    found = fit.predict(x, 40).gradient()
    assert found.shape == (25, 2, 3)
    for column in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[column] = 1e-5
        difference = (fit.predict(x + step, 40).mean - fit.predict(x - step, 40).mean) / 2e-5
        torch.testing.assert_close(found[:, :, column], difference, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_network_at_the_posterior_mean():
    fit, x, _ = make()
    with torch.no_grad():
        fit.guide.scale_unconstrained.fill_(-40.0)  # a posterior that is a point
    net = fit.mean_network()
    torch.testing.assert_close(net(x), fit.predict(x, 2).mean)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))
    logits = make(sps.Categorical(), 2)[0]
    assert logits.mean_network()(x).shape == (25, 2)
    bnn = sps.BNN(sps.mlp([3, 4, 2]), sps.Unmasked(), sps.Zero(), sps.HeteroscedasticGaussian())
    scales = sps.fit(bnn, x, x[:, :1], num_steps=1, progress=False)
    with pytest.raises(ValueError, match="HeteroscedasticGaussian takes some outputs of the network as scales"):
        scales.mean_network()
