"""A convolutional, a recurrent and an attention network fitted end to end on real data, with pictures.

    python benchmarks/real.py --images FOLDER --temperatures FILE [--steps 600] [--threads 1] [--out FOLDER]

- MNIST (a subset of FOLDER/mnist-*.parquet): LeNet-5; how unsure it is of digits and of digits turned by 90 degrees
- daily minimum temperatures (FILE with columns Date and Temp): an LSTM on two weeks, tomorrow's temperature
- scikit-learn's digits: attention over the eight rows of an image

Each is fitted twice by the same number of steps: with the heavy scheme at zero, and with all weights stochastic. Beside
them stands the network at its MAP estimate, a single set of weights. Scores are of held-out rows.
"""

import math
import time
import warnings
from pathlib import Path

from common import arguments, report


def mnist(options):
    """Digits: training and test images and labels."""
    import pyro_sps as sps

    def read(name, rows):
        return sps.datasets.images(Path(options.images) / name).batch(range(rows), -1)

    return *read("mnist-train.parquet", 3000), *read("mnist-test.parquet", 1000)


def temperatures(options):
    """Two weeks, and the day after; the last two years are held out."""
    import csv

    import torch

    with open(options.temperatures) as file:
        values = [float(row["Temp"].lstrip("?")) for row in csv.DictReader(file)]
    series = torch.tensor(values)
    x = series.unfold(0, 15, 1)
    x, y = x[:, :14, None], x[:, 14:]
    held = 2 * 365
    return x[:-held], y[:-held], x[-held:], y[-held:]


def digits(options):
    """Images of 8 x 8 as sequences of rows."""
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(found.images, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def attention():
    """Rows of an image look at each other."""
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.places = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            self.out = nn.Linear(32, 10)

        def forward(self, x):
            return self.out(self.layer(self.embed(x) + self.places).mean(1))

    return Attention()


def fitted(name, net, likelihood, data, options):
    """Scores of the three ways, and the fit of the heavy scheme."""
    import torch

    import pyro_sps as sps

    x, y, x_test, y_test = data
    rows, kept = [], None
    for label, scheme in (("heavy", sps.Heavy()), ("all stochastic", sps.Unmasked())):
        torch.manual_seed(0)
        begun = time.process_time()
        bnn = sps.BNN(net, scheme, sps.Zero(), likelihood, example=x[:2])
        fit = sps.fit(
            bnn,
            x,
            y,
            num_steps=options.steps,
            num_particles=1,
            batch_size=64,
            learning_rate=0.003,
            init="map",
            map_steps=options.steps,
            progress=False,
        )
        prediction = fit.predict(x_test, 50)
        score = prediction.rmse(y_test) if y.is_floating_point() else prediction.accuracy(y_test)
        seconds = time.process_time() - begun
        rows.append((name, label, bnn.num_stochastic, prediction.lpp(y_test), score, seconds))
        kept = kept or fit
    point = fit.mean_network()(x_test)  # one set of weights, without what is not known of them
    if y.is_floating_point():
        error = (point - y_test).square()
        noise = fit.bnn.likelihood.noise_scale.detach() * fit.standardizer.y_scale
        lpp = (-0.5 * error / noise**2 - noise.log() - 0.5 * math.log(2 * math.pi)).mean().item()
        score = error.mean().sqrt().item()
    else:
        lpp = point.log_softmax(-1).gather(1, y_test[:, None]).mean().item()
        score = (point.argmax(-1) == y_test).float().mean().item()
    rows.append((name, "posterior means as one network", 0, lpp, score, 0.0))
    return rows, kept


def draw(fits, tests, path):
    """Three panels, one a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    images, series, attended = figure.subplots(1, 3)
    x, _ = tests["MNIST, LeNet-5"]
    fit = fits["MNIST, LeNet-5"]
    for label, shown, style in (("digits", x, "-"), ("digits turned by 90 degrees", x.rot90(1, (2, 3)), "--")):
        entropy = fit.predict(shown, 50).uncertainty("entropy").total
        images.hist(entropy.numpy(), bins=30, range=(0, 2.3), histtype="step", color="0.0", ls=style, label=label)
    images.set(xlabel="predictive entropy (nats)", ylabel="test images (number)", title="MNIST, LeNet-5")
    images.set_yscale("log")
    images.legend(fontsize="small")
    x, y = tests["temperatures, LSTM"]
    prediction = fits["temperatures, LSTM"].predict(x[:120], 200)
    low, high = prediction.interval(0.95)
    days = range(120)
    series.fill_between(days, low[:, 0], high[:, 0], color="0.8", label="95 % interval")
    series.plot(days, prediction.mean[:, 0], color="0.3", label="mean")
    series.plot(days, y[:120, 0], "k.", ms=3, label="measured")
    series.set(xlabel="day of the held-out years", ylabel="minimum temperature (°C)", title="temperatures, LSTM")
    series.legend(fontsize="small")
    x, y = tests["digits, attention"]
    probabilities = fits["digits, attention"].predict(x, 50).mean
    sure, right = probabilities.max(1).values, (probabilities.argmax(1) == y).float()
    order = sure.argsort()
    parts = [(sure[part].mean().item(), right[part].mean().item()) for part in order.chunk(8)]
    attended.plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
    attended.plot(*zip(*parts, strict=True), "ko-", label="eighths of the test images")
    attended.set(xlabel="mean probability of the class named", ylabel="share that is right", title="digits, attention")
    attended.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main():
    """Fit all three."""
    options = arguments(__doc__, {"--images": "", "--temperatures": "", "--steps": 600})
    warnings.simplefilter("ignore")
    import pyro_sps as sps
    from pyro_sps import networks

    jobs = {
        "MNIST, LeNet-5": (networks.lenet5(), sps.Categorical(), mnist),
        "temperatures, LSTM": (networks.lstm(), sps.Gaussian(0.5, learn=True), temperatures),
        "digits, attention": (attention(), sps.Categorical(), digits),
    }
    head = "| data, network | weights | stochastic | LPP | RMSE or accuracy | CPU s |"
    lines, fits, tests, results = [head, "| --- | --- | ---: | ---: | ---: | ---: |"], {}, {}, []
    for name, (net, likelihood, read) in jobs.items():
        data = read(options)
        rows, fits[name] = fitted(name, net, likelihood, data, options)
        tests[name] = data[2:]
        results += rows
        for _, label, stochastic, lpp, score, seconds in rows:
            lines.append(f"| {name} | {label} | {stochastic:,} | {lpp:.3f} | {score:.3f} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    report("real", options, results, lines)
    if options.out:
        draw(fits, tests, Path(options.out) / "real.png")


if __name__ == "__main__":
    main()
