"""Saved fits: round trips, and every kind of damage."""

import multiprocessing
import random
import time

import pytest
import torch
from saved_files import FILE, as_old, make_up, take_apart
from torch import nn

import pyro_sps as sps
from pyro_sps.base import files


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
        (sps.HeteroscedasticStudentT(), 4, lambda y: y),
        (sps.HeteroscedasticStudentT(5.0, 0.1), 4, lambda y: y),
        (sps.HeteroscedasticStudentT(df_prior=(1.0, 0.5), sampled=True, least=3.0), 4, lambda y: y),
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
    header, tensors = take_apart(tmp_path / FILE)
    for wrong in ({"width": -1.0}, {"width": "1"}, {"power": 1.0}, [1.0], None):
        header["prior"]["hierarchical"] = wrong
        make_up(tmp_path / FILE, header, tensors)
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
    make(tmp_path)
    for wrong in ({"prior": prior}, {"likelihood": sps.Poisson()}):
        with pytest.raises(sps.LoadError, match="leave"):
            sps.load(tmp_path, net, **wrong)


def test_the_wrong_network_is_named(tmp_path):
    make(tmp_path)
    for other in (sps.mlp([2, 4, 5, 2]), nn.Linear(2, 2)):
        with pytest.raises(sps.LoadError, match="net is not the network of"):
            sps.load(tmp_path, other)


def test_missing_and_damaged_files(tmp_path):
    net = sps.mlp([2, 4, 4, 2])
    with pytest.raises(sps.LoadError, match=r"no saved fit in .*fit.safetensors is missing"):
        sps.load(tmp_path / "nowhere", net)
    make(tmp_path)
    as_old(tmp_path)
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
    wrong = good_header.replace(b'"seed": 0', b'"seed": 1')
    assert wrong != good_header
    header.write_bytes(wrong)
    check("checksum does not match")
    header.write_bytes(b"[" * 100_000)
    check("damaged")
    header.write_bytes(b"[]")
    check("damaged")
    header.write_bytes(b"\xff\xfe")
    check("damaged")
    with pytest.warns(UserWarning, match="of version 0.1"):
        assert sps.load(tmp_path, net) is not None


def test_another_format_is_named(tmp_path):
    make(tmp_path)
    header, tensors = take_apart(tmp_path / FILE)
    make_up(tmp_path / FILE, header | {"format": 99}, tensors)
    with pytest.raises(sps.LoadError, match="format 99; this version"):
        sps.load(tmp_path, sps.mlp([2, 4, 4, 2]))


def test_nothing_is_left_beside_the_files(tmp_path):
    make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# --- another network -------------------------------------------------------------------------------


class Skip(nn.Module):
    """Two hidden layers, with or without a connection around the second."""

    def __init__(self, skip=True, slope=0.01, factor=1.0):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.act, self.skip, self.factor = nn.LeakyReLU(slope), skip, factor

    def forward(self, x):
        hidden = self.act(self.first(x))
        inner = self.act(self.second(hidden)) * self.factor
        return self.last(hidden + inner if self.skip else inner)


def saved_net(net, directory, dtype=torch.float32):
    x = torch.randn(12, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    fit = sps.fit(sps.BNN(net.to(dtype), sps.Unmasked(), sps.Zero()), x, x, num_steps=1, progress=False)
    fit.save(directory)
    return fit


@pytest.mark.parametrize(
    ("net", "other"),
    [
        (sps.mlp([2, 4, 4, 2]), sps.mlp([2, 4, 4, 2], "relu")),
        (sps.mlp([2, 4, 2], "relu"), sps.mlp([2, 4, 2], "leaky_relu")),
        (sps.mlp([2, 4, 2], "gelu"), nn.Sequential(nn.Linear(2, 4), nn.GELU("tanh"), nn.Linear(4, 2))),
        (sps.mlp([2, 4, 2], "relu"), nn.Sequential(nn.Linear(2, 4), nn.ReLU6(), nn.Linear(4, 2))),
        (Skip(), Skip(skip=False)),
        (Skip(), Skip(slope=0.011)),
        (Skip(), Skip(factor=1.001)),
    ],
    ids=["relu", "leaky", "gelu", "relu6", "skip", "slope", "factor"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_of_the_same_shapes_that_computes_something_else_is_refused(tmp_path, net, other, dtype):
    fit = saved_net(net, tmp_path, dtype)
    x = torch.randn(3, 2, dtype=dtype)
    assert torch.equal(sps.load(tmp_path, net).predict(x, 9).mean, fit.predict(x, 9).mean)
    with pytest.raises(sps.LoadError, match=r"with the same weights it has other outputs\. It computes"):
        sps.load(tmp_path, other)


def test_the_same_network_in_other_words_loads(tmp_path):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    class Modules(Functional):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    fit = saved_net(Functional(), tmp_path)
    x = torch.randn(3, 2)
    assert torch.equal(sps.load(tmp_path, Modules()).predict(x, 9).mean, fit.predict(x, 9).mean)


def test_the_shape_of_the_inputs_is_kept_from_file_to_file(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.randn(9, 2, 2)
    sps.fit(sps.BNN(net, sps.Unmasked(), sps.Zero()), x, x[:, 0, 0], num_steps=1, progress=False).save(tmp_path)
    sps.load(tmp_path, net).save(tmp_path)
    assert sps.load(tmp_path, net).predict(x, 3).mean.shape == (9, 1)


# --- several fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [sps.Constant(1.0, learn=True), sps.MAP(num_steps=5)])
def test_several_fits_are_saved_and_loaded_as_one(tmp_path, values):
    net, x = sps.mlp([2, 4, 4, 2]), torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    bnn = sps.BNN(net, sps.Heavy(), values)
    options = {"num_steps": 4, "validation": (x, x), "validate_every": 2, "progress": False}
    fits = sps.fit(bnn, x, x, replicas=3, **options)
    elbo = fits[0].elbo
    fits.save(tmp_path)
    again = sps.load(tmp_path, net)
    assert isinstance(again, sps.Fits)
    assert len(again) == 3
    assert torch.equal(again.predict(x, 30, seed=4).draws, fits.predict(x, 30, seed=4).draws)
    assert (again.losses == fits.losses).all()
    assert [fit.settings["seed"] for fit in again] == [0, 1, 2]
    assert [fit.validation for fit in again] == [fit.validation for fit in fits]
    assert again[0].elbo == elbo  # which was asked for before
    one = sps.fit(bnn, x, x, replicas=1, **options)
    one.save(tmp_path)
    assert isinstance(sps.load(tmp_path, net), sps.Fits)


# --- saving over a fit -----------------------------------------------------------------------------


def weights(fit):
    return fit.guide.loc[0].item()


def marked(mark):
    """A fit that can be told from others."""
    fit, net, _, _ = make()
    with torch.no_grad():
        fit.guide.loc.fill_(mark)
    return fit, net


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_fit(tmp_path, monkeypatch, call):
    old, net = marked(1.0)
    old.save(tmp_path)

    def fails(*args, **kwargs):
        raise OSError("no room")

    new, _ = marked(2.0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", fails, raising=False) if call == "open" else patch.setattr(files.os, call, fails)
        with pytest.raises(OSError, match="no room"):
            new.save(tmp_path)
    assert weights(sps.load(tmp_path, net)) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def _save_for_ever(directory, fit):
    while True:
        fit.save(directory)


def test_killed_writers_and_readers_meet_whole_fits_only(tmp_path):
    """Two processes write to one folder and are killed at any moment, while this one reads."""
    context = multiprocessing.get_context("fork")  # which needs no imports again
    first, net = marked(0.0)
    first.save(tmp_path)
    generator, seen = random.Random(0), set()
    for mark in (1.0, 2.0):
        writers = [context.Process(target=_save_for_ever, args=(tmp_path, marked(mark + own)[0])) for own in (0.0, 0.5)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 60
        while not {mark, mark + 0.5} <= seen and time.monotonic() < deadline:
            seen.add(weights(sps.load(tmp_path, net)))
        time.sleep(generator.random() / 20)
        for writer in writers:
            writer.kill()
            writer.join()
        seen.add(weights(sps.load(tmp_path, net)))
    assert {1.0, 1.5, 2.0, 2.5} <= seen <= {0.0, 1.0, 1.5, 2.0, 2.5}
    first.save(tmp_path)  # what the killed ones left is cleaned up
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert weights(sps.load(tmp_path, net)) == 0.0


def test_what_another_writer_is_at_is_not_cleaned_up(tmp_path):
    path = tmp_path / "file"
    file, temporary = files._temporary(path)
    left = tmp_path / f".file.{'0' * 16}.tmp"
    left.write_bytes(b"of a process that was killed")
    with file:
        files.write_atomically(path, b"other")
        assert temporary.exists()
        assert not left.exists()
