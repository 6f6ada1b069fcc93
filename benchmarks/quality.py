"""Seconds until a fit of Energy Efficiency reaches a test LPP of 1.0: `sps.fit` against NumPyro, and our vanilla run.

    PYRO_SPS_DATA=... python benchmarks/quality.py [--steps 10000] [--every 250] [--splits 3] [--threads 2] [--out FOLDER]

8-50-50-2, tanh, prior N(0, 1), noise 0.1, heavy with c learned from 1, standardised, batch 512, 16 particles, Adam from
1e-2 to 3e-3 over all steps. LPP is that of 200 posterior draws, in standardised units, looked at every so many steps;
looking is not counted, compiling is (from a warm disk cache; NumPyro: its jit). NumPyro starts from the same means.
"""

import statistics
import time

import numpy as np
from common import arguments, report
from step import NOISE, PARTICLES

LEVEL, WIDTHS, BATCH = 1.0, [8, 50, 50, 2], 512


def ours(part, options, scheme, values):
    """Checks of a fit (step, LPP), and a function that gives the seconds up to a step."""
    import pyro_sps as sps

    x, y, x_test, y_test = part
    bnn = sps.BNN(sps.mlp(WIDTHS), scheme=scheme, values=values, likelihood=sps.Gaussian(NOISE), prior_scale=1.0)
    settings = {"num_steps": options.steps, "batch_size": BATCH, "num_particles": PARTICLES, "progress": False}
    settings["standardize"] = False  # it is already
    watched = sps.fit(bnn, x, y, validation=(x_test, y_test), validate_every=options.every, **settings)
    checks = [(int(check["step"]), check["lpp"]) for check in watched.validation]

    def seconds_until(step):
        started = time.perf_counter()
        sps.fit(bnn, x, y, callbacks=[lambda done, _: done + 1 >= step], **settings)
        return time.perf_counter() - started

    return checks, seconds_until


def numpyro_run(part, options):
    """Checks of NumPyro's SVI (step, LPP, seconds so far)."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import torch
    from numpyro.infer import SVI, TraceMeanField_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.infer.initialization import init_to_value

    import pyro_sps as sps
    from pyro_sps.inference.maximum import initial_params
    from pyro_sps.inference.members import members_of
    from pyro_sps.inference.settings import FitSettings
    from pyro_sps.model.density import prepare

    x, y, x_test, y_test = (np.asarray(one) for one in part)
    bnn = sps.BNN(sps.mlp(WIDTHS), sps.Heavy(), sps.Constant(1.0, learn=True), sps.Gaussian(NOISE), prior_scale=1.0)
    member = members_of(bnn, *part[:2], FitSettings(standardize=False))[0]
    problem, own = prepare(member.bnn, sps.AutoSPSNormal(member.bnn), *(torch.as_tensor(one[:1]) for one in part[:2]))
    loc = initial_params(member, problem, own, "random", 0.05, 0)["loc"]
    start = {site.name: jnp.asarray(site.view(loc).numpy()) for site in problem.sites}
    layers = [
        (w.name, w.index.numpy(), jnp.asarray(w.fixed.flatten().numpy()), tuple(w.mask.shape)) for w in bnn.weights
    ]

    def network(free, c, inputs):
        tensors = []
        for name, index, pattern, shape in layers:
            full = free[name] if len(index) == len(pattern) else (pattern * c).at[index].set(free[name])
            tensors.append(full.reshape(shape))
        hidden = inputs
        for layer in range(0, len(tensors), 2):
            hidden = hidden @ tensors[layer].T + tensors[layer + 1]
            hidden = jnp.tanh(hidden) if layer + 2 < len(tensors) else hidden
        return hidden

    def model(inputs, targets):
        c = jnp.exp(numpyro.param("log_c", jnp.zeros(())))
        free = {n: numpyro.sample(n, dist.Normal(0.0, 1.0).expand([len(i)]).to_event(1)) for n, i, _, _ in layers}
        with numpyro.plate("data", len(x), subsample_size=len(inputs)):
            numpyro.sample("obs", dist.Normal(network(free, c, inputs), NOISE).to_event(1), obs=targets)

    adam = numpyro.optim.Adam(lambda step: 1e-2 * 0.3 ** (step / options.steps))
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.01)
    svi = SVI(model, guide, adam, TraceMeanField_ELBO(num_particles=PARTICLES))
    started = time.perf_counter()
    state = svi.init(jax.random.PRNGKey(0), x[:BATCH], y[:BATCH])

    @jax.jit
    def steps(state, key):
        def one(carry, key):
            rows = jax.random.permutation(key, len(x))[:BATCH]
            return svi.update(carry, jnp.asarray(x)[rows], jnp.asarray(y)[rows])

        return jax.lax.scan(one, state, jax.random.split(key, options.every))

    @jax.jit
    def lpp(params, key):
        draws = guide.sample_posterior(key, params, sample_shape=(200,))
        means = jax.vmap(lambda free: network(free, jnp.exp(params["log_c"]), x_test))(draws)
        logs = dist.Normal(means, NOISE).log_prob(y_test)
        return (jax.scipy.special.logsumexp(logs, 0) - jnp.log(200)).mean()

    checks, spent = [], 0.0
    for number in range(options.steps // options.every):
        state, losses = steps(state, jax.random.PRNGKey(number))
        losses.block_until_ready()
        spent += time.perf_counter() - started
        checks.append(((number + 1) * options.every, float(lpp(svi.get_params(state), jax.random.PRNGKey(1))), spent))
        started = time.perf_counter()
    return checks


def first(checks, level):
    return next((check for check in checks if check[1] >= level), None)


def main():
    options = arguments(__doc__, {"--steps": 10_000, "--every": 250, "--splits": 3})
    import pyro_sps as sps
    from pyro_sps.study.problems import load

    problem = load("energy", range(options.splits))
    results, lines = [], []
    lines += ["| split | run | best LPP | first at LPP 1.0: step | seconds |", "| ---: | --- | ---: | ---: | ---: |"]
    for split in range(options.splits):
        part = tuple(tensor[split] for tensor in (problem.x, problem.y, problem.x_test, problem.y_test))
        runs = {}
        heavy, seconds_until = ours(part, options, sps.Heavy(), sps.Constant(1.0, learn=True))
        found = first(heavy, LEVEL)
        runs["pyro_sps, heavy, c learned"] = (heavy, found and found[0], found and seconds_until(found[0]))
        vanilla, vanilla_until = ours(part, options, sps.Unmasked(), sps.Zero())
        best = max(check[1] for check in vanilla)
        at = first(vanilla, best)
        runs[f"pyro_sps, vanilla (to its best, {best:.2f})"] = (vanilla, at[0], vanilla_until(at[0]))
        reached = first(heavy, best)
        name = f"pyro_sps, heavy, c learned (to vanilla's best, {best:.2f})"
        runs[name] = (heavy, reached and reached[0], reached and seconds_until(reached[0]))
        numpyro = numpyro_run(part, options)
        found = first(numpyro, LEVEL)
        runs["NumPyro, heavy, c learned"] = (numpyro, found and found[0], found and found[2])
        for name, (checks, step, seconds) in runs.items():
            top = max(check[1] for check in checks)
            results.append({"split": split, "run": name, "best": top, "step": step, "seconds": seconds})
            reached = f"{step:,} | {seconds:.1f}" if step else "never | "
            lines.append(f"| {split} | {name} | {top:.3f} | {reached} |")
    ratios = [
        a["seconds"] / b["seconds"]
        for a, b in zip(results[::4], results[3::4], strict=True)
        if a["seconds"] and b["seconds"]
    ]
    if ratios:
        lines += ["", f"pyro_sps / NumPyro, heavy to LPP 1.0: median {statistics.median(ratios):.2f} over the splits."]
    report("quality", options, results, lines)


if __name__ == "__main__":
    main()
