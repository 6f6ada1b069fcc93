"""Steps a second of ten chains of microcanonical Langevin dynamics: pyro_sps, hand-written eager torch, the same in JAX.

    python benchmarks/chains.py [--repeats 5] [--threads 2] [--rows 691] [--hidden 50] [--chains 10] [--steps 40]
        [--jax PYTHON] [--curve 1] [--out FOLDER]

All do the same mathematics: a 8-50-50-2 tanh network of which every weight is free, normal prior, Gaussian noise 0.1,
float32, one gradient on all rows a step, guard and refreshment included. Contenders are interleaved, block by block, and
medians over the blocks are reported. JAX runs in an interpreter that has it (`--jax`), as a jitted scan over the steps,
mapped over chains; it is asked for a block when it is its turn. `--curve 1` times pyro_sps alone, over rows, weights and
chains.
"""

import itertools
import math
import os
import statistics
import subprocess
import sys
import time

from common import arguments, report

INPUTS, OUTPUTS, NOISE = 8, 2, 0.1


def widths(options):
    return [INPUTS, options.hidden, options.hidden, OUTPUTS]


def data(options):
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, INPUTS, generator=generator).to(getattr(options, "device", "cpu"))
    return x, torch.sin(x.sum(1, keepdim=True)).expand(-1, OUTPUTS).contiguous()


def ours(options, compile):
    """What `sample` runs: its step, called as its loop does."""
    import pyro_sps as sps
    from pyro_sps.inference.chains import ChainRun
    from pyro_sps.inference.coordinates import Coordinates
    from pyro_sps.model.target import Target

    x, y = data(options)
    net = sps.mlp(widths(options), device=x.device)
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), sps.Gaussian(NOISE), prior_scale=1.0)
    coordinates = Coordinates.of(Target.of(bnn, x, y), 0)
    import torch

    starts = 0.1 * torch.randn(options.chains, coordinates.size, generator=torch.Generator().manual_seed(1)).to(x)
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

    x, y = data(options)
    generator = torch.Generator(x.device).manual_seed(1)
    shapes = [shape for a, b in itertools.pairwise(widths(options)) for shape in ((b, a), (b,))]
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

    q = 0.1 * torch.randn(options.chains, count, generator=generator, device=x.device)
    u = torch.randn(options.chains, count, generator=generator, device=x.device)
    state = [q, u / u.norm(dim=1, keepdim=True), *gradient(q)]
    step, length, limit = x.new_full((options.chains, 1), 0.01), math.sqrt(count), 2 * math.sqrt(count)

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
            noise = torch.randn(velocity.shape, generator=generator, device=x.device)
            velocity = velocity + ((torch.exp(2 * step / length) - 1) / count).sqrt() * noise
            state[:] = [position, velocity / velocity.norm(dim=1, keepdim=True), force, before]

    return steps


def in_jax(options):
    """A process that runs a block of steps for each line that it reads; None where there is none."""
    if not options.jax:
        return None
    given = [options.rows, options.hidden, options.chains, options.steps, options.threads]
    process = subprocess.Popen(
        [options.jax, __file__, "worker", *map(str, given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def steps(_):
        process.stdin.write("go\n")
        process.stdin.flush()
        if process.stdout.readline().strip() != "done":
            raise RuntimeError("the process with JAX ended")

    return steps


def jax_worker(rows, hidden, chains, count, threads):
    """The same chains: one jitted scan over the steps of a block, mapped over chains."""
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    x = jax.random.normal(keys[0], (rows, INPUTS))
    y = jnp.broadcast_to(jnp.sin(x.sum(1, keepdims=True)), (rows, OUTPUTS))
    shapes = [s for a, b in itertools.pairwise([INPUTS, hidden, hidden, OUTPUTS]) for s in ((b, a), (b,))]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    size, length = ends[-1], math.sqrt(ends[-1])
    limit, epsilon = 2 * length, 0.01

    def energy(flat):
        h, parts = x, jnp.split(flat, ends[:-1])
        for layer in range(0, len(parts), 2):
            h = h @ parts[layer].reshape(shapes[layer]).T + parts[layer + 1]
            h = jnp.tanh(h) if layer < len(parts) - 2 else h
        return jnp.square((y - h) / NOISE).sum() / 2 + jnp.square(flat).sum() / 2

    both = jax.value_and_grad(energy)

    def kick(velocity, force):
        norm = jnp.linalg.norm(force) + 1e-20
        e, delta = -force / norm, epsilon / 2 * norm / (size - 1)
        along, decay = velocity @ e, jnp.exp(-delta)
        moved = e * ((1 - decay) * (1 + decay + along * (1 - decay))) + 2 * decay * velocity
        gained = (size - 1) * (delta - math.log(2) + jnp.log(1 + along + (1 - along) * decay**2))
        return moved / jnp.linalg.norm(moved), gained

    def step(state, key):
        position, before_velocity, force, before = state
        velocity, first = kick(before_velocity, force)
        moved = position + epsilon * velocity
        after, after_force = both(moved)
        velocity, second = kick(velocity, after_force)
        good = jnp.abs(after - before + first + second) < limit
        position, velocity = jnp.where(good, moved, position), jnp.where(good, velocity, -before_velocity)
        force, before = jnp.where(good, after_force, force), jnp.where(good, after, before)
        spread = math.sqrt(math.expm1(2 * epsilon / length) / size)
        velocity = velocity + spread * jax.random.normal(key, (size,))
        return (position, velocity / jnp.linalg.norm(velocity), force, before), None

    @jax.jit
    def block(states, key):
        own = jax.random.split(key, (chains, count))
        return jax.vmap(lambda state, keys: jax.lax.scan(step, state, keys)[0])(states, own)

    position = 0.1 * jax.random.normal(keys[1], (chains, size))
    velocity = jax.random.normal(keys[2], (chains, size))
    energies, forces = jax.vmap(both)(position)
    states = (position, velocity / jnp.linalg.norm(velocity, axis=1, keepdims=True), forces, energies)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        states = jax.block_until_ready(block(states, jax.random.fold_in(keys[3], number)))
        print("done", flush=True)


def curve(options):
    """Milliseconds of a step of all chains, one quantity changed at a time."""
    import copy

    results, lines = [], ["| rows | weights | chains | ms a step |", "| ---: | ---: | ---: | ---: |"]
    changes = [("rows", n) for n in (50, 200, 1000, 5000, 10_000)]
    changes += [("hidden", n) for n in (25, 100, 250, 1000)] + [("chains", n) for n in (1, 4, 16, 64)]
    for name, value in changes:
        own = copy.copy(options)
        setattr(own, name, value)
        steps, _ = ours(own, False)
        steps(2)
        times = []
        for _ in range(options.repeats):
            begun = time.perf_counter()
            steps(4)
            times.append((time.perf_counter() - begun) / 4)
        weights = sum((a + 1) * b for a, b in itertools.pairwise(widths(own)))
        results.append(
            {"rows": own.rows, "weights": weights, "chains": own.chains, "seconds": statistics.median(times)}
        )
        lines.append(f"| {own.rows:,} | {weights:,} | {own.chains} | {1e3 * statistics.median(times):.1f} |")
    options.out = options.out and options.out / "curve"
    report("chains", options, results, lines)


def main():
    defaults = {"--repeats": 5, "--rows": 691, "--hidden": 50, "--chains": 10, "--steps": 40, "--jax": "", "--curve": 0}
    options = arguments(__doc__, defaults)
    sys.argv = ["PYTHON" if options.jax and one == options.jax else one for one in sys.argv]  # of no use elsewhere
    if options.curve:
        return curve(options)
    recorded, _ = ours(options, False)
    compiled, mode = ours(options, True)
    contenders = {"hand-written eager": eager(options), "pyro_sps recorded": recorded, f"pyro_sps {mode}": compiled}
    if (jitted := in_jax(options)) is not None:
        contenders["JAX, jitted scan"] = jitted
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
    return None


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        jax_worker(*map(int, sys.argv[2:]))
    else:
        main()
