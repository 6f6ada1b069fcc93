"""Replicas on dask's workers: those of one process, whoever is killed."""

import multiprocessing
import os
import signal

import pytest
import torch

import pyro_sps as sps

distributed = pytest.importorskip("distributed")

QUICK = {"num_steps": 5, "num_particles": 2, "progress": False, "replicas": 2}


def data():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    return x, x.square()


def model():
    return sps.BNN(sps.mlp([1, 4, 1], dtype=torch.float64), sps.Rigid(), sps.MAP(num_steps=3))


@pytest.fixture(scope="module")
def client():
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        yield client


@pytest.mark.slow
def test_replicas_equal_those_of_one_process(client, tmp_path):
    here = sps.fit(model(), *data(), **QUICK)
    there = sps.fit(model(), *data(), **QUICK, scheduler=client, checkpoint=tmp_path)
    assert [fit.settings["seed"] for fit in there] == [0, 1]
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.guide.loc, other.guide.loc)
        torch.testing.assert_close(one.guide.scale, other.guide.scale)
    torch.testing.assert_close(there.predict(data()[0], 30).mean, here.predict(data()[0], 30).mean)
    # Whoever comes after a worker that was killed finds its checkpoint.
    again = sps.fit(model(), *data(), **QUICK, scheduler=client, checkpoint=tmp_path)
    assert all(torch.equal(one.guide.loc, other.guide.loc) for one, other in zip(there, again, strict=True))


def test_what_fails_is_left_out_and_told(client, monkeypatch):
    from pyro_sps.inference import cluster

    run = cluster.run_fit

    def fails(bnn, x, y, validation, callbacks, asked, **options):
        if asked.seed == 1:
            raise RuntimeError("no more memory")
        return run(bnn, x, y, validation, callbacks, asked, **options)

    monkeypatch.setattr(cluster, "run_fit", fails)
    with pytest.warns(RuntimeWarning, match="replica 1 failed .*no more memory; the 1 of 2 that succeeded"):
        fits = sps.fit(model(), *data(), **QUICK, scheduler=client)
    assert [fit.settings["seed"] for fit in fits] == [0]
    with pytest.raises(ValueError, match="scheduler has no effect on a single fit"):
        sps.fit(model(), *data(), **{**QUICK, "replicas": None}, scheduler=client)
    with pytest.raises(ValueError, match="callbacks cannot be called on other machines"):
        sps.fit(model(), *data(), **QUICK, scheduler=client, callbacks=[print])


def killed_once(place):
    """A prior whose first user on a worker is killed."""

    def prior(tensor):
        if multiprocessing.parent_process() is not None:
            try:
                with open(place, "x"):
                    os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())

    return prior


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path):
    bnn = sps.BNN(
        sps.mlp([1, 4, 1], dtype=torch.float64), sps.Rigid(), sps.Zero(), prior=killed_once(tmp_path / "dead")
    )
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as local:
        fits = sps.fit(bnn, *data(), **QUICK, scheduler=local.scheduler_address)
    assert (tmp_path / "dead").exists()
    here = sps.fit(bnn, *data(), **QUICK)
    for one, other in zip(here, fits, strict=True):
        torch.testing.assert_close(one.guide.loc, other.guide.loc)
