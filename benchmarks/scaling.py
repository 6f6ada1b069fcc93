"""Step time and peak memory of `sps.fit`'s step against width, particles, rows and replicas; memory of a wide layer.

    python benchmarks/scaling.py [--threads 2] [--out FOLDER] [--parts width particles rows replicas 'replicas of toy' layer]

Every row is a process of its own: median milliseconds a step after a warm-up, and how far the peak of its resident
memory is above that after importing torch and pyro_sps and making the data. The base is energy's network (8-50-50-2,
heavy, ±c learned, 16 particles, 512 rows). `layer` compares one 4096-4096 layer (heavy, 4 particles) with the hand-written step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from common import arguments, report

BASE = {"width": 50, "particles": 16, "rows": 512, "replicas": 1, "inputs": 8, "outputs": 2}
SWEEPS = {
    "width": [64, 256, 1024, 4096],
    "particles": [1, 4, 16, 64],
    "rows": [30, 512, 10_000, 1_000_000],
    "replicas": [1, 4, 10, 64],
    "replicas of toy": [1, 4, 10, 64],
}
# Wide networks get fewer rows and particles, so that a sweep takes minutes.
SETTINGS = {
    "width": {"particles": 4, "rows": 128},
    "replicas of toy": {"rows": 30, "inputs": 1, "outputs": 1},
}

CHILD = """
import json, resource, sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads({threads})
import step
if {layer!r}:
    step.PARTICLES = 4
    job = {{"widths": [4096, 4096], "rows": 64}}
else:
    job = {{"widths": [{inputs}, {width}, {width}, {outputs}], "rows": {rows}, "batch": min(512, {rows})}}
step.data(job)
import pyro_sps.inference.job, torch._inductor.compile_fx
network = step.network(job)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build = step.hand_written(job) if {layer!r} == "hand" else step.ours(job, {compile}, {replicas}, {particles})
build(2)
times = []
spent = time.perf_counter()
while len(times) < 3 or (len(times) < 9 and time.perf_counter() - spent < 3):
    n = max(1, int(0.3 / times[-1])) if times else 1
    started = time.perf_counter()
    build(n)
    times.append((time.perf_counter() - started) / n)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([1e3 * sorted(times[1:])[len(times[1:]) // 2], (peak - before) / 1024]))
"""


def run(threads, layer="", compile=True, **changes):
    setting = BASE | changes
    here = str(Path(__file__).parent)
    code = CHILD.format(here=here, threads=threads, layer=layer, compile=compile, **setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main():
    options = arguments(__doc__, {"--parts": [*SWEEPS, "layer"]})
    results, lines = {}, []
    for part in options.parts:
        if part == "layer":
            rows = {
                "hand-written torch, eager": run(options.threads, "hand", particles=4),
                "pyro_sps, compiled": run(options.threads, "ours", particles=4),
                "pyro_sps, not compiled": run(options.threads, "ours", compile=False, particles=4),
            }
            base = rows["hand-written torch, eager"][1]
            lines += ["one 4096-4096 layer, 64 rows, 4 particles, Gaussian targets", ""]
            lines += ["| | ms a step | added memory | / hand-written |", "| --- | ---: | ---: | ---: |"]
            lines += [f"| {n} | {v[0]:,.0f} | {v[1]:,.0f} MB | {v[1] / base:.2f} |" for n, v in rows.items() if v]
        else:
            name = part.split()[0]
            rows = {value: run(options.threads, **SETTINGS.get(part, {}), **{name: value}) for value in SWEEPS[part]}
            lines += [f"| {part} | ms a step | / first | added memory |", "| ---: | ---: | ---: | ---: |"]
            first = next(iter(rows.values()))
            for value, found in rows.items():
                ratio = f"{found[0] / first[0]:.2f}" if found and first else ""
                cells = f"{found[0]:,.2f} | {ratio} | {found[1]:,.0f} MB" if found else "failed | | "
                lines.append(f"| {value:,} | {cells} |")
        results[part] = rows
        lines.append("")
        print("\n".join(lines[-10:]), file=sys.stderr, flush=True)
    report("scaling", options, results, lines)


if __name__ == "__main__":
    main()
