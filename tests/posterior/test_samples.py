"""Samples on disk, and what is read of files that are not what they say."""

import functools

import pytest
import torch

import pyro_sps as sps


def make(**options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    y = 3 + x.sum(1, keepdim=True).sin()
    net = sps.mlp([2, 3, 1], dtype=torch.float64)
    likelihood = options.pop("likelihood", sps.Gaussian(0.1, learn=True))
    bnn = sps.BNN(net, options.pop("scheme", sps.Unmasked()), sps.Zero(), likelihood, **options)
    kernel = {"chains": 3, "num_samples": 4, "thinning": 2, "warmup": 20, "map_steps": 20, "progress": False}
    return net, x, y, sps.sample(bnn, x, y, **kernel)


plain = functools.cache(make)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": sps.Random(0.5), "prior": sps.Hierarchical()},
        {"likelihood": sps.StudentT(df=None, learn=True), "prior": sps.Hierarchical(family="halfnormal")},
    ],
    ids=["plain", "masked", "student"],
)
def test_samples_are_loaded_bit_for_bit(tmp_path, options):
    net, x, y, samples = make(**options)
    samples.save(tmp_path)
    again = sps.load(tmp_path, net)
    assert type(again) is sps.Samples
    assert all(torch.equal(value, again.samples[name]) for name, value in samples.samples.items())
    assert again.samples.keys() == samples.samples.keys()
    for name in ("energies", "errors", "failures"):
        assert torch.equal(getattr(again, name), getattr(samples, name))
    for name in ("kernel", "tuning", "restarted", "acceptance_rates", "stopped", "mode", "input_shape"):
        assert getattr(again, name) == getattr(samples, name)
    assert torch.equal(again.predict(x).draws, samples.predict(x).draws)
    assert again.to_arviz(x=x, y=y).posterior["w"].shape == samples.to_arviz().posterior["w"].shape
    with pytest.raises(ValueError, match="no training data"):
        again.to_arviz()


def test_a_fit_is_replaced_by_samples_and_back(tmp_path):
    net, x, y, samples = plain()
    fit = sps.fit(sps.BNN(net, sps.Unmasked(), sps.Zero()), x, y, num_steps=5, progress=False)
    for one in (fit, samples, fit):
        one.save(tmp_path)
        assert type(sps.load(tmp_path, net)) is type(one)


def test_damaged_samples_are_refused(tmp_path):
    net, _, _, samples = plain()
    samples.save(tmp_path)
    path = tmp_path / "fit.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(sps.LoadError, match="damaged"):
        sps.load(tmp_path, net)
    path.write_bytes(content)
    with pytest.raises(sps.LoadError, match="is not the network"):
        sps.load(tmp_path, sps.mlp([2, 4, 1], dtype=torch.float64))


@pytest.mark.parametrize("forged", [{"chains": 2}, {"draws": -1}, {"kernel": 3}, {"restarted": [7]}, {"more": 1}])
def test_forged_headers_are_refused(tmp_path, forged):
    """With a right checksum: whoever can write a file can write that."""
    from pyro_sps.base.files import seal, unseal

    net, _, _, samples = plain()
    samples.save(tmp_path)
    path = tmp_path / "fit.safetensors"
    header, tensors = unseal(path, 1 << 30, "")
    header["samples"] |= forged
    path.write_bytes(seal(tensors, header))
    with pytest.raises(sps.LoadError, match="damaged"):
        sps.load(tmp_path, net)


def test_thinned_and_picked_chains():
    _, x, _, samples = plain()
    assert samples.thinned(3).num_samples == 2
    assert torch.equal(samples.thinned(3).energies, samples.energies[:, [0, 3]])
    assert torch.equal(samples.chain(2, 0).energies, samples.energies[[2, 0]])
    assert samples.chain(2).predict(x).mean.shape == (15, 1)
    for wrong in ((), (3,), (-1,)):
        with pytest.raises(ValueError, match="chains must be among 0"):
            samples.chain(*wrong)
    with pytest.raises(ValueError, match="every must be an integer from 1 to 4"):
        samples.thinned(5)
