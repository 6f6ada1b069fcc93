"""Milliseconds an optimisation step of one fit on one process and on two, and a model of it.

    python benchmarks/processes.py [--repeats 5] [--seconds 2] [--threads 1] [--jobs energy classes] [--out FOLDER]

The networks of step.py, with four particles. Each run of two is started by torchrun (gloo, one machine), each process with
so many threads; blocks of steps are timed on the first process, medians over them reported, runs of one and of two in
turn. Beside it what the model of docs/beyond.md needs: the processor time of a step for a few numbers of rows on one process,
from which a fixed part and one for each row follow by least squares, and the time of the sum of so many numbers. On busy cores
wall time says how busy they are; processor time a process is what the model is compared with.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import arguments, fit_steps, report

JOBS = {"energy": {"widths": [8, 50, 50, 2], "rows": 512}, "classes": {"widths": [784, 400, 400, 10], "rows": 512}}
PARTICLES, RATE, SHARES = 4, 1e-3, (1.0, 0.5, 0.25)


def run_of_job(job, rows):
    """The run that `fit` makes of a job, full batches."""
    import torch

    import pyro_sps as sps

    generator, outputs = torch.Generator().manual_seed(0), job["widths"][-1]
    x = torch.randn(rows, job["widths"][0], generator=generator)
    labels = outputs == 10
    y = torch.randint(0, 10, (rows,), generator=generator) if labels else x[:, :outputs].sin()
    likelihood = sps.Categorical() if labels else sps.Gaussian(0.1)
    bnn = sps.BNN(sps.mlp(job["widths"]), sps.Unmasked(), sps.Zero(), likelihood, prior_scale=1.0)
    return fit_steps(bnn, x, y, RATE, num_particles=PARTICLES, batch_size=None, compile=False)


def timed(take, steps):
    """Milliseconds a step of a block of steps: of the wall clock, and of the processor."""
    begun, busy = time.perf_counter(), time.process_time()
    take(steps)
    return (time.perf_counter() - begun) / steps * 1e3, (time.process_time() - busy) / steps * 1e3


def one_process(name, seconds, repeats):
    """What a process measures: steps at all rows, alone also at some; the sum of the gradient's numbers among several."""
    import torch

    from pyro_sps.inference.distributed import processes_of

    job, found = JOBS[name], {}
    processes = processes_of(torch.device("cpu"))
    for share in SHARES if processes.count == 1 else (1.0,):
        rows = int(job["rows"] * share)
        run, take = run_of_job(job, rows)
        steps = (
            int(processes.total(torch.tensor([seconds * 1e3 / repeats / timed(take, 5)[0]]))[0] / processes.count) + 1
        )
        blocks = [timed(take, steps) for _ in range(repeats)]
        found[f"rows {rows}"] = [statistics.median(own) for own in zip(*blocks, strict=True)]
    if processes.count > 1:
        flat, times = torch.zeros_like(run.state.params), []
        for _ in range(5 * repeats):
            begun = time.perf_counter()
            processes.total(flat)
            times.append((time.perf_counter() - begun) * 1e3)
        found["sum"] = statistics.median(times)
    found["numbers"] = run.state.params.numel()
    return found if processes.first else None


def child(name, processes, options):
    """The same in processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(command if processes > 1 else [sys.executable]), __file__, "--child", name]
    command += [str(options.seconds), str(options.repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    if "--child" in sys.argv:
        import torch

        place = sys.argv.index("--child")
        name, seconds, repeats = sys.argv[place + 1 : place + 4]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        found = one_process(name, float(seconds), int(repeats))
        if found is not None:
            print(json.dumps(found))
        return
    options = arguments(__doc__, {"--repeats": 5, "--seconds": 2.0, "--jobs": list(JOBS)})
    import numpy as np

    heads = ["", "numbers", "one process, ms", "two, ms", "one, CPU ms", "two, CPU ms each", "model, CPU ms", "sum, ms"]
    results, lines = {}, [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name in options.jobs:
        one, two = child(name, 1, options), child(name, 2, options)
        rows = [int(key.split()[1]) for key in one if key.startswith("rows")]
        slope, fixed = np.polyfit(rows, [one[f"rows {count}"][1] for count in rows], 1)
        whole = JOBS[name]["rows"]
        model = fixed + slope * whole / 2
        first, second = one[f"rows {whole}"], two[f"rows {whole}"]
        results[name] = {"one": one, "two": two, "fixed": fixed, "per row": slope, "model of two": model}
        numbers = [*zip(first, second, strict=True)]
        shown = [*numbers[0], *numbers[1], model, two["sum"]]
        lines.append(f"| {name}, {whole} rows | {two['numbers']:,} | {' | '.join(f'{value:.2f}' for value in shown)} |")
    report(Path(__file__).stem, options, results, lines)


if __name__ == "__main__":
    main()
