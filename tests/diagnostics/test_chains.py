"""Chains in words: what is well, and what is not."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import pyro_sps as sps


@pytest.fixture(scope="module")
def linear():
    """Chains of a linear model, which mix well."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    bnn = sps.BNN(nn.Linear(2, 1).double(), sps.Unmasked(), sps.Zero(), likelihood=sps.Gaussian(0.5))
    return x, y, sps.sample(bnn, x, y, chains=4, num_samples=60, thinning=15, warmup=500, map_steps=100, progress=False)


def test_chains_that_mix_have_no_warnings(linear):
    x, y, samples = linear
    found = sps.diagnose(samples)
    assert found.warnings == ()
    assert (found.rhat_weights < 1.1).all()
    assert (found.rhat_predictions < 1.1).all()
    assert found.rhat_energy < 1.1
    assert 100 < found.ess_predictions.mean() < 600
    text = str(found)
    assert "4 chains of 60 draws (mclmc)" in text
    assert "No warnings." in text
    assert "Approximate: unadjusted steps" in text
    json.dumps(found.to_dict(), allow_nan=False)
    held_out = samples.diagnose(held_out=(x[:5], y[:5]))
    assert "held-out" in str(held_out)


def test_what_is_wrong_is_said(linear):
    _, _, samples = linear
    moved = {name: value.clone() for name, value in samples.samples.items()}
    moved["weight"][1] += 5.0
    wrong = dataclasses.replace(
        samples, samples=moved, failures=samples.failures + 0.2, restarted=[2], stopped="interrupted after step 5"
    )
    found = " ".join(sps.diagnose(wrong).warnings)
    for part in ("differ in what they predict", "20.0% of the steps", "Chains [2] began again", "ended early: interr"):
        assert part in found


def test_one_chain_and_few_draws_have_no_rhat(linear):
    _, _, samples = linear
    found = sps.diagnose(samples.chain(0))
    assert found.to_dict()["rhat_weights"] is None
    assert found.to_dict()["ess_weights"] is not None
    assert sps.diagnose(samples.thinned(30)).to_dict()["ess_weights"] is None


def test_baselines_are_for_fits(linear):
    _, _, samples = linear
    with pytest.raises(ValueError, match="baseline is for fits"):
        sps.diagnose(samples, baseline=samples)


def test_groups_that_need_no_data_are_had_without_it(linear, tmp_path):
    """Of samples from a file, which hold no data; and data that nothing uses is told."""
    x, y, samples = linear
    samples.save(tmp_path)
    loaded = sps.load(tmp_path, nn.Linear(2, 1).double())
    draws = loaded.to_arviz(groups="posterior").posterior["w"].values
    assert (draws == samples.to_arviz(groups="posterior").posterior["w"].values).all()
    with pytest.raises(ValueError, match="hold no training data"):
        loaded.to_arviz()
    with pytest.warns(UserWarning, match="x and y have no effect: the groups posterior need no data"):
        loaded.to_arviz(groups="posterior", x=x, y=y)
    with pytest.warns(UserWarning, match="layout has no effect"):
        samples.to_arviz(groups="log_likelihood", layout="tensors")
    with pytest.warns(UserWarning, match="x and y have no effect: samples are checked on held_out"):
        sps.diagnose(samples, x, y, held_out=(x, y))
    with pytest.raises(ValueError, match=r"held_out must be a pair"):
        sps.diagnose(samples, held_out=x)
