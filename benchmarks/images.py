"""Masks, optimisers and parts without a posterior on images: LeNet-5 on MNIST, ResNet-20 on CIFAR-10.

    python benchmarks/images.py run --folder FOLDER [--cases mnist cifar10] [--methods ...] [--seeds 0]
                                    [--epochs N] [--device cuda]
    python benchmarks/images.py show

FOLDER holds mnist-train.parquet, mnist-test.parquet, cifar10-train.parquet and cifar10-test.parquet. All networks
(ReLU; group norm) see the same number of epochs, of 128 rows a step or 64, none augmented; one draw of the weights a
step. Adam's step size falls from 0.003 along a cosine, also for networks without a posterior, which have the same
prior (MAP) or none but dropout; IVON's from 0.1. Predictions are of 10 draws. Fixed values ±c: one c, learned from
0.1 on. W-asymmetric (Lim et al. 2024): 8 or (from 100 inputs of a unit on) 16 weights of each unit at draws of
Normal(0, 0.5²).

Accuracy, NLL and expected calibration error (15 bins) on the first 2,500 test images; AUROC of telling these from
1,000 of the other data set (made grey or coloured, cut or framed to size) by the entropy of the predicted classes.
CPU seconds of training on one thread; none of an accelerator, which several runs share.

Each result is a line of JSON in benchmarks/results/images.jsonl, and what is there is not run again. `show` writes
benchmarks/results/images.md. Laplace needs laplace-torch (extra `study`).
"""

import itertools
import math
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from common import keep, over_seeds, run_or_show, stored, write_cases
from contenders import calibration
from torch import nn
from torch.nn.functional import cross_entropy, pad

import pyro_sps as sps

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "images.jsonl", HERE / "results" / "images.md"
EPOCHS, BATCH = {"mnist": 3, "cifar10": 1}, {"mnist": 128, "cifar10": 64}
SEEN, OTHERS, DRAWS, RATE, MEMBERS, DROPOUT = 2_500, 1_000, 10, 0.003, 3, 0.1


# --- data ------------------------------------------------------------------------------------------


def load(folder, case, epochs=0, device="cpu"):
    """Training and test images of a case, and test images of the other one in its size."""
    from torch.utils.data import DataLoader

    def read(name, count):
        data = sps.datasets.images(Path(folder) / f"{name}.parquet")
        parts = itertools.islice(DataLoader(data, batch_size=1000), -(-(count or len(data)) // 1000))
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        return x[:count], y[:count]

    other, _ = read("cifar10-test" if case == "mnist" else "mnist-test", OTHERS)
    if case == "mnist":
        other = other.mean(1, keepdim=True)[..., 2:30, 2:30]
    else:
        other = pad(other, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    x, y = read(f"{case}-train", None)
    mean, scale = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x_test, y_test = read(f"{case}-test", SEEN)
    found = {"x": (x - mean) / scale, "x_test": (x_test - mean) / scale, "other": (other - mean) / scale}
    found = {name: part.to(device) for name, part in (found | {"y": y, "y_test": y_test}).items()}
    return SimpleNamespace(**found, case=case, epochs=epochs or EPOCHS[case], batch=BATCH[case])


def network(data, seed):
    """The case's network."""
    torch.manual_seed(seed)
    small = data.case == "mnist"
    net = sps.networks.lenet5(activation=nn.ReLU) if small else sps.networks.resnet20(norm="group")
    return net.to(data.x.device)


# --- contenders: each returns log probabilities, shape (draws, rows, classes), of test and of other images ------------


def asymmetric(topology, generator):
    """Fixed places of Lim et al. (2024): some of each unit's weights, drawn anew for each."""
    masks = topology.check_masks({})
    for tensor in topology.matrices:
        rows = tensor.shape[0]
        entries = tensor.numel // rows
        fixed = min(entries // 2, 16 if entries >= 100 else 8)
        order = torch.rand(rows, entries, generator=generator).argsort(1)
        masks[tensor.name] = (order >= fixed).reshape(tensor.shape)
    return masks


def mean_field(data, seed, scheme=None, values=None, **options):
    """`pyro_sps.fit` with one particle."""
    without = options.pop("without", ())
    net = network(data, seed)
    parts = without(net) if callable(without) else without
    bnn = sps.BNN(
        net,
        scheme or sps.Unmasked(),
        values or sps.Zero(),
        sps.Categorical(),
        example=data.x[:2],
        deterministic=parts,
        seed=seed,
    )
    rate = 0.1 if options.get("optimizer") == "ivon" else RATE
    fit = sps.fit(
        bnn,
        data.x,
        data.y,
        num_steps=data.epochs * math.ceil(len(data.x) / data.batch),
        num_particles=1,
        batch_size=data.batch,
        **{"learning_rate": rate, "final_learning_rate": rate / 100, "schedule": "cosine"},
        standardize=False,
        compile=data.x.device.type != "cpu",
        progress=False,
        seed=seed,
        **options,
    )

    def predict(x):
        return torch.cat([fit.predict(part, DRAWS).probabilities.log()[None] for part in x.split(500)], 1)

    return predict, {"fixed": bnn.num_fixed, "weights": bnn.topology.num_weights}


def all_but(kept):
    """Names of the network's modules other than those whose names begin so, optimised as points."""

    def parts(net):
        leaves = [name for name, module in net.named_modules() if not list(module.children())]
        owned = [name for name in leaves if list(net.get_submodule(name).parameters())]
        return {name: sps.Point() for name in owned if not name.startswith(kept)}

    return parts


def trained(data, seed, dropout=0.0, epochs=None):
    """A network by plain PyTorch: Adam on the negative log joint, or with dropout before each linear layer."""
    net = network(data, seed)
    if dropout:
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, nn.Sequential(nn.Dropout(dropout), child))
    steps = math.ceil((epochs or data.epochs) * len(data.x) / data.batch)
    optim = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps, RATE / 100)
    generator = torch.Generator().manual_seed(seed)
    tensors = [(p, 4 / max(1, p[0].numel()) if p.dim() > 1 else 4.0) for p in net.parameters()]  # as BNN's prior
    order = torch.tensor([], dtype=torch.long)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(data.x), generator=generator)
        rows, order = order[: data.batch], order[data.batch :]
        optim.zero_grad()
        penalty = sum(p.square().sum() / variance for p, variance in tensors) / (2 * len(data.x))
        (cross_entropy(net(data.x[rows]), data.y[rows]) + penalty).backward()
        optim.step()
        schedule.step()
    return net


def logs(net, x):
    """Log probabilities of the classes."""
    with torch.no_grad():
        return torch.cat([net(part).log_softmax(-1) for part in x.split(500)])


def of_networks(networks):
    """What predicts by an ensemble."""
    return lambda x: torch.stack([logs(net.eval(), x) for net in networks])


def single(data, seed):
    """A MAP network."""
    return of_networks([trained(data, seed)]), {}


def ensemble(data, seed):
    """Three of them."""
    return of_networks([trained(data, 100 * seed + member + 1) for member in range(MEMBERS)]), {}


def brief_ensemble(data, seed):
    """Three that take as long as one."""
    epochs = data.epochs / MEMBERS
    return of_networks([trained(data, 100 * seed + member + 1, epochs=epochs) for member in range(MEMBERS)]), {}


def dropout(data, seed):
    """MC dropout."""
    net = trained(data, seed, DROPOUT).train()
    return lambda x: torch.stack([logs(net, x) for _ in range(DRAWS)]), {}


def laplace(data, seed):
    """Last-layer Laplace on a MAP network, its prior by marginal likelihood."""
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    net = trained(data, seed).eval()
    found = Laplace(net, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    found.fit(DataLoader(TensorDataset(data.x, data.y), batch_size=500))
    found.optimize_prior_precision(method="marglik")
    return lambda x: torch.cat([found(part, link_approx="probit").log()[None] for part in x.split(500)], 1), {}


def methods():
    """Contenders by name."""

    def mean(**options):
        return lambda data, seed: mean_field(data, seed, **options)

    heavy, constant = sps.Heavy(), sps.Constant(0.1, learn=True)
    last = {"mnist": ("11",), "cifar10": ("head",)}  # names of the last layer
    block = {"mnist": ("7", "9", "11"), "cifar10": ("blocks.8", "head")}
    return {
        "MAP": single,
        "none": mean(),
        "none, IVON": mean(optimizer="ivon"),
        "heavy zeros": mean(scheme=heavy),
        "as heavy at random, zeros": mean(scheme=sps.Random(like=heavy)),
        "heavy zeros, IVON": mean(scheme=heavy, optimizer="ivon"),
        "ensemble of three": ensemble,
        "last layer": lambda data, seed: mean_field(data, seed, without=all_but(last[data.case])),
        "last-layer Laplace": laplace,
        "rigid zeros": mean(scheme=sps.Rigid()),
        "heavy ±c": mean(scheme=heavy, values=constant),
        "as heavy at random, ±c": mean(scheme=sps.Random(like=heavy), values=constant),
        "light zeros": mean(scheme=sps.Light()),
        "W-asymmetric": mean(scheme=asymmetric, values=sps.RandomConstant(0.5)),
        "last block": lambda data, seed: mean_field(data, seed, without=all_but(block[data.case])),
        "norms deterministic": mean(without={nn.GroupNorm: sps.Point()}),
        "MC dropout": dropout,
        "ensemble of three, equal seconds": brief_ensemble,
    }


# --- running and showing -------------------------------------------------------------------------------


def scores(logs_test, logs_other, y):
    """Accuracy, NLL, calibration error and AUROC of a mixture's draws."""
    from sklearn.metrics import roc_auc_score

    test, other = (part.cpu().double().logsumexp(0) - math.log(len(part)) for part in (logs_test, logs_other))
    probabilities = test.exp().numpy()
    entropy = torch.cat([-(part.exp() * part.clamp(min=-100)).sum(-1) for part in (test, other)])
    label = torch.cat([torch.zeros(len(test)), torch.ones(len(other))])
    return {
        "accuracy": float((probabilities.argmax(1) == y.numpy()).mean()),
        "nll": -test.gather(1, y[:, None]).mean().item(),
        "calibration": calibration(probabilities, y.numpy(), bins=15),
        "auroc": float(roc_auc_score(label.numpy(), entropy.numpy())),
    }


def run(options):
    """What is asked for and not there yet."""
    torch.set_num_threads(options.threads)
    done = {(row["case"], row["epochs"], row["seed"], row["method"]) for row in stored(RESULTS)}
    every = methods()
    for case in options.cases:
        data = load(options.folder, case, int(options.epochs), options.device)
        for seed, name in itertools.product(options.seeds, options.methods or every):
            if (case, data.epochs, seed, name) in done or (name == "norms deterministic" and case == "mnist"):
                continue
            begun = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                predict, facts = every[name](data, seed)
                seconds = time.process_time() - begun
                found = scores(predict(data.x_test), predict(data.other), data.y_test.cpu())
            if options.device != "cpu":
                seconds = None
            row = {"case": case, "seed": seed, "method": name, "epochs": data.epochs, "seconds": seconds}
            keep(RESULTS, row | found | facts)
            print(f"{case} {seed} {name}: {found}", flush=True)


def cells(every):
    """Of a method's rows."""
    share = f"{100 * every[0]['fixed'] / every[0]['weights']:.0f} %" if "fixed" in every[0] else ""
    return [share, *(over_seeds([row[name] for row in every]) for name in ("accuracy", "nll", "calibration", "auroc"))]


def show():
    """The page: means over seeds, with half their range where there are several."""
    columns = ["fixed", "accuracy", "NLL", "calibration error", "AUROC"]

    def table(own):
        return own[0]["case"], columns, cells

    rows = [row | {"case": f"{row['case']}, {row['epochs']} epochs"} for row in stored(RESULTS)]
    write_cases(PAGE, "Images", __doc__, rows, methods(), table)


if __name__ == "__main__":
    options = {"folder": None, "cases": list(EPOCHS), "seeds": [0], "epochs": 0, "device": "cpu"}
    run_or_show(__doc__, run, show, required=["folder"], **options)
