"""How long certificates take and how much memory, against the number of fixed weights.

    python benchmarks/symmetry.py [--quick] [--json FILE]

Each case runs in a process of its own on one thread. Time is that of `sps.certify` (all classes of symmetry, masks and
values given), the best of several runs. Memory: "peak" is the largest resident size of the process, which includes
masks and values; "added" is that less the size just before the first certificate, an upper bound.
Writes benchmarks/RESULTS-symmetry.md and benchmarks/symmetry.png unless --quick.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

GOALS = [  # what the issue asks: widths, scheme, values, seconds, gigabytes
    ((8, 50, 50, 2), "light", "zero", 0.05, None),
    ((8, 50, 50, 2), "light", "constant", 0.05, None),
    ((8, 50, 50, 2), "heavy", "zero", 0.05, None),
    ((8, 50, 50, 2), "heavy", "constant", 0.05, None),
    ((8, 50, 50, 2), "rigid", "zero", 0.05, None),
    ((8, 50, 50, 2), "none", "zero", 0.05, None),
    ((784, 1024, 1024, 10), "heavy", "zero", 2.0, None),
    ((784, 1024, 1024, 10), "heavy", "constant", 2.0, None),
    ((784, 1024, 1024, 10), "light", "zero", None, None),
    ((784, 1024, 1024, 10), "rigid", "zero", None, None),
    ((4096, 4096, 4096, 10), "heavy", "zero", 60.0, 6.0),
    ((4096, 4096, 4096, 10), "heavy", "constant", 60.0, 6.0),
    ((4096, 4096, 4096, 10), "heavy", "normal", 60.0, 6.0),
    ((4096, 4096, 4096, 10), "random", "constant", 60.0, 6.0),
]
CURVE = [(d, d, d, 10) for d in (32, 64, 128, 256, 512, 1024, 2048, 4096)]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One case, in this process."""
    import torch

    import pyro_sps as sps

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    topology = sps.Topology.of(sps.mlp(tuple(case["widths"]), "tanh", device="meta"))
    schemes = {
        "none": sps.Unmasked(),
        "light": sps.Light(),
        "heavy": sps.Heavy(),
        "random": sps.Random(like=0.5),
        "rigid": sps.Rigid(),
    }
    values = {"zero": sps.Zero(), "constant": sps.Constant(1.0), "normal": sps.RandomConstant(1.0)}
    generator = torch.Generator().manual_seed(0)
    masks = topology.check_masks(schemes[case["scheme"]](topology, generator))
    fixed = values[case["values"]](topology, masks, generator)
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or kilobytes
    before = resident() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    times: list[float] = []
    while len(times) < 2 or (sum(times) < 2.0 and len(times) < 50):
        start = time.perf_counter()
        report = sps.certify(topology, masks, fixed)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    assert report.signed_permutations is not None
    return case | {
        "fixed": report.num_fixed,
        "first_s": times[0],
        "best_s": min(times),
        "memory_gb": (peak - before) / 1e9,
        "process_gb": peak / 1e9,
        "permutations": report.permutations.text(after=True),
        "signed": report.signed_permutations.text(after=True),
        "how": report.signed_permutations.how,
    }


def resident() -> int:
    """Resident size of this process in bytes; 0 where Linux does not tell."""
    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[1]) * resource.getpagesize() if statistics.exists() else 0


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout)
    print(row(result), flush=True)
    return result


def row(result: dict[str, Any], seconds: float | None = None, gigabytes: float | None = None) -> str:
    goals = " / ".join(text for text in (seconds and f"{seconds:g} s", gigabytes and f"{gigabytes:g} GB") if text)
    cells = [
        "-".join(map(str, result["widths"])),
        result["scheme"],
        result["values"],
        f"{result['fixed']:,}",
        f"{result['first_s'] * 1e3:,.0f} ms",
        f"{result['best_s'] * 1e3:,.0f} ms",
        f"{result['memory_gb']:.2f} GB",
        f"{result['process_gb']:.2f} GB",
        result["permutations"],
        result["signed"],
        goals,
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| widths | scheme | values | fixed | first run | best run | added | peak | permutations left | with signs | goal |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |"
)


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = zip("osD", ("0.0", "0.35", "0.6"), strict=True)
    for (name, results), (marker, grey) in zip(curves.items(), styles, strict=True):
        fixed = [result["fixed"] for result in results]
        left.loglog(fixed, [result["best_s"] for result in results], marker + "-", color=grey, label=name)
        big = [result for result in results if result["memory_gb"] > 0.005]
        right.loglog([r["fixed"] for r in big], [r["memory_gb"] for r in big], marker + "-", color=grey, label=name)
    last = next(iter(curves.values()))[-1]
    for axes, value in ((left, last["best_s"]), (right, last["memory_gb"])):
        ends = [last["fixed"] / 300, last["fixed"]]
        axes.loglog(ends, [value / 300, value], ":", color="tab:red", label="proportional to fixed weights")
        axes.set_xlabel("fixed weights (number)")
        axes.grid(alpha=0.3)
    left.set(ylabel="time of the certificate (s)", title="d-d-d-10 tanh network, one thread")
    right.set(ylabel="memory added, at most (GB)")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def exponent(results: list[dict[str, Any]], key: str) -> float:
    """Slope of the log-log curve over its last factor of 64 in fixed weights."""
    first, last = results[-4], results[-1]
    return math.log(last[key] / first[key]) / math.log(last["fixed"] / first["fixed"])


def machine() -> str:
    import numpy
    import torch

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = os.getloadavg()[1]
    versions = f"Python {platform.python_version()}, numpy {numpy.__version__}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, one thread used, load average {load:.1f} at the end; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="networks of up to 1024 units a layer; writes nothing")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return

    small = (lambda widths: max(widths) <= 1024) if arguments.quick else (lambda widths: True)
    print(HEAD)
    results = [
        (run({"widths": widths, "scheme": scheme, "values": values}), seconds, gigabytes)
        for widths, scheme, values, seconds, gigabytes in GOALS
        if small(widths)
    ]
    curves = {
        f"{scheme}, {values}": [
            run({"widths": widths, "scheme": scheme, "values": values}) for widths in CURVE if small(widths)
        ]
        for scheme, values in (("heavy", "constant"), ("heavy", "zero"), ("random", "constant"))
    }
    if arguments.json:
        every = [result for result, _, _ in results] + [result for curve in curves.values() for result in curve]
        arguments.json.write_text(json.dumps({"machine": machine(), "results": every}, indent=1))
    if arguments.quick:
        return
    draw(curves, HERE / "symmetry.png")
    slopes = [
        f"| {name} | {exponent(curve, 'best_s'):.2f} | {exponent(curve, 'memory_gb'):.2f} |"
        for name, curve in curves.items()
    ]
    lines = [
        "# Certificates of symmetry: time and memory",
        "",
        "Made by `python benchmarks/symmetry.py`. Time is that of `sps.certify` for a tanh network with both",
        "permutations and signed permutations; memory is what the process grew by (at most) and its peak, which",
        "includes masks and values. Orders left are exact.",
        "",
        f"Machine: {machine()}.",
        "",
        HEAD,
        *(row(*result) for result in results),
        "",
        "Exponents a of time or memory ~ (fixed weights)^a, over the last three doublings of the width d of d-d-d-10:",
        "",
        "| masks, values | time | memory |",
        "| --- | ---: | ---: |",
        *slopes,
        "",
        "![Time and memory against the number of fixed weights](symmetry.png)",
        "",
    ]
    (HERE / "RESULTS-symmetry.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
