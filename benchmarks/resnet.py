"""A step of a convolutional network: pyro_sps against the deterministic step and a hand-written weight draw.

    python benchmarks/resnet.py [--repeats 7] [--steps 2] [--threads 2] [--rows 128] [--width 16] [--out FOLDER]

ResNet-20 with group norm on rows x 3 x 32 x 32 and ten classes, float32. Deterministic: cross entropy, SGD with momentum.
By hand: a mean and a scale for each weight, one draw a step, closed-form KL, the same SGD. pyro_sps: what `fit` runs
(Adam), all weights stochastic with one and four particles, and the heavy scheme. Contenders are interleaved, block by block;
medians over the blocks, of wall time and of the process's CPU time, and of the ratios to the deterministic step beside them.
"""

import statistics
import time

from common import arguments, fit_steps, report

CLASSES, RATE = 10, 1e-3


def data(options):
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, 3, 32, 32, generator=generator)
    y = torch.randint(0, CLASSES, (options.rows,), generator=generator)
    device = getattr(options, "device", "cpu")
    return x.to(device), y.to(device)


def network(options):
    import torch

    import pyro_sps as sps

    torch.manual_seed(0)
    return sps.networks.resnet20(CLASSES, width=options.width, norm="group").to(getattr(options, "device", "cpu"))


def deterministic(options):
    """One step of SGD on the network itself."""
    import torch
    from torch.nn.functional import cross_entropy

    (x, y), net = data(options), network(options)
    optim = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)

    def steps(count):
        for _ in range(count):
            optim.zero_grad()
            cross_entropy(net(x), y).backward()
            optim.step()

    return steps


def by_hand(options):
    """The same with a draw of all weights a step."""
    import torch
    from torch.nn.functional import cross_entropy, softplus

    (x, y), net = data(options), network(options)
    loc = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    rho = {name: torch.full_like(p, -4.0).requires_grad_() for name, p in loc.items()}
    optim = torch.optim.SGD([*loc.values(), *rho.values()], RATE, momentum=0.9)

    def steps(count):
        for _ in range(count):
            optim.zero_grad()
            kl, weights = 0.0, {}
            for name, mean in loc.items():
                scale = softplus(rho[name])
                weights[name] = mean + scale * torch.randn_like(scale)
                kl = kl + (0.5 * (scale**2 + mean**2 - 1) - scale.log()).sum()
            outputs = torch.func.functional_call(net, weights, (x,))
            (cross_entropy(outputs, y) + kl / 50_000).backward()
            optim.step()

    return steps


def ours(options, scheme, particles, compile, precision=None):
    """What `fit` runs: the same calls, with its step built once."""
    import pyro_sps as sps

    x, y = data(options)
    bnn = sps.BNN(network(options), scheme, sps.Zero(), sps.Categorical(), example=x[:2])
    run, steps = fit_steps(
        bnn, x, y, RATE, num_particles=particles, batch_size=None, compile=compile, precision=precision
    )
    return steps, run.step.mode


def contenders(options):
    """Names and what runs so many steps."""
    import pyro_sps as sps

    found = {"deterministic": deterministic(options), "drawn by hand": by_hand(options)}
    compile = bool(options.compile)
    for name, scheme, particles in (
        ("pyro_sps, one particle", sps.Unmasked(), 1),
        ("pyro_sps, heavy, one particle", sps.Heavy(), 1),
        ("pyro_sps, four particles", sps.Unmasked(), 4),
    ):
        steps, mode = ours(options, scheme, particles, compile)
        found[f"{name} ({mode})"] = steps
    return found


def main():
    """Time all contenders in turn."""
    defaults = {"--repeats": 7, "--steps": 2, "--rows": 128, "--width": 16, "--compile": 0}
    options = arguments(__doc__, defaults)
    every = contenders(options)
    for steps in every.values():
        steps(1)
    blocks = {name: [] for name in every}
    for _ in range(options.repeats):
        for name, steps in every.items():
            wall, cpu = time.perf_counter(), time.process_time()
            steps(options.steps)
            blocks[name].append(
                ((time.perf_counter() - wall) / options.steps, (time.process_time() - cpu) / options.steps)
            )
    results, lines = {}, ["| | ms a step | CPU ms | ratio | CPU ratio |", "| --- | --- | --- | --- | --- |"]
    base = blocks["deterministic"]
    for name, own in blocks.items():
        medians = [statistics.median(block[i] for block in own) for i in (0, 1)]
        ratios = [statistics.median(b[i] / d[i] for b, d in zip(own, base, strict=True)) for i in (0, 1)]
        results[name] = {"wall": medians[0], "cpu": medians[1], "ratio": ratios[0], "cpu_ratio": ratios[1]}
        numbers = [f"{1e3 * value:.0f}" for value in medians] + [f"{value:.2f}" for value in ratios]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    report("resnet", options, results, lines)


if __name__ == "__main__":
    main()
