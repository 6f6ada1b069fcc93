"""Checkpoints: the same numbers after a break as without one, whatever breaks."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from grids import few_of

import pyro_sps as sps
from pyro_sps.base.files import canonical, seal, unseal
from pyro_sps.cli import main
from pyro_sps.inference import checkpoint as checkpoints
from pyro_sps.inference import job, loop
from pyro_sps.inference.checkpoint import FILE, Checkpoint

# More than the whole suite has time for: `PYRO_SPS_LONG_STEPS=200000 pytest tests/test_checkpoint.py -k memory`.
LONG_STEPS = int(os.environ.get("PYRO_SPS_LONG_STEPS", "5000"))


def data(rows=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    return x, torch.stack([x.sum(1).sin(), x.prod(1)], 1)


def model(activation="tanh", widths=(3, 4, 4, 2), dtype=torch.float32, **options):
    learned = {"values": sps.Constant(1.0, learn=True), "likelihood": sps.Gaussian(0.3, learn=True)}
    options = {"scheme": sps.Heavy(), **learned, **options}
    return sps.BNN(sps.mlp(list(widths), activation, dtype=dtype), **options)


QUICK = {"num_steps": 60, "num_particles": 2, "seed": 3, "progress": False, "checkpoint_every": 10}


class Crash(Exception):
    pass


def at(step, what):
    """A callback that does something after a step."""
    return lambda done, _: what() if done + 1 == step else None


def crash():
    raise Crash


def everything(result):
    """All that a fit is made of, but for times and settings."""
    fits = result if isinstance(result, sps.Fits) else (result,)
    for fit in fits:
        yield from (fit.losses, fit.guide.loc, fit.guide.scale, fit.x, fit.y)
        yield from (fit.bnn.state_dict()[name] for name in sorted(fit.bnn.state_dict()))
        yield from (fit.bnn.fixed[name] for name in sorted(fit.bnn.fixed))
        yield from (getattr(fit.standardizer, name) for name in fit.standardizer.__dataclass_fields__)
        yield from (fit.validation, fit.stopped, fit.mode)


def same(one, other):
    pairs = list(zip(everything(one), everything(other), strict=True))
    return all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) if not isinstance(a, str | list) else a == b
        for a, b in ((detached(a), detached(b)) for a, b in pairs)
    )


def detached(value):
    return value.detach().double().numpy() if isinstance(value, torch.Tensor) else value


# --- the same numbers ------------------------------------------------------------------------------

SETS = [data(seed=s) for s in range(2)]
CASES = {
    "minibatches": ({}, {"batch_size": 16, "standardize": True}),
    "replicas": ({}, {"replicas": 3, "batch_size": 16, "validation": data(20, 1), "validate_every": 7}),
    "own data": (
        {"x": torch.stack([s[0] for s in SETS]), "y": torch.stack([s[1] for s in SETS])},
        {"replicas": 2, "standardize": True},
    ),
    "init map": ({}, {"init": "map", "map_steps": 20}),
    "init given": ({}, {"init": lambda: {t: torch.full((99,), 0.1)[:n] for t, n in sizes()}}),
    "map values": ({"bnn": {"values": sps.MAP(num_steps=20)}}, {"standardize": True}),
    "default recipe": (
        {"bnn": {"scheme": sps.Random(like=0.9), "values": sps.MAP(num_steps=100, held_out=0.3)}},
        {"replicas": 2, "standardize": True},
    ),
    "float64": ({"bnn": {"dtype": torch.float64}}, {"final_learning_rate": 1e-4}),
    "bfloat16": ({"bnn": {"dtype": torch.bfloat16, "likelihood": sps.Gaussian(1.0)}}, {}),
    "patience": ({}, {"validation": data(20, 1), "validate_every": 4, "patience": 3, "learning_rate": 0.2}),
    "compiled": ({}, {"compile": True, "batch_size": 16}),
}


def sizes():
    return [(weight.name, weight.num_free) for weight in model().weights if weight.num_free]


@pytest.mark.parametrize("case", few_of(CASES, "minibatches", "replicas", "default recipe"))
def test_a_resumed_fit_is_the_fit_without_a_break(tmp_path, case):
    made, options = CASES[case]
    x, y = made.get("x", data()[0]), made.get("y", data()[1])
    options = {**QUICK, **{name: value() if callable(value) else value for name, value in options.items()}}
    if made.get("bnn", {}).get("dtype") is not None:
        x, y = x.to(made["bnn"]["dtype"]), y.to(made["bnn"]["dtype"])

    def bnn():
        return model(**made.get("bnn", {}))

    whole = sps.fit(bnn(), x, y, **options)
    validation = options.get("validation")
    with pytest.raises(Crash):
        sps.fit(bnn(), x, y, checkpoint=tmp_path, callbacks=[at(15, crash)], **options)
    with pytest.raises(Crash):  # a resumed fit breaks as well
        sps.resume(
            tmp_path,
            bnn(),
            x,
            y,
            validation=validation,
            progress=False,
            callbacks=[at(27 if case != "patience" else 14, crash)],
        )
    steps = []
    again = sps.resume(
        tmp_path, bnn(), x, y, validation=validation, progress=False, callbacks=[lambda s, _: steps.append(s) and None]
    )
    first = again[0] if isinstance(again, sps.Fits) else again
    assert steps[0] == (20 if case != "patience" else 10)
    assert same(whole, again)
    assert first.mode == ("compiled" if case == "compiled" else "recorded")
    assert (first.stopped != "") == (case == "patience")
    # A fit that ended gives its result at once.
    never = {"progress": False, "callbacks": [lambda *_: crash()]}
    assert same(whole, sps.resume(tmp_path, bnn(), x, y, validation=validation, **never))
    expected = {**options, "checkpoint": str(tmp_path)}
    expected.pop("validation", None)
    if isinstance(options.get("init"), dict):
        expected["init"] = "given"
    assert {name: first.settings[name] for name in expected} == expected
    has_map = options.get("init") == "map" or isinstance(bnn().values, sps.MAP)
    assert set(first.seconds) == {"prepare", "optimise"} | ({"map"} if has_map else set())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_fit_that_a_callback_stopped_or_that_failed_has_ended(tmp_path):
    x, y = data()
    stopped = sps.fit(model(), x, y, checkpoint=tmp_path / "a", callbacks=[at(13, lambda: True)], **QUICK)
    assert stopped.stopped == "a callback stopped it after step 13"
    assert same(stopped, sps.resume(tmp_path / "a", model(), x, y, progress=False))
    bnn = model(activation="identity", likelihood=sps.Poisson())
    options = {**QUICK, "learning_rate": 10.0}
    errors = []
    for attempt in (
        lambda: sps.fit(bnn, 100 * x, y.abs().round(), checkpoint=tmp_path / "b", **options),
        lambda: sps.resume(tmp_path / "b", bnn, 100 * x, y.abs().round(), progress=False),
    ):
        with pytest.raises(sps.NonFiniteLossError) as error:
            attempt()
        errors.append(error.value)
    assert errors[0].step == errors[1].step
    assert errors[0].site == errors[1].site
    assert same(errors[0].fit, errors[1].fit)


# --- killed ----------------------------------------------------------------------------------------


def world():
    """A fit with all that a checkpoint has to keep."""
    x, y = data()
    options = {"num_steps": 400, "num_particles": 2, "batch_size": 16, "replicas": 2, "standardize": True}
    checks = {"validation": data(10, 1), "validate_every": 50, "patience": 100}
    return (model(widths=(3, 4, 2)), x, y), {**options, **checks, "progress": False}


def keep_killing(directory, series):
    """Kill fits again and again; what was found each time. In a process of its own, which has no threads to fork."""
    torch.set_num_threads(1)
    arguments, options = world()
    states, write = {}, checkpoints.Writer.write

    def recording(self, step, header, tensors):
        states[step] = {name: value.clone() for name, value in tensors.items()}
        return write(self, step, header, tensors)

    checkpoints.Writer.write = recording
    sps.fit(*arguments, checkpoint=Path(directory) / "reference", checkpoint_every=1, **options)
    checkpoints.Writer.write = write
    whole = sps.fit(*arguments, **options)
    results = []
    for every, times in series:
        place, dice = Path(directory) / str(every), random.Random(every)

        def live(told, place=place, every=every):
            def tell(step, _):
                os.write(told, step.to_bytes(4, "little"))

            if every == 1:  # a disk so slow that most of the kills hit a write
                flush = os.fsync
                os.fsync = lambda file: (time.sleep(0.005), flush(file))
            if (place / FILE).exists():
                sps.resume(place, *arguments, validation=options["validation"], progress=False, callbacks=[tell])
            else:
                sps.fit(*arguments, checkpoint=place, checkpoint_every=every, callbacks=[tell], **options)

        found = [life(place, live, states, turn, dice) for turn in range(times)]
        again = sps.resume(place, *arguments, validation=options["validation"], progress=False)
        results.append((found, same(whole, again), sorted(path.name for path in place.iterdir())))
    return results


def life(place, live, states, turn, dice):
    """A process that fits until it is killed, and what it left."""
    steps, told = os.pipe()
    if (child := os.fork()) == 0:
        try:
            live(told)
        finally:
            os._exit(0)
    os.close(told)
    done = b""
    if turn % 6:  # while it takes steps and writes
        for _ in range(dice.randrange(1, 12)):
            done += os.read(steps, 4)
        time.sleep(dice.uniform(0, 0.003))
    else:  # while it gets ready
        time.sleep(dice.uniform(0, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(steps, 4096):
        done += more
    os.close(steps)
    last = int.from_bytes(done[-4:], "little") + 1 if done else 0
    left = {"last": last, "writing": len(list(place.glob(f".{FILE}.*.tmp"))), "done": -1, "equal": True}
    if (place / FILE).exists():
        checkpoint = Checkpoint.read(place)
        expected, numbers = states[checkpoint.done], checkpoint.numbers.left
        left["done"] = checkpoint.done
        left["equal"] = expected.keys() == numbers.keys() and all(
            torch.equal(value, numbers[name]) for name, value in expected.items()
        )
    return left


@pytest.mark.parametrize(
    "series",  # steps between checkpoints, and kills
    [((1, 6), (7, 4)), pytest.param(((1, 20), (7, 10)), marks=pytest.mark.slow)],
    ids=["10 times", "30 times"],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_numbers(tmp_path, series):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.apply(keep_killing, (str(tmp_path), series))
    for (every, times), (found, equal, files) in zip(series, results, strict=True):
        assert equal
        assert files == [FILE]  # what was left of the writes that were killed is gone
        assert len(found) == times
        before = -1
        for left in found:
            assert left["equal"]
            assert left["done"] >= before  # never older, never gone
            assert left["done"] >= left["last"] - every  # at most the steps since the last one are lost
            before = left["done"]
        assert 0 < before < 400  # it was killed at work
    assert sum(left["writing"] for left in results[0][0]) >= series[0][1] // 6  # also within writes


# --- interrupted -----------------------------------------------------------------------------------


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupts_at_any_moment_leave_a_state_to_go_on_from(tmp_path):
    """Without waiting for the end of the step, moments and parameters would be of different steps."""
    (x, y), dice = data(), random.Random(0)
    options = {**QUICK, "num_steps": 400, "batch_size": 16, "checkpoint_every": 1000}
    whole = sps.fit(model(), x, y, **options)
    done, breaks = 0, []
    while done < 300:  # so that none comes when all is over
        target, delay, reached = done + dice.randrange(20, 60), dice.uniform(0, 0.002), threading.Event()

        def strike(reached=reached, delay=delay):
            reached.wait()
            time.sleep(delay)
            interrupt()

        def note(step, _, target=target, reached=reached):
            if step == target:
                reached.set()

        thread = threading.Thread(target=strike)
        thread.start()
        start = {"progress": False, "callbacks": [note]}
        if done:
            fit = sps.resume(tmp_path, model(), x, y, **start)
        else:
            fit = sps.fit(model(), x, y, checkpoint=tmp_path, **{**options, **start})
        thread.join()
        assert fit.stopped == f"interrupted after step {len(fit.losses)}"
        assert Checkpoint.read(tmp_path).done == len(fit.losses)
        assert np.array_equal(fit.losses, whole.losses[: len(fit.losses)])
        done = len(fit.losses)
        breaks.append(done)
    assert len(breaks) >= 3
    fit = sps.resume(tmp_path, model(), x, y, progress=False)
    assert same(whole, fit)


def test_a_second_interrupt_does_not_wait_and_keeps_the_last_checkpoint(tmp_path):
    x, y = data()
    twice = at(25, lambda: [interrupt() for _ in range(2)])
    fit = sps.fit(model(), x, y, checkpoint=tmp_path, callbacks=[twice], **QUICK)
    assert fit.stopped == "interrupted after step 25"
    assert Checkpoint.read(tmp_path).done == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(sps.fit(model(), x, y, **QUICK), sps.resume(tmp_path, model(), x, y, progress=False))


def test_handlers_of_others_are_left_alone():
    called, old = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        fit = sps.fit(model(), *data(), callbacks=[at(5, interrupt)], **QUICK)
    finally:
        signal.signal(signal.SIGINT, old)
    assert called == [1]
    assert len(fit.losses) == 60


def test_an_interrupted_search_for_the_start_is_nothing_to_go_on_from(tmp_path, monkeypatch):
    arguments = loop.Run.arguments

    def interrupting(run, start=0):
        for step, values in enumerate(arguments(run, start)):
            if step == 5 and run.label == "MAP":
                interrupt()
            yield values

    monkeypatch.setattr(loop.Run, "arguments", interrupting)
    options = {**QUICK, "init": "map", "map_steps": 20, "checkpoint": tmp_path}
    assert len(sps.fit(model(), *data(), **options).losses) == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(sps.LoadError, match="there is no checkpoint in"):
        sps.resume(tmp_path, model(), *data())


# --- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", ["warn", "stop"])
def test_a_full_disk(tmp_path, monkeypatch, errors):
    x, y = data()
    whole = sps.fit(model(), x, y, **QUICK)
    sync, full = os.fsync, {"now": False}

    def fsync(file):
        if full["now"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    fills, empties = (at(step, lambda value=value: full.update(now=value)) for step, value in ((15, True), (45, False)))
    with pytest.warns(RuntimeWarning, match="could not be written after step 20 .*No space left") as record:
        fit = sps.fit(model(), x, y, checkpoint=tmp_path, checkpoint_errors=errors, callbacks=[fills, empties], **QUICK)
    record = [warning for warning in record if warning.category is RuntimeWarning]
    assert len(record) == 1
    assert record[0].filename == __file__
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    if errors == "warn":
        assert "goes on" in str(record[0].message)
        assert same(whole, fit)
        assert Checkpoint.read(tmp_path).done == 60
    else:
        assert len(fit.losses) == 20
        assert "could not be written after step 20" in fit.stopped
        assert np.array_equal(fit.losses, whole.losses[:20])
        assert fit.predict(x, 5).mean.isfinite().all()
        assert Checkpoint.read(tmp_path).done == 10
    full["now"] = False
    assert same(whole, sps.resume(tmp_path, model(), x, y, progress=False))


def test_a_disk_that_really_is_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:

        def fill():
            with open(tmp_path / "filler", "wb") as file, contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))

        x, y = data()
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            fit = sps.fit(model(), x, y, checkpoint=tmp_path / "run", callbacks=[at(15, fill)], **QUICK)
        assert Checkpoint.read(tmp_path / "run").done == 10
        (tmp_path / "filler").unlink()
        assert same(fit, sps.resume(tmp_path / "run", model(), x, y, progress=False))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_goes_away(tmp_path):
    gone = at(15, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.warns(RuntimeWarning, match="could not be written after step 20 .*No such file"):
        fit = sps.fit(model(), *data(), checkpoint=tmp_path / "run", callbacks=[gone], **QUICK)
    assert same(fit, sps.fit(model(), *data(), **QUICK))


def test_a_folder_that_cannot_be_used_is_noticed_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "map_weights", lambda *_: crash())
    bnn = model(values=sps.MAP())
    (tmp_path / "file").touch()
    for place, error in (("file", FileExistsError), ("file/below", NotADirectoryError)):
        with pytest.raises(error, match=r"checkpoint='.*file.*' cannot be written"):
            sps.fit(bnn, *data(), checkpoint=tmp_path / place, **QUICK)

    def readonly(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:  # root may write anywhere, so that the system has to be asked to refuse
        patch.setattr(os, "replace", readonly)
        with pytest.raises(OSError, match=r"cannot be written .Read-only file system"):
            sps.fit(bnn, *data(), checkpoint=tmp_path / "readonly", **QUICK)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).touch()
    with pytest.raises(FileExistsError, match="holds the checkpoint of a fit: go on with it by"):
        sps.fit(bnn, *data(), checkpoint=str(tmp_path / "other"), **QUICK)
    with pytest.raises(Crash):
        sps.fit(bnn, *data(), checkpoint=tmp_path / "fine", **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": 3}, "checkpoint must be a directory, got 3"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive integer, got 0"),
        ({"checkpoint_errors": "ignore"}, "checkpoint_errors must be 'warn' or 'stop', got 'ignore'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sps.fit(model(), *data(), **{**QUICK, **options})


# --- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint at step 10."""
    place = tmp_path_factory.mktemp("made")
    with pytest.raises(Crash):
        sps.fit(model(), *data(), checkpoint=place, callbacks=[at(15, crash)], **QUICK)
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (3, 4, 5, 2)}, "whose weights differ"),
        ({"dtype": torch.float64}, "whose dtypes differ: torch.float32, not torch.float64"),
        ({"scheme": sps.Light()}, "whose masks differ"),
        ({"seed": 1}, "whose constants differ"),
        ({"values": sps.Constant(2.0, learn=True)}, "whose constants differ"),
        ({"prior_scale": 2.0}, "whose priors differ"),
        ({"prior": torch.distributions.Normal(0.0, 1.0)}, "whose priors differ"),
        ({"likelihood": sps.Gaussian(0.2, learn=True)}, "whose likelihoods differ"),
        ({"activation": "sigmoid"}, "its ELBO at the same weights is another"),
        ({"x": data(seed=1)[0]}, "x and y are not what"),
        ({"y": data(seed=1)[1]}, "x and y are not what"),
        ({"x": data()[0][:-1], "y": data()[1][:-1]}, "x and y are not what"),
        ({"validation": data()}, "validation is not what"),
    ],
)
def test_another_model_or_other_data_is_refused(made, change, message):
    change = dict(change)
    x, y, validation = (change.pop(n, d) for n, d in (("x", data()[0]), ("y", data()[1]), ("validation", None)))
    before = (made / FILE).read_bytes()
    dtype = change.get("dtype", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bnn = model(**change)
    with pytest.raises(sps.LoadError, match=message):
        sps.resume(made, bnn, x.to(dtype), y.to(dtype), validation=validation, progress=False)
    assert (made / FILE).read_bytes() == before


def test_own_priors_that_differ_are_noticed_by_what_they_do(tmp_path):
    normal = torch.distributions.Normal
    sps.fit(model(prior=normal(0.0, 1.0)), *data(), checkpoint=tmp_path, **QUICK)
    with pytest.raises(sps.LoadError, match="Compare activations, priors and likelihood"):
        sps.resume(tmp_path, model(prior=normal(0.0, 2.0)), *data())
    sps.resume(tmp_path, model(prior=normal(0.0, 1.0)), *data(), progress=False)


def test_damage_of_any_kind_is_refused(made, tmp_path):
    content, dice = (made / FILE).read_bytes(), random.Random(0)
    with pytest.raises(sps.LoadError, match="there is no checkpoint in"):
        Checkpoint.read(tmp_path)
    for _ in range(500):
        damaged = bytearray(content)
        if dice.random() < 0.5:
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        elif dice.random() < 0.5:
            del damaged[dice.randrange(len(damaged)) :]
        else:
            place = dice.randrange(len(damaged))
            damaged[place:place] = dice.randbytes(dice.randrange(1, 20))
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(sps.LoadError, match="is damaged"):
            Checkpoint.read(tmp_path)
    (tmp_path / FILE).write_bytes(content)
    assert Checkpoint.read(tmp_path).done == 10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["done"], 61),
        (["done"], 9),
        (["done"], -1),
        (["done"], "10"),
        (["stopped"], None),
        (["settings", "num_steps"], "many"),
        (["settings", "num_steps"], 5),
        (["settings", "device"], "nowhere"),
        (["settings", "init"], ["random"]),
        (["settings", "other"], 1),
        (["settings", "replicas"], 2),
        (["settings", "standardize"], False),
        (["seconds", "prepare"], "long"),
        (["marks", "elbo"], "high"),
        (["tensors", "params"], torch.zeros(1, 3)),
        (["tensors", "first"], None),
        (["tensors", "second"], torch.full((1, 60), torch.nan)),
        (["tensors", "failed"], torch.zeros(1)),
        (["tensors", "other"], torch.zeros(1)),
    ],
)
def test_what_is_no_checkpoint_is_refused_under_a_right_checksum(made, tmp_path, path, value):
    header, tensors = unseal(made / FILE, 1 << 20, "")
    assert torch.isfinite(tensors["params"]).all()
    if path[0] == "tensors":
        if value is not None and path[1] == "second":
            value = torch.full_like(tensors["params"], torch.nan)
        tensors[path[1]] = value
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    else:
        target = header
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    (tmp_path / FILE).write_bytes(seal(tensors, json.loads(canonical(header))))
    with pytest.raises(sps.LoadError):
        sps.resume(tmp_path, model(), *data(), progress=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_particles", 5_000_000, "no file is trusted with that"),
        ("num_particles", 10**30, "no file is trusted with that"),
        ("num_steps", 2_000_000_000, "does not hold 2000000000 losses"),
        ("replicas", 1_000_000_000, "does not hold 1000000000 replicas"),
        ("device", "cuda:99", "of another machine"),
        ("device", "meta", "of another machine"),
    ],
)
def test_settings_that_would_take_memory_are_refused_before_any_work(made, tmp_path, monkeypatch, name, value, words):
    header, tensors = unseal(made / FILE, 1 << 20, "")
    header["settings"][name] = value
    (tmp_path / FILE).write_bytes(seal(tensors, header))

    def no_work(*_):
        raise AssertionError("something was made of a forged setting")

    monkeypatch.setattr(job, "members_of", no_work)
    with pytest.raises(sps.LoadError, match=words):
        sps.resume(tmp_path, model(), *data(), progress=False)


HOSTILE = [None, True, -1, 0, 1.5, 10**30, 1e300, "", "x" * 1000, [], [1], {}, {"a": 1}, float("nan")]


@pytest.mark.parametrize("count", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_forged_headers_are_refused_or_gone_on_with(made, tmp_path, count):
    """Whatever is in a file with a right checksum: a `LoadError`, or a fit."""
    header, tensors = unseal(made / FILE, 1 << 20, "")
    dice, refused, x, y = random.Random(0), 0, *data()
    bnn = model()
    for _ in range(count):
        changed, numbers = json.loads(canonical(header)), dict(tensors)
        if dice.random() < 0.7:
            place, key = changed, dice.choice(list(changed))
            while isinstance(place[key], dict) and place[key] and dice.random() < 0.8:
                place = place[key]
                key = dice.choice(list(place))
            if dice.random() < 0.2:
                del place[key]
            else:
                place[key] = dice.choice(HOSTILE)
        else:
            key = dice.choice(list(numbers))
            numbers[key] = dice.choice(
                [
                    torch.zeros(()),
                    torch.zeros(3, dtype=torch.int32),
                    numbers[key][:0],
                    numbers[key].to(torch.complex64),
                    numbers[key] - 7,
                ]
            )
        (tmp_path / FILE).write_bytes(seal(numbers, changed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = sps.resume(tmp_path, bnn, x, y, progress=False)
        except sps.LoadError:
            refused += 1
            continue
        except sps.NonFiniteLossError as error:  # numbers that nobody can tell from others led to it
            fit = error.fit
        assert isinstance(fit, sps.Fit)
    assert refused > count // 2


def test_a_fit_that_has_ended_is_had_again_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    fit = sps.fit(model(), *data(), checkpoint=tmp_path, **QUICK)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def read_only(*_):
        raise PermissionError(errno.EACCES, "Read-only file system")

    monkeypatch.setattr(checkpoints, "write_atomically", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert same(sps.resume(tmp_path, model(), *data(), progress=False), fit)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_environment_is_told(made, tmp_path, monkeypatch):
    shutil.copy(made / FILE, tmp_path)
    monkeypatch.setattr(checkpoints, "__version__", "99.0")
    with pytest.warns(
        RuntimeWarning, match=f"made with pyro_sps {sps.__version__}, now 99.0: the fit goes on"
    ) as record:
        sps.resume(tmp_path, model(), *data(), progress=False)
    assert record[0].filename == __file__


# --- more steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", few_of([None, 2], 2))
def test_more_steps_than_a_fit_was_to_have(tmp_path, replicas):
    options = {**QUICK, "replicas": replicas, "validation": data(20, 1), "validate_every": 7}
    rates = {
        "learning_rate": 0.01,
        "final_learning_rate": 0.01,
    }  # so that it is as if there had been more from the start
    whole = sps.fit(model(), *data(), **{**options, "num_steps": 100}, **rates, checkpoint=tmp_path / "whole")
    sps.fit(model(), *data(), **options, **rates, checkpoint=tmp_path / "run")
    for steps in (80, 100):
        more = sps.resume(tmp_path / "run", model(), *data(), validation=data(20, 1), num_steps=steps, progress=False)
    pairs = zip(more, whole, strict=True) if replicas else [(more, whole)]
    for one, other in pairs:
        assert np.array_equal(one.losses, other.losses)
        assert torch.equal(one.guide.loc, other.guide.loc)
        assert one.settings["num_steps"] == 100
        assert all(check in one.validation for check in other.validation)
    again = sps.resume(tmp_path / "run", model(), *data(), validation=data(20, 1), progress=False)
    assert same(again, more)
    with pytest.raises(ValueError, match="num_steps must be at least 100, as before, got 99"):
        sps.resume(tmp_path / "run", model(), *data(), validation=data(20, 1), num_steps=99)


def test_added_steps_have_the_last_learning_rate(tmp_path):
    rates = loop.decaying_rates(0.1, 0.01, 10)
    assert [rates(step) for step in (0, 9, 10, 50)] == pytest.approx([0.1, 0.01, 0.01, 0.01])
    sps.fit(model(), *data(), **QUICK, checkpoint=tmp_path)
    seen = []
    run = loop.Run.__post_init__

    def noted(self):
        run(self)
        seen.append(self.rates(70))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "__post_init__", noted)
        sps.resume(tmp_path, model(), *data(), num_steps=65, progress=False)
        sps.resume(tmp_path, model(), *data(), num_steps=75, progress=False)
    assert seen == pytest.approx([0.003, 0.003])


def test_a_fit_that_patience_stopped_goes_on_for_more_steps(tmp_path):
    options = {"validation": data(20, 1), "validate_every": 4, "patience": 1, "learning_rate": 0.2}
    first = sps.fit(model(), *data(), **QUICK, **options, checkpoint=tmp_path)
    assert len(first.losses) < 60
    more = sps.resume(tmp_path, model(), *data(), validation=data(20, 1), num_steps=61, progress=False)
    assert len(more.losses) > len(first.losses)


# --- the command line ------------------------------------------------------------------------------


def test_the_command_line_resumes(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header="a,b,y", comments="")
    options = ["--target", "y", "--hidden", "4", "4", "--steps", "60", "--particles", "2", "--scheme", "heavy"]
    options += ["--values", "learned-constant"]

    def command(out, *more):
        return CliRunner().invoke(
            main, ["fit", str(tmp_path / "data.csv"), *options, "--out", str(tmp_path / out), *more]
        )

    def metrics(out):
        return {**json.loads((tmp_path / out / "metrics.json").read_text()), "seconds": 0}

    assert command("whole").exit_code == 0
    arguments = loop.Run.arguments

    def interrupting(run, start=0):
        for step, values in enumerate(arguments(run, start), start=1):
            if step == 25:
                interrupt()
            yield values

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "arguments", interrupting)
        broken = command("run", "--checkpoint-every", "10")
    assert "interrupted after step 25; what follows is the result so far; --resume goes on with it" in broken.output
    assert metrics("run")["steps"] == 25
    other = command("run", "--resume", "--seed", "1", "--steps", "70")
    assert other.exit_code == 2
    assert "was started with num_steps 60, not 70; seed 0, not 1" in " ".join(other.output.split())
    assert "--force overwrites" in command("run").output
    assert command("run", "--resume").exit_code == 0
    assert metrics("run") == metrics("whole")
    assert command("run", "--resume").exit_code == 0  # the result at once
    assert command("run", "--resume", "--steps", "65").exit_code == 0
    assert metrics("run")["steps"] == 65
    assert command("run", "--force").exit_code == 0
    missing = command("run", "--resume")
    assert missing.exit_code == 2
    assert "there is no checkpoint in" in missing.output


# --- long runs -------------------------------------------------------------------------------------


def resident():
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(directory, steps):
    """Memory in use during a fit with everything that might keep something."""
    torch.set_num_threads(1)
    used = {}

    def note(step, _):
        if step % 500 == 0:
            used[step] = resident()

    begun = time.perf_counter()
    options = {"batch_size": 16, "validation": data(10, 1), "validate_every": 1000, "patience": 10**6}
    fit = sps.fit(
        model(),
        *data(),
        num_steps=steps,
        num_particles=2,
        checkpoint=directory,
        callbacks=[note],
        progress=False,
        compile=steps > 100_000,
        **options,
    )
    return used, len(fit.losses), fit.mode, time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_memory_of_long_runs_is_flat(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        used, steps, mode, seconds = pool.apply(measure_memory, (str(tmp_path), LONG_STEPS))
    settled = [memory for step, memory in used.items() if step >= min(5000, LONG_STEPS // 4)]
    print(
        f"{steps:,} steps ({mode}) in {seconds:.0f} s: {settled[0] / 1e6:.1f} MB, at most {max(settled) / 1e6:.1f} MB"
    )
    assert steps == LONG_STEPS
    assert max(settled) <= 1.01 * settled[0]
