"""The same numbers in other processes and threads, and nothing of the process left changed."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import pyro_sps as sps
from pyro_sps.base.process import logged_less, process_lock, silenced, warn_user
from pyro_sps.cli import main
from pyro_sps.inference import loop
from pyro_sps.inference.program import make_program
from pyro_sps.model.density import pyro_session


@pytest.fixture(autouse=True)
def _one_thread_each():
    """Sums of several threads of torch's round differently; and switch Python's threads as often as can be."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(interval)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator)
    return x, torch.stack([x.sum(1).sin(), x.prod(1)], 1)


def model(seed=0):
    net = sps.mlp([3, 4, 4, 2], device="meta")
    return sps.BNN(net, sps.Heavy(), sps.Constant(1.0, learn=True), sps.Gaussian(0.3, learn=True), seed=seed)


def run(seed, bnn=None):
    """A fit, with the options that draw most."""
    options = {"init": "map", "map_steps": 5} if seed % 2 else {"batch_size": 16}
    bnn = model(seed) if bnn is None else bnn
    return sps.fit(bnn, *data(), num_steps=15, num_particles=2, seed=seed, progress=False, **options)


def numbers(fit):
    """All that a fit and its predictions are made of."""
    prediction = fit.predict(data()[0], 20)
    values = [fit.losses, fit.guide.loc, fit.guide.scale, fit.bnn.constant_scale(), prediction.mean, prediction.draws]
    return [torch.as_tensor(value).detach().numpy() for value in values]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- processes -------------------------------------------------------------------------------------


def fit_in_worker(arguments):
    bnn, seed = arguments
    torch.set_num_threads(1)
    torch.manual_seed(int(time.time()))  # the state of the process must not matter
    return run(seed, bnn)


def test_workers_give_the_numbers_of_this_process_and_share_no_noise():
    bnn = model()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        fits = pool.map(fit_in_worker, [(bnn, 0), (bnn, 0), (bnn, 2)], chunksize=1)
    own = [numbers(run(seed, bnn)) for seed in (0, 0, 2)]
    for fit, expected in zip(fits, own, strict=True):
        assert equal(numbers(fit), expected)
    assert not np.array_equal(own[0][0], own[2][0])
    draws = [fit.predict(data()[0], 20, seed=seed).draws for fit, seed in ((fits[0], 0), (fits[0], 1))]
    assert not torch.equal(*draws)


@pytest.mark.parametrize("make", [model, lambda: model().weights[0], lambda: run(0), lambda: run(0).guide])
def test_pickled_copies_are_the_same(make):
    original = make()
    copy = pickle.loads(pickle.dumps(original))
    if isinstance(original, sps.Fit):
        assert equal(numbers(original), numbers(copy))
    else:
        for name, value in original.state_dict().items():
            assert torch.equal(value, copy.state_dict()[name])
    if isinstance(original, sps.BNN):
        assert equal(numbers(run(1, original)), numbers(run(1, copy)))
        pickled = len(pickle.dumps(sps.BNN(sps.mlp([50, 300, 300, 1]), sps.Unmasked(), sps.Zero())))
        assert pickled < 106_000 * (1 + 4 + 8) + 100_000  # masks, constants and indices, not the network's own weights


# --- threads ---------------------------------------------------------------------------------------


def in_threads(*calls):
    """Results of functions that run at the same time."""
    results, errors = [None] * len(calls), []

    def call(index):
        try:
            results[index] = calls[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def state():
    """What belongs to the process, warning filters aside."""
    from pyro.poutine.runtime import _PYRO_STACK

    return {
        "store": sorted(pyro.get_param_store().keys()),
        "value": pyro.param("mine").item(),
        "random": torch.random.get_rng_state().tolist(),
        "validation": (torch.distributions.Distribution._validate_args, pyro.poutine.util.is_validation_enabled()),
        "threads": torch.get_num_threads(),
        "handlers": len(_PYRO_STACK),
        "calls": torch.nn.Module.__call__,
        "gradients": torch.is_grad_enabled(),
    }


def test_fits_in_threads_are_those_of_a_row_and_leave_the_process_as_it_was():
    expected = [numbers(run(seed)) for seed in range(3)]
    pyro.param("mine", torch.tensor(3.0))
    before = state()
    found = in_threads(*(lambda seed=seed: numbers(run(seed)) for seed in range(3)))
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))
    assert state() == before


def test_fits_in_threads_leave_the_warning_filters():
    before = list(warnings.filters)
    in_threads(*[lambda: run(0)] * 2)
    assert list(warnings.filters) == before


def test_silence_in_threads_ends():
    def often():
        for _ in range(200):
            with silenced():
                warnings.warn("not shown", stacklevel=1)

    before = list(warnings.filters)
    in_threads(*[often] * 4)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG, logging.ERROR])
def test_a_library_tells_no_warnings_but_what_it_was_asked_for(level, caplog):
    of_user = logging.getLogger("compiler")
    of_user.setLevel(level)
    with logged_less("compiler"):
        logging.getLogger("compiler.convolutions").warning("an odd way was not taken")
    assert of_user.level == level
    assert [record.message for record in caplog.records] == ["an odd way was not taken"] * (level == logging.DEBUG)


def test_models_are_made_in_threads_while_modules_are_called():
    """torch.fx redirects the module calls of all threads while it traces one."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x = data()[0]
    expected, call = net(x), torch.nn.Module.__call__

    def make():
        return [model(seed).masks for seed in range(10)]

    def use():
        return [torch.equal(net(x), expected) for _ in range(300)]

    made = in_threads(make, make, use)
    assert all(made[2])
    assert all(torch.equal(a[name], b[name]) for a, b in zip(made[0], made[1], strict=True) for name in a)
    assert torch.nn.Module.__call__ is call


def test_stock_pyro_under_the_lock_is_not_disturbed():
    x, y = data()

    def regression(x, y):
        weight = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ weight, 0.5), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        pyro.sample("w", dist.Normal(loc, scale).to_event(1))

    def svi():
        losses = []
        with process_lock():
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            stock = SVI(regression, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        for _ in range(60):
            with process_lock():
                losses.append(stock.step(x, y[:, 0]))
        return losses

    expected, fits = svi(), [numbers(run(seed)) for seed in range(2)]
    # Preparing a fit draws from torch's global state and puts it back, under the same lock.
    losses, *found = in_threads(svi, *(lambda seed=seed: numbers(run(seed)) for seed in range(2)))
    assert losses == expected
    assert all(equal(one, other) for one, other in zip(found, fits, strict=True))


def test_one_fit_predicts_in_several_threads():
    fit, x = run(0), data()[0]

    def summaries(prediction):
        return [np.asarray(v) for v in (prediction.mean, prediction.std, prediction.draws, prediction.interval()[0])]

    expected = summaries(fit.predict(x, 100))
    for _ in range(5):
        shared = fit.predict(x, 100)
        for found in in_threads(*[lambda shared=shared: summaries(shared)] * 3, lambda: summaries(fit.predict(x, 100))):
            assert equal(found, expected)


def test_saving_to_one_place_from_several_threads_leaves_one_whole_file(tmp_path):
    from pyro_sps.base.files import write_atomically

    contents = [bytes([index]) * 100_000 for index in range(4)]
    for _ in range(5):
        in_threads(*(lambda content=content: write_atomically(tmp_path / "file", content) for content in contents))
        assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- interruption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fit", "MAP"])
def test_interrupting_the_command_line_keeps_the_result_so_far(tmp_path, monkeypatch, where):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header="a,b,y", comments="")
    arguments, steps = loop.Run.arguments, 0 if where == "MAP" else 25

    def interrupting(run, *start):
        """Noise and data, of which the 25th of the part that is meant come with Ctrl-C, which waits for the step."""
        for number, drawn in enumerate(arguments(run, *start), start=1):
            if number == 25 and run.label == where:
                os.kill(os.getpid(), signal.SIGINT)
            yield drawn

    monkeypatch.setattr(loop.Run, "arguments", interrupting)
    out, init = tmp_path / "out", "map" if where == "MAP" else "random"
    options = ["--target", "y", "--hidden", "4", "4", "--steps", "3900", "--particles", "2", "--init", init]
    options += ["--scheme", "heavy", "--values", "learned-constant"]
    result = CliRunner().invoke(main, ["fit", str(tmp_path / "data.csv"), *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "the fit was interrupted after step 25; what follows is the result so far" in result.output
    assert json.loads((out / "metrics.json").read_text())["steps"] == steps
    fit = sps.load(out, sps.mlp([2, 4, 4, 1], device="meta"))
    assert fit.stopped == "interrupted after step 25"
    assert fit.predict(torch.zeros(1, 2), 5).mean.isfinite().all()


def interrupted_at(number, arguments):
    """The arguments of a run's steps, of which those of one come with Ctrl-C."""

    def interrupting(run, *start):
        for count, drawn in enumerate(arguments(run, *start), start=1):
            if count == number:
                os.kill(os.getpid(), signal.SIGINT)
            yield drawn

    return interrupting


def test_map_values_that_were_interrupted_are_not_used(monkeypatch):
    monkeypatch.setattr(loop.Run, "arguments", interrupted_at(25, loop.Run.arguments))
    with pytest.raises(KeyboardInterrupt):
        sps.map_estimate(model(), *data(), num_steps=60, progress=False)


def test_an_interrupt_waits_for_the_compiler(monkeypatch):
    """Half-loaded or half-way, it would not compile anything more in this process."""
    ended = []

    def compiler(program, *_, **__):
        signal.raise_signal(signal.SIGINT)
        ended.append(True)
        return program

    monkeypatch.setattr("torch._inductor.compile", compiler)
    with pytest.raises(KeyboardInterrupt):
        make_program(lambda x: x * 2.5, (torch.ones(3),), compile=True)
    assert ended == [True]


def test_what_the_compiler_mutters_is_not_told(monkeypatch, caplog):
    """On a GPU hundreds of lines for a step of ten chains."""

    def compiler(program, *_, **__):
        for name in ("torch._inductor.lowering", "torch.utils._sympy.interp"):
            logging.getLogger(name).warning("failed while executing pow_by_natural")
        return program

    monkeypatch.setattr("torch._inductor.compile", compiler)
    assert make_program(lambda x: x * 3.5, (torch.ones(3),), compile=True).mode == "compiled"
    assert not caplog.records


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_interrupting_the_search_for_map_values_keeps_what_was_reached(monkeypatch, tmp_path, held_out):
    bnn = sps.BNN(sps.mlp([3, 4, 2]), sps.Random(like=0.5), sps.MAP(num_steps=60, held_out=held_out))
    x = torch.randn(60, 3)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "arguments", interrupted_at(25, loop.Run.arguments))
        fit = sps.fit(bnn, x, x[:, :2], num_steps=50, checkpoint=tmp_path, progress=False)
    assert fit.stopped == "interrupted after step 25 of the search for MAP values: its constants are not those yet"
    assert len(fit.losses) == 0
    assert not list(tmp_path.glob("*.safetensors"))  # a start that was interrupted is not the one to go on from
    assert all(value[~fit.bnn.masks[name]].all() for name, value in fit.bnn.fixed.items())
    assert fit.predict(x, 5).mean.isfinite().all()


# --- forks -----------------------------------------------------------------------------------------


def _fit_in_child(results):
    x = torch.linspace(-1, 1, 8).reshape(-1, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("seen", UserWarning, stacklevel=1)
    fit = sps.fit(sps.BNN(sps.mlp([1, 2, 1]), sps.Unmasked(), sps.Zero()), x, x, num_steps=3, progress=False)
    results.put((fit.losses.tolist(), len(caught), pyro.sample("mine", dist.Normal(0.0, 1.0)).shape))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_while_another_thread_is_at_work_can_fit():
    """The child has a lock of its own, and none of the handlers and filters that the other thread had set."""
    x = torch.linspace(-1, 1, 8).reshape(-1, 1)
    bnn = sps.BNN(sps.mlp([1, 2, 1]), sps.Unmasked(), sps.Zero())
    expected = sps.fit(bnn, x, x, num_steps=3, progress=False).losses.tolist()
    held, done = threading.Event(), threading.Event()

    def work():
        with silenced(), pyro_session(), poutine.mask(mask=False):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait(60)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_fit_in_child, args=(results,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks in processes with threads
        child.start()
    try:
        losses, warned, shape = results.get(timeout=60)
    finally:
        child.kill()
        child.join()
        done.set()
        thread.join()
    assert losses == expected
    assert warned == 1
    assert shape == torch.Size([])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_of_the_thread_that_holds_the_lock_goes_on():
    with process_lock():
        number = os.fork()
        if number == 0:
            with process_lock():
                os._exit(0)
    assert os.waitpid(number, 0)[1] == 0
    assert process_lock().acquire(blocking=False)
    process_lock().release()


def test_a_warning_in_a_loop_is_shown_once_a_place():
    """What a fit does with the filters makes Python forget what it has shown."""

    def loop_of(count):
        for _ in range(count):
            warn_user("of this place")
            with silenced():
                pass

    for action, shown in (("default", 1), ("always", 3), ("ignore", 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            loop_of(3)
            assert len(caught) == shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="of this place"):
            loop_of(1)
