"""Steps a second of ten chains of microcanonical Langevin dynamics: pyro_sps against hand-written eager torch.

    python benchmarks/chains.py [--repeats 5] [--threads 2] [--rows 691] [--chains 10] [--steps 40] [--out FOLDER]

Both do the same mathematics: a 8-50-50-2 tanh network of which every weight is free, normal prior, Gaussian noise 0.1,
float32, one gradient on all rows a step, guard and refreshment included. Contenders are interleaved, block by block, and
medians over the blocks are reported. (JAX is no contender where it is not installed.)
"""

import itertools
import math
import statistics
import time

from common import arguments, report

WIDTHS, NOISE = [8, 50, 50, 2], 0.1


def data(rows):
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, WIDTHS[0], generator=generator)
    return x, torch.sin(x.sum(1, keepdim=True)).expand(-1, WIDTHS[-1]).contiguous()


def ours(options, compile):
    """What `sample` runs: its step, called as its loop does."""
    import pyro_sps as sps
    from pyro_sps.inference.chains import ChainRun
    from pyro_sps.inference.coordinates import Coordinates
    from pyro_sps.model.density import Target

    x, y = data(options.rows)
    bnn = sps.BNN(sps.mlp(WIDTHS), sps.Unmasked(), sps.Zero(), sps.Gaussian(NOISE), prior_scale=1.0)
    coordinates = Coordinates.of(Target.of(bnn, x, y), 0)
    import torch

    starts = 0.1 * torch.randn(options.chains, coordinates.size, generator=torch.Generator().manual_seed(1))
    run = ChainRun(coordinates, "mclmc", starts, 10**6, 1, 1, options.rows, 0.01, 0, compile, False)
    run.scale = run.tuning.scale[:, coordinates.blocks]

    def steps(count):
        with torch.no_grad():
            for _ in range(count):
                run._langevin((x, y), False)

    return steps, run.program.mode


def eager(options):
    """The same by hand: batched products, autograd, the formulas one by one."""
    import torch

    x, y = data(options.rows)
    generator = torch.Generator().manual_seed(1)
    shapes = [shape for a, b in itertools.pairwise(WIDTHS) for shape in ((b, a), (b,))]
    sizes = [math.prod(shape) for shape in shapes]
    count = sum(sizes)

    def energy(flat):
        h = x.expand(len(flat), -1, -1)
        parts = flat.split(sizes, 1)
        for layer in range(0, len(parts), 2):
            weight = parts[layer].reshape(-1, *shapes[layer])
            h = torch.baddbmm(parts[layer + 1].unsqueeze(1), h, weight.mT)
            h = h.tanh() if layer < len(parts) - 2 else h
        return ((y - h) / NOISE).square().sum((1, 2)) / 2 + flat.square().sum(1) / 2

    def gradient(position):
        position = position.detach().requires_grad_()
        energies = energy(position)
        (found,) = torch.autograd.grad(energies.sum(), position)
        return found, energies.detach()

    def kick(velocity, force, step):
        norm = force.norm(dim=1, keepdim=True) + 1e-20
        e, delta = -force / norm, step * norm / (count - 1)
        along, decay = (velocity * e).sum(1, keepdim=True), torch.exp(-delta)
        moved = e * ((1 - decay) * (1 + decay + along * (1 - decay))) + 2 * decay * velocity
        gained = (count - 1) * (delta - math.log(2) + torch.log(1 + along + (1 - along) * decay**2))
        return moved / moved.norm(dim=1, keepdim=True), gained

    q = 0.1 * torch.randn(options.chains, count, generator=generator)
    u = torch.randn(options.chains, count, generator=generator)
    state = [q, u / u.norm(dim=1, keepdim=True), *gradient(q)]
    step, length, limit = torch.full((options.chains, 1), 0.01), math.sqrt(count), 2 * math.sqrt(count)

    def steps(number):
        for _ in range(number):
            position, velocity, force, before = state
            velocity, first = kick(velocity, force, step / 2)
            moved = position + step * velocity
            after_force, after = gradient(moved)
            velocity, second = kick(velocity, after_force, step / 2)
            error = (after - before)[:, None] + first + second
            good = error.abs() < limit
            position, velocity = torch.where(good, moved, position), torch.where(good, velocity, -state[1])
            force, before = torch.where(good, after_force, force), torch.where(good[:, 0], after, before)
            noise = torch.randn(velocity.shape, generator=generator)
            velocity = velocity + ((torch.exp(2 * step / length) - 1) / count).sqrt() * noise
            state[:] = [position, velocity / velocity.norm(dim=1, keepdim=True), force, before]

    return steps


def main():
    options = arguments(__doc__, {"--repeats": 5, "--rows": 691, "--chains": 10, "--steps": 40})
    recorded, _ = ours(options, False)
    compiled, mode = ours(options, True)
    contenders = {"hand-written eager": eager(options), "pyro_sps recorded": recorded, f"pyro_sps {mode}": compiled}
    times = {name: [] for name in contenders}
    for steps in contenders.values():
        steps(5)
    for _ in range(options.repeats):
        for name, steps in contenders.items():
            begun = time.perf_counter()
            steps(options.steps)
            times[name].append((time.perf_counter() - begun) / options.steps)
    rates = {name: options.chains / statistics.median(values) for name, values in times.items()}
    base = rates["hand-written eager"]
    results = {name: {"gradients_a_second": rate, "ratio": rate / base} for name, rate in rates.items()}
    lines = ["| | gradients a second, all chains | times eager |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {rate:,.0f} | {rate / base:.2f} |" for name, rate in rates.items()]
    report("chains", options, results, lines)


if __name__ == "__main__":
    main()
