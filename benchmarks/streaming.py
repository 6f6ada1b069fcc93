"""Data larger than memory: peak memory of a fit and of predictions, and rows a second against rows in memory.

    python benchmarks/streaming.py [--rows 20000000] [--columns 20] [--steps 4000] [--batch 1024] [--repeats 5]
                                   [--samples 10] [--folder FOLDER] [--threads 2] [--out FOLDER]

Writes a Parquet file of that many rows of float32 (to a temporary folder, or one that is kept), a linear law with noise.
Memory: a process of its own fits a 20-50-50-1 network to it, standardised, and predicts mean and standard deviation of
all rows; what counts is the most memory that it ever had (resident), less what it had after `import pyro_sps` and torch.
Speed: in another process fits to the file and to as many rows in memory as they see are interleaved, with the
same network, batches and compiled step; rows a second are those after the first 200 steps, and the median over pairs of
the ratio is reported.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, report

OPTIONS = {
    "--rows": 20_000_000,
    "--columns": 20,
    "--steps": 4000,
    "--batch": 1024,
    "--repeats": 5,
    "--samples": 10,
    "--folder": "",
    "--only": "",
}
WARM = 200
GROUP = 1 << 18


def write(path, rows, columns):
    """The file, row group by row group."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    names = [*(f"x{index}" for index in range(columns - 1)), "y"]
    schema = pyarrow.schema([(name, pyarrow.float32()) for name in names])
    generator = np.random.default_rng(0)
    law = generator.normal(size=columns - 1).astype(np.float32)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as file:
        for first in range(0, rows, GROUP):
            x = generator.standard_normal((min(GROUP, rows - first), columns - 1), dtype=np.float32)
            noise = 0.1 * generator.standard_normal(len(x), dtype=np.float32)
            y = np.tanh(x @ law) + noise
            file.write_table(pyarrow.table([*x.T, y], schema=schema), row_group_size=GROUP)


def network(columns):
    import pyro_sps as sps

    return sps.BNN(sps.mlp([columns - 1, 50, 50, 1]), sps.Heavy(), sps.RandomConstant())


def resident():
    """Memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak():
    """The most memory that this process ever had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def memory(options, path):
    """Peak memory of a fit and of predictions."""
    import torch

    import pyro_sps as sps

    torch.zeros(1).tanh()
    before = resident()
    begun = time.perf_counter()
    fit = sps.fit(
        network(options.columns), path, "y", num_steps=options.steps, batch_size=options.batch, progress=False
    )
    fitted, middle = peak(), time.perf_counter()
    prediction = fit.predict(sps.ParquetData(path, targets=["y"]), num_samples=options.samples)
    found = {"rmse": prediction.rmse(), "std": prediction.std.mean().item()}
    return {
        "import": before,
        "fit": fitted - before,
        "predict": peak() - before,
        "fit seconds": middle - begun,
        "predict seconds": time.perf_counter() - middle,
        "seconds": dict(fit.seconds),
        **found,
    }


def rate(options, data, seed):
    """Rows a second of a fit, after its first steps."""
    import pyro_sps as sps

    times = {}

    def note(step, losses):
        if step in (WARM, options.steps - 1):
            times[step] = time.perf_counter()

    sps.fit(
        network(options.columns),
        *data,
        num_steps=options.steps,
        batch_size=options.batch,
        standardize=False,
        compile=True,
        progress=False,
        seed=seed,
        callbacks=[note],
    )
    return (options.steps - 1 - WARM) * options.batch / (times[options.steps - 1] - times[WARM])


def speed(options, path):
    """Rows a second from the file and from memory."""
    import numpy as np
    import pyarrow.parquet

    wanted, parts = options.steps * options.batch, []
    with pyarrow.parquet.ParquetFile(path) as file:
        for index in range(file.metadata.num_row_groups):
            if sum(map(len, parts)) < wanted:
                table = file.read_row_group(index)
                parts.append(np.stack([column.to_numpy() for column in table.columns], axis=1))
    table = np.concatenate(parts)[:wanted]
    arrays = (table[:, :-1].copy(), table[:, -1:].copy())
    rates = {"file": [], "memory": []}
    for repeat in range(options.repeats):
        for name, data in (("file", (path, "y")), ("memory", arrays)):
            rates[name].append(rate(options, data, repeat))
    ratios = [one / other for one, other in zip(rates["file"], rates["memory"], strict=True)]
    return {**rates, "ratio": statistics.median(ratios), "ratios": ratios}


def child(what):
    """A part of the benchmark in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    options = arguments(__doc__, OPTIONS)
    if options.only:
        what, path = options.only.split(":", 1)
        print(json.dumps({"memory": memory, "speed": speed}[what](options, path)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rows-{options.rows}-{options.columns}.parquet"
        if not path.exists():
            write(path, options.rows, options.columns)
        size = path.stat().st_size
        results = {"bytes": size, "memory": child(f"memory:{path}"), "speed": child(f"speed:{path}")}
    used, rates = results["memory"], results["speed"]
    gigabytes = {name: used[name] / 1e9 for name in ("fit", "predict")}
    lines = [
        f"{options.rows:,} rows x {options.columns} columns, {size / 1e9:.2f} GB of Parquet (float32)",
        "",
        "| what | measured | goal |",
        "| --- | --- | --- |",
        f"| peak memory of the fit, above that of the import | {gigabytes['fit']:.2f} GB | < 1.5 GB |",
        f"| the same with predictions of all rows | {gigabytes['predict']:.2f} GB | < 1.5 GB |",
        f"| rows a second, file / memory, median of {options.repeats} pairs | {rates['ratio']:.2f} | ≥ 0.8 |",
        "",
        f"Rows a second: file {statistics.median(rates['file']):,.0f}, memory {statistics.median(rates['memory']):,.0f}; "
        f"fit {used['fit seconds']:.0f} s (of these {used['seconds']['prepare']:.0f} s to standardise and prepare), "
        f"predictions of all rows with {options.samples} draws {used['predict seconds']:.0f} s.",
    ]
    report("streaming", options, results, lines)


if __name__ == "__main__":
    main()
