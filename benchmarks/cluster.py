"""Replicas and chains as one program of several threads, against processes of one thread each that share them.

    python benchmarks/cluster.py [--threads 2] [--repeats 3] [--steps 1000] [--out FOLDER]

A fit of ten replicas and ten chains, both of the network 8-50-50-2 on 615 rows. One program has the threads that are
asked for, the other way as many processes (a `dask.distributed.LocalCluster` that has already started, packages imported and one small fit
done). Whole calls are timed, in turn; medians.
"""

import statistics
import time

from common import arguments, report

JOBS = ("replicas", "chains")


def job(what, steps, scheduler=None):
    import torch

    import pyro_sps as sps

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(615, 8, generator=generator)
    y = torch.stack([x.sin().sum(1), x.prod(1)], 1) + 0.1 * torch.randn(615, 2, generator=generator)
    bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), sps.Unmasked(), sps.Zero())
    begun = time.perf_counter()
    if what == "replicas":
        sps.fit(bnn, x, y, replicas=10, num_steps=steps, compile=False, progress=False, scheduler=scheduler)
    else:
        third = steps // 3
        sps.sample(
            bnn, x, y, chains=10, warmup=third, num_samples=2 * third // 40, map_steps=third, progress=False,
            scheduler=scheduler,
        )  # fmt: skip
    return time.perf_counter() - begun


def main():
    options = arguments(__doc__, {"--repeats": 3, "--steps": 1000})
    import distributed

    ways, seconds = ("one program", "processes"), {}
    local = {"n_workers": options.threads, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**local) as cluster:
        place = cluster.scheduler_address
        job("replicas", 10, place)
        for _ in range(options.repeats):
            for what in JOBS:
                seconds.setdefault((what, ways[0]), []).append(job(what, options.steps))
                seconds.setdefault((what, ways[1]), []).append(job(what, options.steps, place))
    lines = ["| | one program, s | processes, s | ratio |", "| --- | ---: | ---: | ---: |"]
    results = []
    for what in JOBS:
        one, other = (seconds[what, how] for how in ways)
        row = [statistics.median(one), statistics.median(other)]
        row.append(statistics.median(b / a for a, b in zip(one, other, strict=True)))
        results.append({"what": what, **dict(zip((*ways, "ratio"), row, strict=True))})
        lines.append(f"| ten {what}, {options.steps:,} steps | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.2f} |")
    report("cluster", options, results, lines)


if __name__ == "__main__":
    main()
