"""IVON beside Adam: mean field on energy, the same steps, ten splits.

    PYRO_SPS_DATA=... python benchmarks/ivon.py [--steps 3000] [--splits 10] [--threads 1] [--out FOLDER]

The set-up of the study (two layers of 50 tanh units, prior Normal(0, 1), noise 0.1 that is known, four particles, 128 rows a
step) with either optimiser at its default step size; all splits are replicas of one program. Half-widths of 95 % intervals
of the paired difference of LPP (Nadeau and Bengio 2003). On images: benchmarks/images.py.
"""

import time

from common import arguments, report

# IVON's step is that of Newton's method: 0.1 is the default of `fit`.
CONTENDERS = (("Adam", {}), ("IVON", {"optimizer": "ivon", "learning_rate": None}))


def main():
    """All contenders."""
    options = arguments(__doc__, {"--steps": 3000, "--splits": 10})
    from pyro_sps.study.methods import partial_network
    from pyro_sps.study.problems import load
    from pyro_sps.study.scores import score
    from pyro_sps.study.summary import paired_interval

    problem = load("energy", range(options.splits))
    results, lines = (
        [],
        ["| | optimiser | RMSE | LPP | LPP, IVON - Adam | ELBO | seconds |", "| --- |" * 2 + " ---: |" * 5],
    )
    lines[1] = lines[1].replace("||", "|")
    for scheme in ("none", "heavy"):
        before = None
        for name, own in CONTENDERS:
            begun = time.perf_counter()
            found = partial_network(problem, scheme=scheme, num_steps=options.steps, progress=False, **own)
            seconds = time.perf_counter() - begun
            scored = [score(one.mixture, y) for one, y in zip(found, problem.y_test, strict=True)]
            lpp = [one["lpp"] for one in scored]
            means = [sum(one[what] for one in scored) / len(scored) for what in ("rmse", "lpp")]
            elbo = sum(one.facts["elbo"] for one in found) / len(found)
            gap = ""
            if before is not None:
                mean, half = paired_interval([a - b for a, b in zip(lpp, before, strict=True)], 0.25)
                gap = f"{mean:+.3f} ± {half:.3f}"
            before = lpp
            results.append({"scheme": scheme, "optimizer": name, "lpp": lpp, "rmse": [s["rmse"] for s in scored]})
            lines.append(
                f"| {scheme} | {name} | {means[0]:.3f} | {means[1]:.3f} | {gap} | {elbo:,.0f} | {seconds:.0f} |"
            )
            print(lines[-1], flush=True)
    report("ivon", options, results, lines)


if __name__ == "__main__":
    main()
