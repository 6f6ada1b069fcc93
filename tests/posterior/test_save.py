"""Saved fits: round trips, and every kind of damage."""

import hashlib
import json

import pytest
import torch
from torch import nn

import pyro_sps as sps
from pyro_sps.base.files import canonical


def make(directory=None, standardize=True, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator)
    y = x.sum(1, keepdim=True).sin().expand(-1, 2)
    net = sps.mlp([2, 4, 4, 2])
    options = {"scheme": sps.Heavy(), "values": sps.Constant(1.0, learn=True), **options}
    fit = sps.fit(sps.BNN(net, **options), x, y, num_steps=5, standardize=standardize, progress=False)
    if directory is not None:
        fit.save(directory)
    return fit, net, x, y


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": sps.Gaussian(0.2, learn=True, per_output=2)},
        {"scheme": sps.Unmasked(), "values": sps.Zero(), "scale_by_fan_in": True, "prior_scale": 0.5},
        {"values": sps.RandomConstant(0.3)},
        {"values": sps.Constant(0.3, learn=True, per_layer=True)},
        {"standardize": False},
        {"scheme": sps.Unmasked(), "values": sps.Zero(), "ordered_biases": True},
        {"values": sps.MAP(num_steps=5)},
    ],
)
def test_predictions_after_loading_are_equal_bit_for_bit(tmp_path, options):
    fit, net, x, y = make(tmp_path, **options)
    again = sps.load(tmp_path, sps.mlp([2, 4, 4, 2]))
    one, two = fit.predict(x, 30, seed=4), again.predict(x, 30, seed=4)
    for name in ("mean", "std", "draws"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert one.lpp(y) == two.lpp(y)
    assert (fit.losses == again.losses).all()
    assert again.settings["num_steps"] == 5
    assert all(torch.equal(fit.bnn.fixed[name], value) for name, value in again.bnn.fixed.items())
    again.save(tmp_path / "again")
    assert torch.equal(sps.load(tmp_path / "again", net).predict(x, 30, seed=4).mean, one.mean)
    with pytest.raises(ValueError, match="no training data"):
        _ = again.elbo


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets"),
    [
        (sps.Gaussian(0.2, learn=True, prior=(-1.0, 0.5)), 2, lambda y: y),
        (sps.Gaussian(0.2, learn=True, sampled=True), 2, lambda y: y),
        (sps.Gaussian(0.2, learn=True, per_output=2, prior=(-1.0, 0.5), sampled=True), 2, lambda y: y),
        (sps.StudentT(5.0, 0.2), 2, lambda y: y),
        (sps.StudentT(None, 0.2, learn=True, per_output=2), 2, lambda y: y),
        (sps.StudentT(None, 0.2, learn=True, df_prior=(1.0, 0.5), sampled=True), 2, lambda y: y),
        (sps.HeteroscedasticGaussian(), 4, lambda y: y),
        (sps.HeteroscedasticGaussian(), 4, lambda y: (3 * y).round()),
        (sps.HeteroscedasticGaussian([0.1, 0.2]), 4, lambda y: y),
        (sps.Categorical(), 3, lambda y: (y[:, 0] > 0).long()),
        (sps.Bernoulli(), 2, lambda y: (y > 0).float()),
        (sps.Poisson(), 2, lambda y: (3 * y.exp()).round()),
        (sps.Ordinal(3), 2, lambda y: (y > 0).float() + (y > 0.5)),
        (sps.Ordinal([2, 3, 7.5], [0.0, 1.0], learn=False), 2, lambda y: torch.where(y > 0, 7.5, 3.0)),
        (sps.Ordinal(3, sampled=True, prior_std=0.5), 2, lambda y: (y > 0).float() + (y > 0.5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_likelihood_comes_back(tmp_path, likelihood, outputs, targets, dtype):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = targets(x.sum(1, keepdim=True).sin().expand(-1, 2))
    net = sps.mlp([2, 3, outputs], skip=True, dtype=dtype)
    bnn = sps.BNN(net, sps.Random(0.3), sps.Constant(0.5), likelihood)
    fit = sps.fit(bnn, x, y, num_steps=5, num_particles=2, standardize=True, progress=False)
    fit.save(tmp_path)
    again = sps.load(tmp_path, net)
    assert again.bnn.likelihood.config() == fit.bnn.likelihood.config()
    assert again.bnn.likelihood.sampled == likelihood.sampled
    assert again.bnn.state_dict().keys() == fit.bnn.state_dict().keys()
    one, two = fit.predict(x, 30, seed=4), again.predict(x, 30, seed=4)
    assert torch.equal(one.log_prob(y), two.log_prob(y))
    assert one.log_prob(y).isfinite().all()
    for name in ("mean", "std", "draws"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_damaged_hierarchical_prior_is_refused(tmp_path):
    _, net, _, _ = make(tmp_path, prior=sps.Hierarchical(0.5))
    path = tmp_path / "fit.json"
    header = json.loads(path.read_text())["header"]
    for wrong in ({"width": -1.0}, {"width": "1"}, {"power": 1.0}, [1.0], None):
        header["prior"]["hierarchical"] = wrong
        checksum = hashlib.sha256(canonical(header).encode()).hexdigest()
        path.write_text(canonical({"checksum": checksum, "header": header}))
        with pytest.raises(sps.LoadError, match="damaged"):
            sps.load(tmp_path, net)


def test_own_priors_and_likelihoods_must_be_given_again(tmp_path):
    class Mine(sps.Gaussian):
        pass

    prior = torch.distributions.Laplace(0.0, 1.0)
    _, net, _, _ = make(tmp_path, prior=prior, likelihood=Mine(0.3))
    with pytest.raises(sps.LoadError, match="give it as prior="):
        sps.load(tmp_path, net)
    with pytest.raises(sps.LoadError, match="give it as likelihood="):
        sps.load(tmp_path, net, prior=prior)
    assert sps.load(tmp_path, net, prior=prior, likelihood=Mine(0.3)).bnn.prior is prior


def test_the_wrong_network_is_named(tmp_path):
    make(tmp_path)
    for other in (sps.mlp([2, 4, 5, 2]), nn.Linear(2, 2)):
        with pytest.raises(sps.LoadError, match="net is not the network of"):
            sps.load(tmp_path, other)


def test_missing_and_damaged_files(tmp_path):
    net = sps.mlp([2, 4, 4, 2])
    with pytest.raises(sps.LoadError, match=r"no saved fit in .*fit.json is missing"):
        sps.load(tmp_path / "nowhere", net)
    make(tmp_path)
    header, tensors = tmp_path / "fit.json", tmp_path / "fit.safetensors"
    good_header, good_tensors = header.read_bytes(), tensors.read_bytes()

    def check(message):
        with pytest.raises(sps.LoadError, match=message):
            sps.load(tmp_path, net)
        header.write_bytes(good_header)
        tensors.write_bytes(good_tensors)

    tensors.unlink()
    check("fit.safetensors is missing")
    tensors.write_bytes(good_tensors[:-10])
    check("checksum does not match")
    tensors.write_bytes(good_tensors[:200] + bytes([good_tensors[200] ^ 1]) + good_tensors[201:])
    check("checksum does not match")
    header.write_bytes(good_header[:100])
    check("damaged")
    header.write_bytes(good_header.replace(b'"seed": 0', b'"seed": 1'))
    check("checksum does not match")
    header.write_bytes(b"[" * 100_000)
    check("damaged")
    header.write_bytes(b"[]")
    check("damaged")
    header.write_bytes(b"\xff\xfe")
    check("damaged")
    assert sps.load(tmp_path, net) is not None


def test_another_format_is_named(tmp_path):
    import hashlib

    make(tmp_path)
    path = tmp_path / "fit.json"
    header = json.loads(path.read_text())["header"] | {"format": 99}
    text = json.dumps(header, indent=1, sort_keys=True)
    path.write_text(json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest(), "header": header}))
    with pytest.raises(sps.LoadError, match="format 99; this version"):
        sps.load(tmp_path, sps.mlp([2, 4, 4, 2]))


def test_nothing_is_left_beside_the_files(tmp_path):
    make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "fit.safetensors"]
