"""What must be the same on an accelerator; on a CPU the same lines, against themselves. Marked `gpu`: needs one."""

import warnings

import numpy as np
import pytest
import torch

import pyro_sps as sps
from pyro_sps.inference.job import prepare_job
from pyro_sps.inference.settings import FitSettings

QUICK = {"num_steps": 6, "num_particles": 2, "progress": False}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    return torch.device(request.param)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator)
    return x, x.prod(1, keepdim=True)


def network(device="cpu"):
    torch.manual_seed(0)
    return sps.mlp([2, 4, 1]).to(device)


def model(device="cpu"):
    return sps.BNN(network(device), sps.Rigid(), sps.Constant(1.0, learn=True))


def test_one_objective(device):
    """The same draws give the same loss and gradient."""
    found = []
    for own in (torch.device("cpu"), device):
        job = prepare_job(model(), *data(), None, FitSettings(**QUICK, device=own, init="random"), None)
        noise = torch.randn(3, job.problem.size, generator=torch.Generator().manual_seed(1)).to(own)
        start = {name: value.requires_grad_() for name, value in job.start("random", 0).items()}
        loss = job.objective(start, noise, job.members[0].x, job.members[0].y)
        assert loss.device.type == own.type
        found.append([loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, [*start.values()]))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_fitted_here_loaded_there_and_gone_on_with(device, tmp_path):
    x, y = data()
    fit = sps.fit(model(), x, y, device=device, checkpoint=tmp_path / "run", **QUICK)
    assert fit.guide.loc.device.type == device.type
    mean = fit.predict(x, 20).mean  # inputs on a CPU
    assert np.isfinite(fit.losses).all()
    fit.save(tmp_path / "fit")
    there = sps.load(tmp_path / "fit", network(), device="cpu")
    torch.testing.assert_close(there.guide.loc, fit.guide.loc.cpu())
    if device.type == "cpu":
        torch.testing.assert_close(there.predict(x, 20).mean, mean)
    more = sps.fit(model(), x, y, start=there, device=device, **QUICK)
    assert more.guide.loc.device.type == device.type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another device, where it is one
        again = sps.resume(tmp_path / "run", model(), x, y, progress=False, num_steps=8, device="cpu")
    assert len(again.losses) == 8


def test_sampled_here(device):
    options = {"chains": 2, "num_samples": 5, "starts": "prior", "progress": False}
    for kernel, more in {"mclmc": {}, "nuts": {"warmup": 20}}.items():
        if kernel == "nuts" and device.type == "cpu":  # which has tests of its own
            continue
        samples = sps.sample(model(device), *data(), kernel=kernel, **options, **more)
        assert all(value.device.type == device.type and value.isfinite().all() for value in samples.samples.values())
