"""What the benchmarks share: options, pinned threads, the machine, and where results go."""

import argparse
import json
import math
import os
import platform
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def arguments(doc, options):
    """Parse options with defaults (a list takes several) besides --threads and --out, and pin the threads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options.items():
        several = isinstance(default, list)
        kind = type(default[0] if several else default)
        parser.add_argument(name, type=kind, default=default, **({"nargs": "+"} if several else {}))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for NAME.json and NAME.md")
    parsed = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(parsed.threads)
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(parsed.threads > 1).lower()}"
    import torch

    torch.set_num_threads(parsed.threads)
    return parsed


def fit_steps(bnn, x, y, rate, **options):
    """What `fit` runs, by the same calls, with its step built once: the run, and what takes so many steps of it."""
    from pyro_sps.inference.job import prepare_job, run_of, starts_of
    from pyro_sps.inference.settings import FitSettings

    fixed = {"num_steps": 1, "init": "random", "standardize": False, "progress": False}
    asked = FitSettings(learning_rate=rate, final_learning_rate=rate, **fixed, **options)
    prepared = prepare_job(bnn, x, y, None, asked, None)
    run = run_of(prepared, *starts_of(prepared, None), ended=False)

    def steps(count):
        run.num_steps, run.done = count, 0
        run.losses = run.losses.new_zeros((count, len(run.members)))
        run((), None)

    return run, steps


def machine(threads):
    """One line about the machine and the versions."""
    from pyro_sps.study.harness import processor

    versions = []
    for name in ("torch", "pyro-ppl", "numpyro", "jax"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    load = f"load average {os.getloadavg()[0]:.1f} at the end"
    return (
        f"{processor()}, {os.cpu_count()} cores, {threads} threads, {load}; Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def run_or_show(doc, run, show, required=(), **defaults):
    """The command line of a benchmark that keeps its results line by line: `run` with options, or `show`.

    Args:
        doc: What the benchmark is.
        run: Called with the parsed options: those of `defaults`, `methods` and `threads`.
        show: Called without any.
        required: Options that `run` cannot do without.
        **defaults: Options with defaults; a list takes several.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "show"])
    for name, default in defaults.items():
        several = {"nargs": "+", "type": type(default[0])} if isinstance(default, list) else {}
        parser.add_argument(f"--{name}", default=default, **several)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.command == "show":
        return show()
    if missing := [name for name in required if not getattr(options, name)]:
        parser.error(f"run needs {', '.join(f'--{name}' for name in missing)}")
    return run(options)


def difference(values, base, overlap=0.25, digits=3):
    """The mean paired difference with its 95 % interval, of the splits that both have, in bold where it is sure."""
    from pyro_sps.study.summary import paired_interval

    mean, half = paired_interval([values[s] - base[s] for s in sorted(set(values) & set(base))], overlap)
    text = f"{mean:+.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
    return f"**{text}**" if abs(mean) > half else text


def over_seeds(values):
    """The mean, and half the range where there are several."""
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def write_cases(path, title, doc, rows, methods, table):
    """Write and print a page with a table for each case and a line for each method that has rows there.

    Args:
        path: Where it goes.
        title: Its title.
        doc: What the benchmark is.
        rows: Results with `case`, `method` and `seconds`, which may be None.
        methods: Names of methods, in order.
        table: `rows of a case -> (heading, names of columns, function of a method's rows that gives their cells)`.
    """
    lines = [f"# {title}\n\n```\n{doc.strip()}\n```\n"]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        heading, columns, cells = table(own)
        lines += [f"## {heading}", "", f"| | seeds | {' | '.join(columns)} | seconds |"]
        lines += ["| --- |" + " ---: |" * (len(columns) + 2)]
        for method in methods:
            if every := [row for row in own if row["method"] == method]:
                seconds = [row["seconds"] for row in every if row["seconds"] is not None]
                median = f"{statistics.median(seconds):.0f}" if seconds else ""
                lines.append(f"| {method} | {len(every)} | {' | '.join(cells(every))} | {median} |")
        lines.append("")
    path.write_text("\n".join(lines))
    print(path.read_text())


def stored(path):
    """Results that were kept in a file, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path, row):
    """Add a result to such a file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def report(name, options, results, lines):
    """Print a table and write it, and the numbers as JSON, to the folder that was asked for."""
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    text = "\n".join([f"`{command}`", "", machine(options.threads), "", *lines]).rstrip() + "\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.md").write_text(text)
        content = {"command": command, "machine": machine(options.threads), "results": results}
        (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
