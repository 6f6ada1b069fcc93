"""What must be the same on an accelerator; on a CPU the same lines, against themselves. Marked `gpu`: needs one."""

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_sps as sps
from pyro_sps import plots
from pyro_sps.cli import main
from pyro_sps.inference import loop, program, replay
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
    options = {"chains": 2, "num_samples": 4, "starts": "prior", "progress": False}
    for kernel, more in {"mclmc": {"warmup": 20}, "nuts": {"warmup": 4, "max_tree_depth": 2}}.items():
        samples = sps.sample(model(device), *data(), kernel=kernel, **options, **more)
        assert all(value.device.type == device.type and value.isfinite().all() for value in samples.samples.values())
        assert samples.predict(data()[0], 10).mean.isfinite().all()


def test_tables_and_what_is_said_of_them(device, tmp_path):
    """Estimators, their predictions, diagnoses and files."""
    x, y = (part.numpy() for part in data())
    labels = np.where(y[:, 0] > 0, "yes", "no")
    short = {"num_steps": 60, "progress": False, "device": device, "random_state": 0}
    for model, targets in (
        (sps.BNNRegressor(method="sample", chains=2, **short), y[:, 0]),
        (sps.BNNRegressor(method="fit", replicas=2, **short), y[:, 0]),
        (sps.BNNClassifier(method="sample", chains=2, scheme="heavy", **short), labels),
    ):
        prediction = model.fit(x, targets).prediction(x)
        assert prediction.mean.device.type == device.type
        assert np.isfinite(prediction.lpp(targets))
        assert len(model.predict(x)) == len(x)
        first = model.posterior_ if model.method_ == "sample" else model.posterior_[0]
        assert str(sps.diagnose(first))
        assert first.to_arviz().posterior
        model.save(tmp_path / model.method_ / type(model).__name__)
        there = type(model).load(tmp_path / model.method_ / type(model).__name__)
        if device.type == "cpu":  # a loaded one is there, and draws of a device are its own
            torch.testing.assert_close(there.prediction(x).mean, prediction.mean)


def test_chains_from_map_and_their_plots(device):
    x, y = data()
    bnn = sps.BNN(network(device), sps.Rigid(), sps.Zero())
    samples = sps.sample(bnn, x, y, chains=2, num_samples=5, warmup=20, map_steps=20, progress=False)
    assert all(value.device.type == device.type for value in samples.starts.values())
    prediction = samples.predict(x, 10)
    assert np.isfinite([prediction.coverage(y), prediction.rmse(y)]).all()
    fit = sps.fit(bnn, x[:, :2], y, **QUICK)
    for ax in (
        plots.plot_predicted(prediction, y),
        plots.plot_calibration(prediction, y),
        plots.plot_pit(prediction, y),
        plots.plot_unit({"chains": samples}),
        plots.plot_twins(samples),
        plots.plot_masks(bnn.topology, bnn.masks),
        plots.plot_elbo(fit),
    ):
        np.atleast_1d(ax)[0].figure.canvas.draw()


def test_the_command_line_scores_what_it_fitted(device, tmp_path):
    """The rows held out are where the network is, and their scores on paper."""
    x, y = data()
    np.savetxt(tmp_path / "rows.csv", torch.cat([x, y], 1).numpy(), delimiter=",", header="a,b,y", comments="")
    for method, more in {"fit": [], "sample": ["--chains", "2"]}.items():
        command = ["fit", tmp_path / "rows.csv", "--target", "y", "--method", method, "--steps", "12", "--quiet", *more]
        command += ["--device", device, "--out", tmp_path / method]
        result = CliRunner().invoke(main, [str(one) for one in command])
        assert result.exit_code == 0, result.output
        assert np.isfinite(json.loads((tmp_path / method / "metrics.json").read_text())["lpp"])


def test_what_is_on_two_devices_is_refused(device):
    other = torch.device("meta" if device.type == "cpu" else "cpu")
    x, y = data()
    with pytest.raises(ValueError, match=f"x is on {other} and the model on {device}"):
        model(device)(x.to(other), y.to(device))


@pytest.mark.parametrize("device", ["xla", "nowhere", "meta", 1.5])
def test_a_device_that_is_not_there_is_told_by_name(device, tmp_path):
    x, y = data()
    fit = sps.fit(model(), x, y, checkpoint=tmp_path / "run", **QUICK)
    fit.save(tmp_path / "fit")
    drawn = {"chains": 1, "num_samples": 2, "warmup": 2, "progress": False}
    sps.sample(model(), x, y, checkpoint=tmp_path / "chains", starts="prior", **drawn)
    for run in (
        lambda: sps.fit(model(), x, y, device=device, **QUICK),
        lambda: sps.map_estimate(model(), x, y, num_steps=2, device=device, progress=False),
        lambda: sps.sample(model(), x, y, device=device, **drawn),
        lambda: sps.load(tmp_path / "fit", network(), device=device),
        lambda: sps.resume(tmp_path / "run", model(), x, y, num_steps=8, device=device, progress=False),
        lambda: sps.resume(tmp_path / "chains", model(), x, y, num_samples=3, device=device, progress=False),
        lambda: sps.BNNRegressor(device=device, num_steps=4, progress=False).fit(x, y),
        lambda: sps.BNNRegressor(device=device, num_steps=4, progress=False, method="fit").fit(x, y),
    ):
        with pytest.raises(ValueError, match=f"device={device!r} cannot be used here: .") as caught:
            run()
        assert type(caught.value) is ValueError


@pytest.mark.parametrize("options", [{}, {"batch_size": 5, "accumulate": 2, "replicas": 2}])
def test_compiled_steps_are_replayed_and_the_same(device, monkeypatch, options):
    """On an accelerator as CUDA graphs; on a CPU the lines around them, of the recorded step."""
    monkeypatch.setattr(replay, "REPLAYED", frozenset({device.type}))
    if device.type == "cpu":  # where compiling has tests of its own
        monkeypatch.setattr(program, "_compile", lambda recorded, *_: (recorded, ""))
    graphs = []
    monkeypatch.setattr(replay.Replay, "_recorded", noting(replay.Replay._recorded, graphs))
    fits = [sps.fit(model(device), *data(), compile=compile, **QUICK, **options) for compile in (True, False)]
    assert len(graphs) == (1 if not options else 2)  # of the step, or of the gradient and of the update
    for one, other in zip(*(fit if isinstance(fit, sps.Fits) else [fit] for fit in fits), strict=True):
        assert one.mode == "compiled"
        torch.testing.assert_close(one.guide.loc, other.guide.loc, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.losses, other.losses, rtol=1e-3)


def noting(function, calls):
    """The function, which notes what it returned."""

    def call(*args):
        calls.append(function(*args))
        return calls[-1]

    return call


class Waits(TorchDispatchMode):
    """Counts what would wait for an accelerator: numbers that Python asks for, and shapes that depend on them."""

    count = 0
    names = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"})

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation._overloadpacket._qualified_op_name.removeprefix("aten::") in self.names
        return operation(*args, **(kwargs or {}))


def waits_of(device, run):
    """How often something waited for the device; of an accelerator torch tells it."""
    if device.type == "cpu":
        with Waits() as waits:
            run()
        return waits.count
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in found)


def test_nothing_waits_more_than_every_fifty_steps(device, monkeypatch):
    """Of 50 steps more, one look at the losses more; on a CPU one a step, which shows that they are counted."""
    bnn = sps.BNN(torch.nn.Linear(2, 1, device=device), sps.Unmasked(), sps.Zero())
    options = {"batch_size": 4, "accumulate": 2, "replicas": 2, "average_steps": 1, "num_particles": 1}
    x, y = data()

    def more(steps):
        counts = []
        for count in (2, 2 + steps):
            options["num_steps"] = count
            run = partial(sps.fit, bnn, x, y, progress=False, compile=False, **options)
            counts.append(waits_of(device, run))
        return counts[1] - counts[0]

    if device.type == "cpu":
        assert more(5) == 5
        monkeypatch.setattr(loop, "LOOK_EVERY", {})
    assert more(50) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_the_page_says_so_and_nothing_else(tmp_path):
    folder = Path(sps.__file__).parent.parent / "benchmarks"
    page = folder / "RESULTS-gpu.md"
    before = page.read_text()
    done = subprocess.run([sys.executable, folder / "device.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "not run: there is no accelerator\n"
    assert page.read_text() == before
    told = before.splitlines()
    assert told == ["# On an accelerator", "", "Not run."] or told[2].startswith("`python benchmarks/device.py")
    assert not [one for one in folder.iterdir() if one.name == "results-gpu.json" and told[2] == "Not run."]


@pytest.mark.slow
def test_the_benchmark_runs_on_a_cpu(tmp_path):
    """A part of it, made small, by the lines that an accelerator runs."""
    script = Path(sps.__file__).parent.parent / "benchmarks" / "device.py"
    small = ["--seconds", "0.02", "--width", "2", "--rows", "256", "--epochs", "1", "--parts", "epochs"]
    command = [sys.executable, script, "--device", "cpu", *small, "--out", tmp_path]
    subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "results-gpu.json").read_text())["results"]
    assert 0 <= results["epochs"]["one particle, held-out accuracy"] <= 1
    assert "| deterministic, 1 epochs, s |" in (tmp_path / "RESULTS-gpu.md").read_text()
    words = [value for part in results.values() for name, value in part.items() if isinstance(value, str)]
    assert not any("failed" in value or "not run" in value for value in words)
