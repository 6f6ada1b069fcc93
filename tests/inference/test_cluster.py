"""Replicas and chains on dask's workers: those of one process, whoever is killed."""

import faulthandler
import multiprocessing
import os
import signal
import sys

import pytest
import torch

import pyro_sps as sps
from pyro_sps.base.cluster import gathered

distributed = pytest.importorskip("distributed")

QUICK = {"num_steps": 5, "num_particles": 2, "progress": False, "replicas": 2}


def data():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    return x, x.square()


def model():
    return sps.BNN(sps.mlp([1, 4, 1], dtype=torch.float64), sps.Rigid(), sps.MAP(num_steps=3))


@pytest.fixture(scope="module")
def client():
    with started_client() as client:
        yield client


def started_client(tries=3):
    """A client with a worker in this process.

    Its thread has ten seconds to start in, a number within `distributed`, and on a machine that stood still for longer
    it ends with an assertion.
    """
    for left in reversed(range(tries)):
        try:
            return distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None)
        except AssertionError:
            faulthandler.dump_traceback(sys.__stderr__)  # what the threads were at, should it not be the machine
            if not left:
                raise


@pytest.mark.slow
def test_replicas_on_data_read_in_pieces_know_where_it_is(client):
    source = torch.utils.data.TensorDataset(*data())
    options = {**QUICK, "batch_size": 8}
    there = sps.fit(model(), source, **options, scheduler=client, validation=source, validate_every=5)
    here = sps.fit(model(), *data(), **options, validation=data(), validate_every=5)
    for one, other in zip(there, here, strict=True):
        assert one.elbo == pytest.approx(other.elbo)
        assert one.validation == [pytest.approx(check) for check in other.validation]


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


def test_what_has_ended_at_an_interrupt_is_kept(client):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="interrupted: the 1 of 3 that had ended are the result"):
        found = gathered(client, int, [("0",), ("1",), ("2",)], "task", interrupted)
    assert all(index == value for index, value in found.items())
    assert len(found) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        gathered(client, int, [("a",), ("b",)], "task", lambda: None)


SAMPLED = {"num_samples": 3, "thinning": 2, "starts": "prior", "progress": False}


def samples_of(**options):
    bnn = sps.BNN(sps.mlp([1, 3, 1], dtype=torch.float64), sps.Rigid(), sps.Zero(), sps.Gaussian(0.3, learn=True))
    return sps.sample(bnn, *data(), **SAMPLED | options)


@pytest.mark.parametrize(
    "options",
    [
        {"chains": 3, "warmup": 12},
        pytest.param({"chains": 3, "warmup": 12, "batch_size": 8}, marks=pytest.mark.slow),
        pytest.param({"chains": 2, "warmup": 12, "kernel": "mams"}, marks=pytest.mark.slow),
        pytest.param({"chains": 2, "warmup": 5, "kernel": "nuts", "num_samples": 4}, marks=pytest.mark.slow),
    ],
)
def test_chains_equal_those_of_one_process(client, monkeypatch, options):
    monkeypatch.setattr(client, "nthreads", lambda: {"one": 1, "other": 1})
    here, there = samples_of(**options), samples_of(**options, scheduler=client)
    for name, value in here.samples.items():  # after few steps, by which rounding has not grown
        torch.testing.assert_close(there.samples[name], value, rtol=1e-6, atol=1e-8)
    for name in ("energies", "errors", "failures"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=1e-6, atol=1e-8)
    assert there.acceptance_rates == here.acceptance_rates
    assert there.tuning["step_size"] == pytest.approx(here.tuning["step_size"])
    torch.testing.assert_close(there.predict(data()[0]).mean, here.predict(data()[0]).mean)


def test_chains_that_fail_are_left_out_and_told(client, monkeypatch):
    from pyro_sps.inference import chain_cluster

    run = chain_cluster.ChainRun

    def fails(*arguments, numbers, **options):
        if 1 in numbers:
            raise RuntimeError("no more memory")
        return run(*arguments, numbers=numbers, **options)

    monkeypatch.setattr(chain_cluster, "ChainRun", fails)
    monkeypatch.setattr(client, "nthreads", lambda: {"many": 9})
    with pytest.warns(RuntimeWarning, match="part 1 failed .*no more memory; the 2 of 3 that succeeded"):
        there = samples_of(chains=3, warmup=12, scheduler=client)
    whole = samples_of(chains=3, warmup=12)
    assert there.num_chains == 2
    torch.testing.assert_close(there.samples["0.weight"], whole.samples["0.weight"][[0, 2]], rtol=1e-6, atol=1e-8)
    for option in ({"callbacks": [print]}, {"checkpoint": "somewhere"}, {"time_limit": 10.0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is of no use with scheduler"):
            samples_of(scheduler=client, **option)


@pytest.mark.slow
def test_chains_of_a_worker_that_is_killed_are_drawn_again(tmp_path):
    bnn = sps.BNN(
        sps.mlp([1, 3, 1], dtype=torch.float64), sps.Rigid(), sps.Zero(), prior=killed_once(tmp_path / "dead")
    )
    told = SAMPLED | {"chains": 2, "warmup": 12}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as local:
        there = sps.sample(bnn, *data(), **told, scheduler=local.scheduler_address)
    assert (tmp_path / "dead").exists()
    here = sps.sample(bnn, *data(), **told)
    torch.testing.assert_close(there.samples["0.weight"], here.samples["0.weight"], rtol=1e-6, atol=1e-8)


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
