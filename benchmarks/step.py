"""Milliseconds an optimisation step: pyro_sps against hand-written torch, stock Pyro and NumPyro.

    python benchmarks/step.py [--repeats 9] [--threads 2] [--out FOLDER] [--jobs energy toy classes]

Every contender does the same mathematics: heavy mask, ±c learned, Normal(0, 1) prior, Gaussian noise 0.1 or classes, 16
particles, closed-form KL, Adam, float32. Contenders are interleaved, block by block, and medians over the blocks are
reported.
"""

import math
import statistics
import time

from common import arguments, fit_steps, report

JOBS = {
    "energy": {"widths": [8, 50, 50, 2], "rows": 512, "steps": 100},
    "toy": {"widths": [1, 50, 50, 1], "rows": 30, "steps": 400},
    "classes": {"widths": [784, 400, 400, 10], "rows": 128, "steps": 6},
}
PARTICLES, NOISE, RATE = 16, 0.1, 1e-3


def is_classes(job):
    return job["widths"][-1] == 10


def data(job):
    import torch

    generator, device = torch.Generator().manual_seed(0), job.get("device", "cpu")
    x = torch.randn(job["rows"], job["widths"][0], generator=generator).to(device)
    if is_classes(job):
        return x, torch.randint(0, 10, (job["rows"],), generator=generator).to(device)
    return x, torch.sin(x.sum(1, keepdim=True)).expand(-1, job["widths"][-1]).contiguous()


def network(job):
    import pyro_sps as sps

    return sps.BNN(
        sps.mlp(job["widths"], device=job.get("device", "cpu")),
        scheme=sps.Heavy(),
        values=sps.Constant(1.0, learn=True),
        likelihood=sps.Categorical() if is_classes(job) else sps.Gaussian(NOISE),
        prior_scale=1.0,
    )


def ours(job, compile, replicas=1, particles=PARTICLES, optimizer="adam"):
    """What `fit` runs: the same calls, with its step built once and timed block by block."""
    return fit_steps(
        network(job),
        *data(job),
        RATE,
        num_particles=particles,
        batch_size=job.get("batch"),
        compile=compile,
        replicas=replicas,
        optimizer=optimizer,
    )[1]


def hand_written(job):
    """A plain torch program of the same mathematics, as someone would write it for this network."""
    import torch

    bnn = network(job)
    x, y = data(job)
    layers = []
    start = 0
    for weight in bnn.weights:
        layers.append((start, start + weight.num_free, weight.index, weight.fixed.flatten(), weight.mask.shape))
        start += weight.num_free
    loc = (0.1 * torch.randn(start, device=x.device)).requires_grad_()
    rho = torch.full((start,), -3.0, device=x.device, requires_grad=True)
    log_c = torch.zeros((), device=x.device, requires_grad=True)
    adam = torch.optim.Adam([loc, rho, log_c], lr=RATE, fused=True, capturable=x.is_cuda)  # as CUDA graphs want it

    def block(steps):
        for _ in range(steps):
            scale = torch.nn.functional.softplus(rho)
            flat = loc + scale * torch.randn(PARTICLES, start, device=x.device)
            c = log_c.exp()
            tensors = []
            for first, last, index, pattern, shape in layers:
                free = flat[:, first:last]
                if len(index) < len(pattern):
                    full = (pattern * c).expand(PARTICLES, -1)
                    free = full.scatter(1, index.expand(PARTICLES, -1), free)
                tensors.append(free.reshape(PARTICLES, *shape))
            hidden = x.expand(PARTICLES, *x.shape)
            for layer in range(0, len(tensors), 2):
                hidden = torch.baddbmm(tensors[layer + 1].unsqueeze(1), hidden, tensors[layer].mT)
                if layer + 2 < len(tensors):
                    hidden = hidden.tanh()
            if is_classes(job):
                labels = y.expand(PARTICLES, -1).flatten()
                likelihood = (
                    -torch.nn.functional.cross_entropy(hidden.flatten(0, 1), labels, reduction="sum") / PARTICLES
                )
            else:
                constant = math.log(NOISE * math.sqrt(2 * math.pi))
                likelihood = -((y - hidden) ** 2).sum() / (2 * NOISE**2 * PARTICLES) - y.numel() * constant
            kl = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum()
            loss = (kl - likelihood) / len(x)
            adam.zero_grad()
            loss.backward()
            adam.step()

    return block


def stock_pyro(job, vectorize):
    import pyro
    from pyro.infer import SVI, TraceMeanField_ELBO
    from pyro.infer.autoguide import AutoNormal

    bnn = network(job)
    x, y = data(job)
    state = {}

    def block(steps):
        if not state:
            pyro.clear_param_store()
            elbo = TraceMeanField_ELBO(num_particles=PARTICLES, vectorize_particles=vectorize, max_plate_nesting=1)
            state["svi"] = SVI(bnn, AutoNormal(bnn), pyro.optim.Adam({"lr": RATE}), elbo)
        for _ in range(steps):
            state["svi"].step(x, y)

    return block


def numpyro_scan(job):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, TraceMeanField_ELBO
    from numpyro.infer.autoguide import AutoNormal

    bnn = network(job)
    x, y = (jnp.asarray(part.numpy()) for part in data(job))
    layers = [
        (w.name, w.index.numpy(), jnp.asarray(w.fixed.flatten().numpy()), tuple(w.mask.shape)) for w in bnn.weights
    ]

    def model(x, y):
        log_c = numpyro.param("log_c", jnp.zeros(()))
        tensors = []
        for name, index, pattern, shape in layers:
            free = numpyro.sample(name, dist.Normal(0.0, 1.0).expand([len(index)]).to_event(1))
            full = free if len(index) == len(pattern) else (pattern * jnp.exp(log_c)).at[index].set(free)
            tensors.append(full.reshape(shape))
        hidden = x
        for layer in range(0, len(tensors), 2):
            hidden = hidden @ tensors[layer].T + tensors[layer + 1]
            if layer + 2 < len(tensors):
                hidden = jnp.tanh(hidden)
        with numpyro.plate("data", len(x)):
            likelihood = dist.Categorical(logits=hidden) if is_classes(job) else dist.Normal(hidden, NOISE).to_event(1)
            numpyro.sample("obs", likelihood, obs=y)

    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(RATE), TraceMeanField_ELBO(num_particles=PARTICLES))
    state = [svi.init(jax.random.PRNGKey(0), x, y)]
    scan = jax.jit(lambda s, n: jax.lax.scan(lambda s, _: svi.update(s, x, y), s, None, length=n), static_argnums=1)

    def block(steps):
        state[0], losses = scan(state[0], steps)
        losses.block_until_ready()

    return block


def contenders(job):
    yield "hand-written torch, eager", lambda: hand_written(job)
    yield "pyro_sps, compiled", lambda: ours(job, True)
    yield "pyro_sps, not compiled", lambda: ours(job, False)
    yield "pyro_sps, IVON, compiled", lambda: ours(job, True, optimizer="ivon")
    yield "pyro_sps, IVON, not compiled", lambda: ours(job, False, optimizer="ivon")
    yield "stock Pyro, vectorised", lambda: stock_pyro(job, True)
    yield "stock Pyro, particle loop", lambda: stock_pyro(job, False)
    yield "NumPyro, jitted scan", lambda: numpyro_scan(job)


def measure(job, repeats):
    """Median milliseconds a step of every contender, interleaved."""
    blocks, steps = {}, {}
    for name, build in contenders(job):
        try:
            block = build()
        except ImportError as error:
            print(f"  {name}: skipped ({error})")
            continue
        steps[name] = max(2, job["steps"] // 50) if "loop" in name else job["steps"]
        for _ in range(2):
            block(steps[name])
        blocks[name] = block
    times = {name: [] for name in blocks}
    for _ in range(repeats):
        for name, block in blocks.items():
            started = time.perf_counter()
            block(steps[name])
            times[name].append(1e3 * (time.perf_counter() - started) / steps[name])
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    options = arguments(__doc__, {"--repeats": 9, "--jobs": list(JOBS)})
    results, lines = {}, []
    for job in options.jobs:
        results[job] = measure(JOBS[job], options.repeats)
        hand = results[job]["hand-written torch, eager"]
        numpyro = results[job].get("NumPyro, jitted scan", math.nan)
        widths = "-".join(map(str, JOBS[job]["widths"]))
        lines += [f"{job}: {widths}, {JOBS[job]['rows']} rows, {PARTICLES} particles", ""]
        lines += ["| | ms a step | / hand-written | / NumPyro |", "| --- | ---: | ---: | ---: |"]
        for name, value in results[job].items():
            lines.append(f"| {name} | {value:.2f} | {value / hand:.2f} | {value / numpyro:.2f} |")
        lines.append("")
    report("step", options, results, lines)


if __name__ == "__main__":
    main()
