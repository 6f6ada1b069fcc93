"""What masks do to the default chains: which weights are fixed, how many, at what; predictions, mixing, seconds.

    PYRO_SPS_DATA=... python benchmarks/masks.py run [--tables energy concrete ...] [--splits 3 4 5] [--methods ...]
                                                      [--device cuda]
    python benchmarks/masks.py show

Tables, splits and scores are those of benchmarks/estimators.py, the chains those of `BNNRegressor` with all defaults but
`scheme` and `values`. `wedge P` fixes P % of each matrix in the structure of the heavy scheme (`pyro_sps.study.methods.Wedge`),
`random P` as many anywhere. Constants ±c are one c for the network, sampled with the weights. MAP values are those of the
estimators' default for fits. R-hat and effective sample sizes are `pyro_sps.diagnose`'s, of weights and of the functions at
50 training rows: medians. Seconds are of cores that other work shared, and of chains that became faster in the meantime:
they do not compare methods. On an accelerator, which several runs shared, none are noted.

Each result is a line of JSON in benchmarks/results/masks.jsonl, and what is there is not run again. `show` writes
benchmarks/results/masks.md: means over splits, and differences to `none` with intervals as in benchmarks/estimators.py.
"""

import functools
import itertools
import math
import time
import warnings
from pathlib import Path

import numpy as np
from common import difference, keep, run_or_show, stored
from splits import split

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "masks.jsonl", HERE / "results" / "masks.md"
TABLES = ["energy", "concrete", "diabetes", "wine-red"]
SHARES = (25, 50, 75, 90)


def schemes():
    """Schemes and values by the names of methods."""
    import pyro_sps as sps
    from pyro_sps.study.methods import Wedge

    def constant():
        return sps.Constant(1.0, learn=True)

    zero, fixed = sps.Zero, sps.MAP
    found = {
        "none": (sps.Unmasked(), zero),
        "heavy, zeros": (sps.Heavy(), zero),
        "as heavy at random, zeros": (sps.Random(like=sps.Heavy()), zero),
        "light, zeros": (sps.Light(), zero),
        "rigid, zeros": (sps.Rigid(), zero),
        "heavy, ±c": (sps.Heavy(), constant),
        "heavy, MAP": (sps.Heavy(), fixed),
        "as heavy at random, ±c": (sps.Random(like=sps.Heavy()), constant),
        "as heavy at random, MAP": (sps.Random(like=sps.Heavy()), fixed),
        "light, ±c": (sps.Light(), constant),
        "rigid, ±c": (sps.Rigid(), constant),
    }
    for share in reversed(SHARES):
        found[f"wedge {share}, zeros"] = (Wedge(share / 100), zero)
        found[f"random {share}, zeros"] = (sps.Random(like=share / 100), zero)
    return found


def scores(parts, scheme, values, device):
    """Chains of one mask on one split."""
    import torch

    import pyro_sps as sps

    x, y, x_test, y_test = parts
    begun = time.perf_counter()
    options = {"scheme": scheme, "values": values(), "method": "sample", "device": device}
    model = sps.BNNRegressor(random_state=0, progress=False, **options).fit(x, y)
    seconds = time.perf_counter() - begun
    prediction = model.prediction(x_test)
    samples, found = model.posterior_, sps.diagnose(model.posterior_)
    bnn = samples.bnn
    facts = {
        "lpp": prediction.lpp(y_test),
        "error": prediction.rmse(y_test),
        "coverage": prediction.coverage(y_test),
        "seconds": seconds if device == "cpu" else None,
        "fixed": bnn.num_fixed,
        "weights": bnn.topology.num_weights,
    }
    for name in ("rhat_weights", "rhat_predictions", "ess_weights", "ess_predictions"):
        facts[name] = float(np.nanmedian(getattr(found, name)))
    left = found.symmetry.signed_permutations
    if left is not None and left.log10_after is not None:
        facts["log10_symmetries"] = left.log10_after
    if isinstance(scale := bnn.constant_scale(), torch.Tensor):
        facts["c"] = float(scale.detach().mean())
    return facts


def run(options):
    """What is asked for and not there yet, one split of all tables after the other."""
    import torch

    torch.set_num_threads(options.threads)
    every = schemes()
    done = {(row["table"], row["split"], row["method"]) for row in stored(RESULTS)}
    for seed, table, name in itertools.product(options.splits, options.tables, options.methods or every):
        if (table, seed, name) in done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = {
                "table": table,
                "split": seed,
                "method": name,
                **scores(split(table, seed), *every[name], options.device),
            }
        keep(RESULTS, row)
        print(
            f"{table} {seed} {name}: {row['lpp']:.3f} {row['error']:.3f} {row['seconds'] or math.nan:.0f} s", flush=True
        )


def cell(found, base):
    """A mean over the splits that both have, and the difference to the base."""
    both = sorted(set(found) & set(base))
    if not both:
        return ""
    text = f"{np.mean([found[s] for s in both]):.3f}"
    return text if found is base else f"{text} ({difference(found, base)})"


def show():
    """The page."""
    rows, lines = stored(RESULTS), [f"# Masks under chains\n\n```\n{__doc__.strip()}\n```\n"]
    for table in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == table]
        lines += [f"## {table}", "", "Bold: surely better or worse than `none`.", ""]
        lines += ["| | splits | fixed | LPP | RMSE | 95 % holds | R-hat, ESS of weights | of functions | seconds |"]
        lines += ["| --- |" + " ---: |" * 8]

        def of(method, name, own=own):
            return {row["split"]: row[name] for row in own if row["method"] == method}

        for method in dict.fromkeys(row["method"] for row in own):
            mean = functools.partial(lambda method, name: np.mean(list(of(method, name).values())), method)
            scored = [of(m, name) for name in ("lpp", "error") for m in (method, "none")]
            pairs = [scored[:2], scored[2:]]
            cells = [cell(a, a if method == "none" else b) for a, b in pairs]
            mixing = [
                f"{mean('rhat_' + of_what):.2f}, {mean('ess_' + of_what):.0f}" for of_what in ("weights", "predictions")
            ]
            share = f"{100 * mean('fixed') / mean('weights'):.0f} %"
            head = [method, str(len(scored[0])), share, *cells, f"{100 * mean('coverage'):.0f} %", *mixing]
            seconds = [value for value in of(method, "seconds").values() if value is not None]
            lines.append(f"| {' | '.join(head)} | {f'{np.median(seconds):.0f}' if seconds else ''} |")
        lines.append("")
    PAGE.write_text("\n".join(lines))
    print(PAGE.read_text())


if __name__ == "__main__":
    run_or_show(__doc__, run, show, tables=TABLES, splits=list(range(3, 13)), device="cpu")
