"""A terminal that is gone, full or of another encoding neither stops a fit nor loses it."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from grids import few_of

import pyro_sps as sps
from pyro_sps.base.terminal import emit, progress_bar

# Ctrl-C at the terminal ends `tee` too: the message about it goes to a closed pipe.
COMMAND = """
import os, signal, sys
from pyro_sps.inference import loop
arguments = loop.Run.arguments
def interrupting(run, *start):
    for number, drawn in enumerate(arguments(run, *start), start=1):
        if number == 25:
            os.kill(os.getpid(), signal.SIGINT)
        yield drawn
if os.environ["INTERRUPTED"] == "1":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loop.Run.arguments = interrupting
from pyro_sps.cli import main
main(sys.argv[1:], prog_name="pyro-sps")
"""


@pytest.mark.parametrize(
    "case", few_of(["closed pipe", "full disk", "latin-1", "closed files"], "closed pipe", "full disk")
)
def test_the_command_line_keeps_its_fit(tmp_path, case):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header="a,b,日本", comments="", encoding="utf-8")
    out = tmp_path / "out"
    command = ["fit", "data.csv", "--target", "日本", "--hidden", "4", "4", "--steps", "200", "--particles", "1"]
    command += ["--scheme", "heavy", "--values", "zero", "--out", str(out)]
    environment = {**os.environ, "INTERRUPTED": str(int(case == "closed pipe"))}
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    if case == "latin-1":
        environment["PYTHONIOENCODING"] = "latin-1"
    if case == "full disk":
        options["stdout"] = options["stderr"] = os.open("/dev/full", os.O_WRONLY)
    start = [sys.executable, "-c", COMMAND, *command]
    if case == "closed files":
        start = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *start]
    process = subprocess.Popen(start, env=environment, **options)
    if case == "closed pipe":
        process.stdout.close()
        process.stdout = None
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    fit = sps.load(out, sps.mlp([2, 4, 4, 1]))
    assert len(fit.losses) == (25 if case == "closed pipe" else 200)
    assert json.loads((out / "metrics.json").read_text())["steps"] == len(fit.losses)
    if case == "latin-1":
        assert b"targets \\u65e5\\u672c" in said
    assert not errors or b"Traceback" not in errors


class Broken(io.StringIO):
    """A terminal that has gone away."""

    def isatty(self):
        return True

    def write(self, text):
        raise BrokenPipeError("gone")


@pytest.mark.parametrize("stream", [None, Broken(), io.StringIO()], ids=["none", "broken", "no terminal"])
def test_bars_and_lines_are_dropped_where_nobody_reads_them(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with progress_bar(3, "fit", progress=True) as bar:
        for _ in range(3):
            bar.update()
    emit("said")
    emit("said again", err=True)
    x = np.zeros((5, 1))
    bnn = sps.BNN(sps.mlp([1, 2, 1]), sps.Unmasked(), sps.Zero())
    assert len(sps.fit(bnn, x, x, num_steps=2, progress=True).losses) == 2
