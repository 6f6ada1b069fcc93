"""Energy Efficiency, 8-50-50-2: RMSE and LPP of four configurations on random 80/20 splits.

    PYRO_SPS_DATA=... python benchmarks/energy.py [--splits 5] [--steps 10000]

Setting of the paper's second experiment: tanh, prior N(0, 1), noise 0.1, inputs and targets standardised on the
training part, Adam from 1e-2 to 3e-3, 16 particles, batches of 512; scores in standardised units.
"""

import argparse
import time

import numpy as np
import torch

import pyro_sps as sps
from pyro_sps.datasets import load_uci

CONFIGURATIONS = {
    "none": (sps.Unmasked(), sps.Zero()),
    "heavy, zero": (sps.Heavy(), sps.Zero()),
    "heavy, c learned from 1": (sps.Heavy(), sps.Constant(1.0, learn=True)),
    "light, c learned from 4": (sps.Light(), sps.Constant(4.0, learn=True)),
}


def standardised(split):
    """Training and test part in units of the training part."""
    x_train, y_train, x_test, y_test = (
        torch.as_tensor(part, dtype=torch.float32)
        for part in (split.x_train, split.y_train, split.x_test, split.y_test)
    )
    x_mean, x_scale, y_mean, y_scale = x_train.mean(0), x_train.std(0), y_train.mean(0), y_train.std(0)
    return (
        (x_train - x_mean) / x_scale,
        (y_train - y_mean) / y_scale,
        (x_test - x_mean) / x_scale,
        (y_test - y_mean) / y_scale,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    dataset = load_uci("energy")
    parts = [standardised(dataset.split(seed=seed, test_fraction=0.2)) for seed in range(arguments.splits)]
    x, y = (torch.stack([part[index] for part in parts]) for index in (0, 1))
    print("| | fixed | RMSE | LPP | ELBO | c | seconds |\n| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, (scheme, values) in CONFIGURATIONS.items():
        bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=scheme, values=values)
        started = time.perf_counter()
        fits = sps.fit(bnn, x, y, replicas=len(parts), num_steps=arguments.steps, batch_size=512)
        seconds = time.perf_counter() - started
        predictions = [fit.predict(part[2]) for fit, part in zip(fits, parts, strict=True)]
        scores = [
            np.array([getattr(p, score)(part[3]) for p, part in zip(predictions, parts, strict=True)])
            for score in ("rmse", "lpp")
        ]
        rmse, lpp = (f"{s.mean():.3f} ± {s.std(ddof=1) / len(s) ** 0.5:.3f}" for s in scores)
        scales = [fit.bnn.constant_scale() for fit in fits if fit.bnn.learns_scale]
        learned = f"{torch.stack(scales).mean():.2f}" if scales else ""
        elbo = np.mean([fit.elbo for fit in fits])
        print(f"| {name} | {bnn.num_fixed} | {rmse} | {lpp} | {elbo:.0f} | {learned} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
