"""One fit on two processes: the same steps as on one, whatever ends them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import pyro_sps as sps
from pyro_sps.data.observed import NO_EXTRAS
from pyro_sps.data.opening import data_of
from pyro_sps.inference import loop
from pyro_sps.inference.distributed import Processes
from pyro_sps.inference.job import prepare_job, run_of, starts_of
from pyro_sps.inference.settings import FitSettings
from pyro_sps.inference.step import Step

SCRIPT = """
import json, os, pathlib, signal, sys
import torch, pyro_sps as sps
from tests_of_processes import OPTIONS, WHOLE, data, model

rank, out = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
fit = sps.fit(model(), *data(), num_steps=8, checkpoint=out / "run", **OPTIONS)
assert fit.settings["processes"] == 2
fit.save(out / f"fit{rank}")
try:
    sps.fit(model(), *data(), num_steps=8, **{**OPTIONS, "learning_rate": 0.01 * (1 + rank)})
except ValueError as error:
    (out / f"differ{rank}").write_text(str(error))

def stop(step, losses):
    return step == 4 and rank == 1

stopped = sps.fit(model(), *data(), num_steps=8, callbacks=[stop], **WHOLE)
(out / f"stopped{rank}").write_text(json.dumps([stopped.stopped, stopped.losses.tolist()]))

def die(step, losses):
    if step == 5 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    sps.fit(model(), *data(), num_steps=8, checkpoint=out / "dead", checkpoint_every=4, callbacks=[die], **OPTIONS)
except sps.inference.distributed.ProcessesError as error:
    (out / f"error{rank}").write_text(str(error))
"""

COMMON = """
import torch, pyro_sps as sps

OPTIONS = {"num_particles": 2, "batch_size": 4, "accumulate": 2, "progress": False, "seed": 3}
WHOLE = {**OPTIONS, "batch_size": None, "accumulate": 1}  # of which one process has a row more than the other

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(21, 2, generator=generator, dtype=torch.float64)
    return x, x.prod(1, keepdim=True)

def model():
    values = sps.MAP(num_steps=4, held_out=0.5)
    return sps.BNN(sps.mlp([2, 4, 1], dtype=torch.float64), sps.Rigid(), values)
"""


def test_two_processes_equal_one_and_hear_of_each_others_ends(tmp_path):
    (tmp_path / "tests_of_processes.py").write_text(COMMON)
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets; without its agent, which ends all processes when one ends before they can say what they see.
    told = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    # Once a process was killed, a thread of gloo's in the other may outlive the interpreter, which then aborts; what
    # the script had to do is done, as the files tell that are looked at below.
    aborted = "terminate called without an active exception" in errors[0]
    assert processes[0].returncode == (-signal.SIGABRT if aborted else 0), errors[0]

    common = {}
    exec(COMMON, common)
    model, data, options = common["model"], common["data"], common["OPTIONS"]
    single = sps.fit(model(), *data(), num_steps=8, **options)
    whole = sps.fit(model(), *data(), num_steps=8, callbacks=[lambda step, _: step == 4], **common["WHOLE"])
    assert single.settings["processes"] == 1
    for rank in range(2):
        fit = sps.load(tmp_path / f"fit{rank}", sps.mlp([2, 4, 1], dtype=torch.float64))
        np.testing.assert_allclose(fit.losses, single.losses, rtol=1e-9)
        torch.testing.assert_close(fit.guide.loc, single.guide.loc, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(fit.guide.scale, single.guide.scale, rtol=1e-7, atol=0)
        for name, value in single.bnn.fixed.items():
            torch.testing.assert_close(fit.bnn.fixed[name], value, rtol=1e-7, atol=1e-10)
        assert "must make the same fit" in (tmp_path / f"differ{rank}").read_text()
        why, losses = json.loads((tmp_path / f"stopped{rank}").read_text())
        assert why.endswith("after step 5")
        np.testing.assert_allclose(losses, whole.losses, rtol=1e-9)
    assert "another process of this fit has ended or cannot be reached" in (tmp_path / "error0").read_text()
    # What the first process wrote before the second died goes on alone, to the same numbers.
    again = sps.resume(tmp_path / "dead", model(), *data(), progress=False)
    torch.testing.assert_close(again.guide.loc, single.guide.loc, rtol=1e-7, atol=1e-10)
    assert sps.resume(tmp_path / "run", model(), *data(), progress=False).settings["processes"] == 1


@pytest.mark.parametrize("kind", ["minibatches", "full", "replicas of their own", "stream"])
def test_every_row_of_a_step_is_some_process_s(monkeypatch, kind):
    """Batches of three processes, put together, are those of one; none has more than a row more than another."""
    monkeypatch.setattr(loop, "make_step", lambda *_: Step(print, "recorded"))
    x = torch.arange(20.0).unsqueeze(1)
    options = {"num_steps": 1, "progress": False, "standardize": False, "batch_size": 8}
    if kind == "full":
        options["batch_size"] = None
    if kind == "replicas of their own":
        options["replicas"] = 2
        x = torch.stack([x, -x])
    data = (TensorDataset(x, x), None) if kind == "stream" else (x, x)

    def batches(processes):
        monkeypatch.setattr(loop, "processes_of", lambda device: processes)
        asked = FitSettings(**options)
        source = data_of(*data, NO_EXTRAS, None, asked.batch_size, 128)[:2]
        prepared = prepare_job(sps.BNN(sps.mlp([1, 2, 1]), sps.Unmasked(), sps.Zero()), *source, None, asked, None)
        run = run_of(prepared, *starts_of(prepared, None), ended=False)
        found = [own for own, _ in zip(run.batches(), range(3), strict=False)]
        assert all(torch.equal(own_x, own_y) for own_x, own_y in found)
        return [own_x.reshape(asked.replicas or 1, -1) for own_x, _ in found]

    whole = batches(Processes())
    shares = [batches(Processes(rank, 3)) for rank in range(3)]
    for step, every in enumerate(whole):
        parts = [own[step] for own in shares]
        sizes = [part.shape[1] for part in parts]
        assert max(sizes) - min(sizes) <= 1
        torch.testing.assert_close(torch.cat(parts, dim=1).sort(dim=1).values, every.sort(dim=1).values)


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """The agent of torchrun itself: one folder, written once, with the fit of one process."""
    x, y = (value[:, 0].tolist() for value in data_of_a_table())
    rows = [f"{a},{b}" for a, b in zip(x, y, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["a,b", *rows]))
    options = [
        "--method",
        "fit",
        "--target",
        "b",
        "--hidden",
        "3",
        "--steps",
        "20",
        "--batch-size",
        "8",
        "--values",
        "zero",
    ]
    command = [
        str(Path(sys.executable).with_name("pyro-sps")),
        "fit",
        str(tmp_path / "table.csv"),
        *options,
        "--checkpoint-every",
        "10",
    ]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run([*start, *command, "--out", str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    subprocess.run([*command, "--out", str(tmp_path / "one")], check=True, capture_output=True)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["rmse"] for name in ("one", "two")]
    np.testing.assert_allclose(*scores, rtol=1e-3)


def data_of_a_table():
    x = torch.linspace(-1, 1, 30).unsqueeze(1)
    return x, x.sin()
