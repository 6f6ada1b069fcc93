"""Seconds of whole fits, compilation included: `sps.fit` against NumPyro, every run in a fresh process.

    python benchmarks/whole.py [--steps 10000] [--short 300 1000] [--repeats 3] [--threads 2] [--out FOLDER]

`cold` starts with an empty cache of inductor's on disk, `warm` with a full one; NumPyro's time includes its jit. Data
and models are those of step.py. Imports are not counted: both libraries need seconds for them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import arguments, report

CHILD = """
import os, sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads({threads})
import step
job = dict(step.JOBS[{job!r}])
if {who!r} == "numpyro":
    import jax, numpyro
    started = time.perf_counter()
    step.numpyro_scan(job)({steps})
else:
    import pyro_sps as sps
    x, y = step.data(job)
    bnn = step.network(job)
    sps.fit
    started = time.perf_counter()
    options = {{"num_particles": step.PARTICLES, "batch_size": None, "init": "random", "progress": False}}
    options["standardize"] = False
    fit = sps.fit(bnn, x, y, num_steps={steps}, compile={compile}, **options)
    print(fit.mode, file=sys.stderr)
print(time.perf_counter() - started)
"""


def seconds(job, who, steps, threads, cache=None, compile=None):
    here = str(Path(__file__).parent)
    code = CHILD.format(here=here, job=job, who=who, steps=steps, threads=threads, compile=compile)
    environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main():
    options = arguments(
        __doc__, {"--steps": 10_000, "--short": [300, 1000], "--repeats": 3, "--jobs": ["toy", "energy"]}
    )
    results, lines = {}, []
    for job in options.jobs:
        times = {"pyro_sps, cold": [], "pyro_sps, warm": [], "NumPyro": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for name in ("pyro_sps, cold", "pyro_sps, warm"):
                    times[name].append(seconds(job, "ours", options.steps, options.threads, cache))
            times["NumPyro"].append(seconds(job, "numpyro", options.steps, options.threads))
        results[job] = {name: statistics.median(values) for name, values in times.items()}
        lines += [f"{job}, {options.steps:,} steps", "", "| | seconds | / NumPyro |", "| --- | ---: | ---: |"]
        lines += [f"| {n} | {v:.1f} | {v / results[job]['NumPyro']:.2f} |" for n, v in results[job].items()]
        lines += ["", "| short fits, cold | default | compile=False |", "| --- | ---: | ---: |"]
        for steps in options.short:
            both = []
            for compile in (None, False):
                with tempfile.TemporaryDirectory() as cache:
                    both.append(seconds(job, "ours", steps, options.threads, cache, compile))
            results[job][f"short {steps}"] = both
            lines.append(f"| {steps:,} steps | {both[0]:.2f} s | {both[1]:.2f} s |")
        lines.append("")
    report("whole", options, results, lines)


if __name__ == "__main__":
    main()
