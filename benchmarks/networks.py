"""How long it takes to read a network and to certify a mask of it, against its number of weights.

    python benchmarks/networks.py [--threads 1] [--quick 0] [--out FOLDER]

Each network runs in a process of its own: `Topology.of`, the heavy mask, `certify` of it with zeros. Time is CPU time of one
run, after torch's own modules were loaded by a tiny network; memory is the largest resident size of the process. Writes
networks.png beside the table.
"""

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

from common import arguments, report

KINDS = {
    "MLP": [{"widths": [d, d, d, 10]} for d in (64, 128, 256, 512, 1024)],
    "ResNet": [{"width": width, "blocks": blocks} for width, blocks in ((8, 3), (16, 3), (32, 3), (16, 9), (64, 3))],
    "ViT": [
        {"width": width, "depth": depth} for width, depth in ((48, 2), (96, 4), (192, 2), (192, 4), (192, 8), (192, 12))
    ],
    "LSTM": [{"hidden": hidden} for hidden in (32, 64, 128, 256)],
}


def made(kind, options):
    """The network and an example."""
    import torch

    from pyro_sps import mlp, networks

    if kind == "MLP":
        return mlp(options["widths"]), None
    if kind == "ResNet":
        return networks.resnet20(**options), torch.zeros(2, 3, 32, 32)
    if kind == "LSTM":
        return networks.lstm(**options), torch.zeros(2, 6, 1)
    heads = 3 if options["width"] % 3 == 0 else 2
    return networks.vit_tiny(heads=heads, **options), torch.zeros(2, 3, 224, 224)


def measure(kind, options):
    """One network, in this process."""
    import torch

    import pyro_sps as sps

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    small = sps.networks.lstm(hidden=3)
    sps.certify(topology := sps.Topology.of(small, torch.zeros(2, 6, 1)), sps.Heavy()(topology))
    net, example = made(kind, options)
    start = time.process_time()
    topology = sps.Topology.of(net, example)
    read = time.process_time()
    masks = sps.Heavy()(topology)
    begun = time.process_time()
    found = sps.certify(topology, masks)
    done = time.process_time()
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "kind": kind,
        "options": options,
        "weights": topology.num_weights,
        "fixed": found.num_fixed,
        "topology_s": read - start,
        "certificate_s": done - begun,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9,
        "permutations": found.permutations.text(after=True),
    }


def draw(results, path):
    """Time against weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, marker, grey in zip(KINDS, "osD^", ("0.0", "0.3", "0.5", "0.7"), strict=True):
        own = sorted((r for r in results if r["kind"] == kind), key=lambda r: r["weights"])
        total = [r["topology_s"] + r["certificate_s"] for r in own]
        axes.loglog([r["weights"] for r in own], total, marker + "-", color=grey, label=kind)
    axes.set(
        xlabel="weights (number)", ylabel="topology and certificate (s of CPU time)", title="heavy mask, one thread"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def main():
    """Measure all networks, each in a process of its own."""
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
        return
    options = arguments(__doc__, {"--quick": 0})
    results = []
    head = "| network | weights | fixed by heavy | topology | certificate | peak memory | permutations left |"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for kind, every in KINDS.items():
        for own in every[: 2 if options.quick else None]:
            command = [sys.executable, __file__, "--case", json.dumps([kind, own])]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise SystemExit(done.stderr)
            result = json.loads(done.stdout)
            results.append(result)
            said = ", ".join(f"{name} {value}" for name, value in own.items())
            lines.append(
                f"| {kind}, {said} | {result['weights']:,} | {result['fixed']:,} | {result['topology_s']:.1f} s | "
                f"{result['certificate_s']:.1f} s | {result['gigabytes']:.2f} GB | {result['permutations']} |"
            )
            print(lines[-1], flush=True)
    report("networks", options, results, lines)
    if options.out:
        draw(results, Path(options.out) / "networks.png")


if __name__ == "__main__":
    main()
