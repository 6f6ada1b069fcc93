"""A deep ensemble of ten with all that it needs chosen on validation rows, in plain PyTorch: a contender of `estimators`.

Ten networks of two hidden layers of 50 units, as the default of the estimators has, from different random starts,
by Adam on minibatches (Lakshminarayanan et al. 2017, without adversarial training). A fifth of the training rows is held
out; on it the mixture's log density chooses the number of steps (of three), the scale of the normal prior of weights (their decay,
by fan-in), whether noise is one number or an output of the networks, and the number if it is one. Then all training rows
train ten networks with that, for as many epochs.
"""

import itertools
import math

import numpy as np
import torch
from torch.nn import functional

MEMBERS, HIDDEN, BATCH, RATE = 10, (50, 50), 64, 3e-3
#: Where training may end: the step size falls before each and starts again after it (Loshchilov and Hutter 2017).
STEPS = (500, 2_000, 8_000)
#: So many members are enough to choose by.
TRIED = 5
#: Scales of the prior, in units of 1 / sqrt(fan-in).
PRIORS = (0.5, 1.0, 2.0, 4.0)
#: Standard deviations of the noise, where it is one number, in those of the targets.
NOISES = torch.logspace(-2, 0.2, 60)
#: What noise of one number is taken to be while networks are trained: with their prior it only says how much they decay.
TRAINED_WITH = 0.2


def ensemble(x, y, x_test, seed=0):
    """What the mixture predicts.

    Args:
        x: Standardised inputs, shape (rows, features).
        y: Standardised targets, shape (rows, targets), or numbers of classes, shape (rows,).
        x_test: Inputs to predict for.
        seed: Seeds all.

    Returns:
        Probabilities (rows, classes), or means and scales of normals, each (members, rows, targets); and what was chosen.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(x))
    held, rest = np.split(order, [max(2, len(x) // 5)])
    kinds = ["classes"] if y.ndim == 1 else ["one", "each"]
    outputs = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
    best = (-math.inf,)
    for kind in kinds:
        trained = _trained(x[rest], y[rest], x[held], outputs, np.repeat(PRIORS, TRIED), kind, STEPS, seed)
        for cycles, raw in enumerate(trained, 1):
            for prior, own in zip(PRIORS, raw.split(TRIED), strict=True):
                noise = _best_noise(own, y[held]) if kind == "one" else kind
                best = max(best, (_scores(own, noise, y[held]).mean().item(), prior, noise, cycles), key=lambda b: b[0])
    _, prior, noise, cycles = best
    kind = noise if isinstance(noise, str) else "one"
    # As many epochs of all rows.
    share = min(BATCH, len(rest)) / min(BATCH, len(x)) * len(x) / len(rest)
    steps = [round(share * end) for end in STEPS[:cycles]]
    *_, raw = _trained(x, y, x_test, outputs, np.repeat(prior, MEMBERS), kind, steps, seed + 1)
    chosen = {"prior": float(prior), "noise": noise if kind != "one" else noise.tolist(), "steps": steps[-1]}
    if kind == "classes":
        return raw.softmax(-1).mean(0).numpy(), chosen
    return [part.double().numpy() for part in _normal(raw, noise)], chosen


def _trained(x, y, x_out, outputs, priors, kind, ends, seed):
    """Of networks that are trained side by side, one for each of `priors`, what they put out for `x_out` at each end."""
    generator = torch.Generator().manual_seed(seed)
    x, x_out = (torch.as_tensor(part, dtype=torch.float32) for part in (x, x_out))
    y = torch.as_tensor(y, dtype=None if kind == "classes" else torch.float32)
    prior = torch.as_tensor(priors, dtype=torch.float32)
    layers = []
    for fan_in, width in itertools.pairwise([x.shape[1], *HIDDEN, outputs * (2 if kind == "each" else 1)]):
        weight = torch.randn(len(prior), fan_in, width, generator=generator) / math.sqrt(fan_in)
        layers.append((weight.requires_grad_(), torch.zeros(len(prior), 1, width, requires_grad=True)))
    optimizer = torch.optim.Adam(itertools.chain(*layers), RATE)
    for first, end in itertools.pairwise([0, *ends]):
        for step in range(first, end):
            fraction = (step - first) / (end - first)
            optimizer.param_groups[0]["lr"] = RATE * (1 + 29 * (1 + math.cos(math.pi * fraction)) / 2) / 30
            rows = torch.randint(len(x), (len(prior), min(BATCH, len(x))), generator=generator)
            loss = _losses(_forward(layers, x[rows]), y[rows], kind).sum()
            for weight, _ in layers:
                loss = loss + (weight.square().sum((1, 2)) / prior.square()).sum() * weight.shape[1] / (2 * len(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            yield _forward(layers, x_out.expand(len(prior), -1, -1))


def _forward(layers, x):
    for weight, bias in layers[:-1]:
        x = functional.relu(torch.baddbmm(bias, x, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, x, weight)


def _losses(raw, y, kind):
    """Mean of each network's rows, without constants."""
    if kind == "classes":
        return functional.cross_entropy(raw.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    mean, scale = _normal(raw, TRAINED_WITH if kind == "one" else kind)
    return (((y - mean) / scale).square() / 2 + scale.log()).sum(-1).mean(1)


def _normal(raw, noise):
    """Means and scales of the networks' normals."""
    if not isinstance(noise, str):
        return raw, torch.as_tensor(noise).expand_as(raw)
    mean, scale = raw.chunk(2, -1)
    return mean, functional.softplus(scale) + 1e-3


def _best_noise(raw, y):
    """For each target."""
    scores = torch.stack([_scores(raw, noise, y).mean(0) for noise in NOISES])
    return NOISES[scores.argmax(0)]


def _scores(raw, noise, y):
    """Log probability of each row, or log density of each row and target, by the mixture."""
    if y.ndim == 1:
        return raw.softmax(-1).mean(0)[range(len(y)), y].clamp(min=1e-12).log()
    mean, scale = _normal(raw, noise)
    each = torch.distributions.Normal(mean, scale).log_prob(torch.as_tensor(y, dtype=raw.dtype))
    return each.logsumexp(0) - math.log(len(each))
