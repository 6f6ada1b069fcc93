"""Networks that are not fully connected, from data to predictions and back from a file."""

import pytest
import torch
from network.networks import NETWORKS
from torch import nn

import pyro_sps as sps

IMAGES = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(1))
WORDS = torch.randint(0, 5, (40, 3), generator=torch.Generator().manual_seed(2))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1))


CASES = {
    "convolutional": (convolutional, IMAGES, IMAGES[:, 0, :3].mean((1, 2))[:, None], None),
    "recurrent": (NETWORKS["lstm"][0], SERIES, SERIES[:, -1, :2], None),
    "attention": (NETWORKS["small gpt"][0], WORDS, (WORDS.sum(1) > 6).long(), sps.Categorical()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_fitted_predicts_and_is_loaded_again(name, tmp_path):
    make, x, y, likelihood = CASES[name]
    torch.manual_seed(0)
    net = make()
    bnn = sps.BNN(net, sps.Rigid(), sps.RandomConstant(), likelihood, example=x[:2])
    fit = sps.fit(bnn, x, y, num_steps=150, num_particles=2, batch_size=20, progress=False)
    assert fit.mode == "recorded"
    assert fit.losses[-20:].mean() < fit.losses[:20].mean()
    prediction = fit.predict(x, 20, seed=3)
    assert prediction.draws.shape[:2] == (20, 40)
    fit.save(tmp_path)
    again = sps.load(tmp_path, make())
    assert torch.equal(again.predict(x, 20, seed=3).mean, prediction.mean)
    assert fit.bnn.symmetry().permutations.is_rigid


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("convolutional", "mclmc"), ("recurrent", "mams"), *(("attention", own) for own in ("mclmc", "mams", "nuts"))],
)
def test_a_network_is_sampled_whatever_its_inputs_are(name, kernel):
    make, x, y, likelihood = CASES[name]
    torch.manual_seed(0)
    bnn = sps.BNN(make(), sps.Unmasked(), sps.Zero(), likelihood, example=x[:2])
    some = slice(4) if kernel == "nuts" else slice(None)
    options = {"chains": 2, "num_samples": 4, "warmup": 4, "thinning": 1, "map_steps": 20, "progress": False}
    samples = sps.sample(bnn, x[some], y[some], kernel=kernel, **options)
    for values in (samples.samples, samples.starts):
        every = torch.cat([value.flatten() for value in values.values()])
        assert every.dtype == bnn.like.dtype
        assert (every != every.round()).float().mean() > 0.9  # not made whole numbers, which words are
    assert samples.predict(x).mean.isfinite().all()


@pytest.mark.parametrize("run", ["fit", "sample"])
def test_a_network_of_words_goes_on_from_a_checkpoint(run, tmp_path):
    make, x, y, likelihood = CASES["attention"]
    torch.manual_seed(0)
    bnn = sps.BNN(make(), sps.Unmasked(), sps.Zero(), likelihood, example=x[:2])
    options = (
        {"num_steps": 12}
        if run == "fit"
        else {"chains": 2, "num_samples": 6, "warmup": 6, "thinning": 1, "map_steps": 9}
    )
    start = getattr(sps, run)
    whole = start(bnn, x, y, progress=False, **options)

    def crash(step, _):
        if step == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        start(bnn, x, y, progress=False, callbacks=[crash], checkpoint=tmp_path / "run", checkpoint_every=4, **options)
    again = sps.resume(tmp_path / "run", bnn, x, y, progress=False)
    assert torch.equal(again.predict(x, 8, seed=0).mean, whole.predict(x, 8, seed=0).mean)


def test_replicas_of_a_convolutional_network_are_one_program():
    make, x, y, _ = CASES["convolutional"]
    bnn = sps.BNN(make(), sps.Unmasked(), sps.Zero(), example=x[:2])
    fits = sps.fit(bnn, x, y, num_steps=20, num_particles=2, replicas=2, progress=False)
    assert {one.mode for one in fits} == {"recorded"}
    assert fits.predict(x, 6).mean.shape == y.shape


def test_map_values_and_the_default_recipe():
    make, x, y, _ = CASES["convolutional"]
    bnn = sps.BNN(make(), values=sps.MAP(num_steps=50), example=x[:2])
    fit = sps.fit(bnn, x, y, num_steps=20, num_particles=2, progress=False)
    assert all(value.isfinite().all() for value in fit.bnn.fixed.values())
    assert fit.bnn.num_fixed == round(0.85 * 27) + round(0.85 * 48)


def test_inputs_that_do_not_fit_are_told_before_any_work():
    make, x, y, _ = CASES["convolutional"]
    bnn = sps.BNN(make(), sps.Unmasked(), sps.Zero(), example=x[:2])
    with pytest.raises(ValueError, match=r"x must have 4 dimensions, such as \('rows', 1, 6, 6\), got"):
        sps.fit(bnn, x.flatten(1), y, num_steps=1)
    with pytest.raises(ValueError, match=r"x has rows of shape \(1, 7, 7\), on which the network cannot be run"):
        sps.fit(bnn, torch.zeros(40, 1, 7, 7), y, num_steps=1)


def test_dropout_does_nothing_and_the_network_is_left_as_it_was():
    """A Bayesian network has its noise from the weights; batch norm keeps the statistics that it has."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 1)).train()
    net[1].running_mean.fill_(0.5)
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero())
    weights = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(7, 3)
    expected = net.eval()(x)
    net.train()
    torch.testing.assert_close(bnn.function(weights, x), expected)
    assert net.training
    assert net[3].training


def test_a_parameter_without_dimensions_has_a_posterior(tmp_path):
    """Such as the gain of a residual branch, or a temperature."""
    x = SERIES[:, 0]
    net = NETWORKS["residual gain"][0]()
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), example=x[:2])
    fit = sps.fit(bnn, x, x[:, :2], num_steps=30, num_particles=2, progress=False)
    assert fit.predict(x, 7).draws.shape == (7, 40, 2)
    assert fit.to_arviz(draws=5).posterior["w"].shape[-1] == bnn.topology.num_weights
    fit.save(tmp_path)
    again = sps.load(tmp_path, NETWORKS["residual gain"][0]())
    assert torch.equal(again.predict(x, 7, seed=1).mean, fit.predict(x, 7, seed=1).mean)
    options = {"chains": 2, "num_samples": 4, "warmup": 10, "map_steps": 10, "progress": False}
    chains = sps.sample(bnn, x, x[:, :2], **options)
    assert chains.weights()["gain"].shape == (2, 4)
    assert chains.predict(x, 8).mean.shape == (40, 2)
