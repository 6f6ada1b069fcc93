"""Ordinary networks, tried as a new user would: read, fitted, used for prediction, certified; or why not.

    python benchmarks/ordinary.py [--threads 1] [--out FOLDER]

The 21 networks of which an early version refused 18, and others of tutorials. Each is made into a `BNN` with the heavy
scheme, fitted for a few steps to random data and asked for predictions. The table is part of docs/atlas.md.
"""

import warnings

from common import arguments, report


def networks():
    """Names, and what makes each network, its inputs for so many rows, and its targets."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm, weight_norm

    class Net(nn.Module):
        def __init__(self, forward, **layers):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)
            self.function = forward

        def forward(self, *inputs):
            return self.function(self, *inputs)

    def chain(*layers):
        return lambda: nn.Sequential(*layers)

    def mlp(*between):
        return chain(nn.Linear(4, 8), *between, nn.Linear(8, 1))

    def features(rows):
        return torch.randn(rows, 4)

    def image(rows):
        return torch.randn(rows, 2, 8, 8)

    def series(rows):
        return torch.randn(rows, 6, 3)

    def tokens(rows):
        return torch.randint(0, 7, (rows, 6))

    def signal(rows):
        return torch.randn(rows, 2, 12)

    def both(rows):
        return features(rows), torch.randn(rows, 3)

    def words_and_numbers(rows):
        return features(rows), tokens(rows)

    def residual(net, x):
        h = net.a(x).relu()
        return net.out(h + net.b(h).relu())

    def tcn(net, x):
        for conv, dilation in ((net.a, 1), (net.b, 2)):
            x = F.relu(conv(F.pad(x, (2 * dilation, 0))))
        return net.out(x[..., -1])

    def wavenet(net, x):
        h = net.start(x)
        gates = net.dilated(F.pad(h, (2, 0)))
        filtered, gate = gates.chunk(2, 1)
        h = h + net.mix(filtered.tanh() * gate.sigmoid())
        return net.out(h.mean(2))

    def siren(net, x):
        return net.out(torch.sin(30 * net.b(torch.sin(30 * net.a(x)))))

    def unet(net, x):
        a = net.a(x).relu()
        b = net.b(F.max_pool2d(a, 2)).relu()
        return net.out(torch.cat([a, F.interpolate(b, scale_factor=2)], 1)).mean((2, 3))

    def seq2seq(net, x):
        _, state = net.encoder(x)
        return net.out(net.decoder(x[:, -2:], state)[0].flatten(1))

    def mixer(net, x):
        h = net.patches(x).flatten(2).transpose(1, 2)
        h = h + net.mix_patches(net.n(h).transpose(1, 2)).transpose(1, 2)
        return net.out((h + net.mix_channels(net.n(h))).mean(1))

    def attention(net, x):
        h = net.embed(x)
        return net.out(net.attend(h, h, h, need_weights=False)[0].mean(1))

    def packed(net, x):
        return net.out(net.lstm(nn.utils.rnn.pack_padded_sequence(x, [6] * len(x), batch_first=True))[1][0][-1])

    def branching(net, x):
        return net.out(net.a(x).relu() if x.sum() > 0 else net.a(x).tanh())

    def graph(net, x):
        """Steps of a series as nodes that send to the next and to the one after it."""
        nodes = net.node(x).relu()
        count = x.shape[1]
        sources = torch.cat([torch.arange(count - 1), torch.arange(count - 2)])
        targets = torch.cat([torch.arange(1, count), torch.arange(2, count)])
        received = torch.zeros_like(nodes).index_add(1, targets, net.message(nodes)[:, sources])
        return net.out((nodes + received).relu().mean(1))

    return {
        "MLP": (mlp(nn.ReLU()), features),
        "residual MLP": (lambda: Net(residual, a=nn.Linear(4, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 1)), features),
        "Hardtanh": (mlp(nn.Hardtanh()), features),
        "dropout": (mlp(nn.ReLU(), nn.Dropout(0.2)), features),
        "LayerNorm": (mlp(nn.LayerNorm(8), nn.ReLU()), features),
        "BatchNorm": (mlp(nn.BatchNorm1d(8), nn.ReLU()), features),
        "convolution": (
            chain(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)),
            image,
        ),
        "pooling": (
            chain(
                nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
            ),
            image,
        ),
        "PReLU": (mlp(nn.PReLU()), features),
        "GLU": (chain(nn.Linear(4, 16), nn.GLU(), nn.Linear(8, 1)), features),
        "softmax": (mlp(nn.Softmax(-1)), features),
        "concatenation": (
            lambda: Net(lambda n, x: n.out(torch.cat([n.a(x).relu(), x], 1)), a=nn.Linear(4, 8), out=nn.Linear(12, 1)),
            features,
        ),
        "embeddings": (
            lambda: Net(lambda n, x: n.out(n.e(x).mean(1).relu()), e=nn.Embedding(7, 8), out=nn.Linear(8, 1)),
            tokens,
        ),
        "two inputs": (
            lambda: Net(
                lambda n, x, z: n.out((n.a(x) + n.b(z)).tanh()),
                a=nn.Linear(4, 8),
                b=nn.Linear(3, 8),
                out=nn.Linear(8, 1),
            ),
            both,
        ),
        "numbers and words": (
            lambda: Net(
                lambda n, x, w: n.out(torch.cat([n.a(x).tanh(), n.e(w).mean(1)], 1)),
                a=nn.Linear(4, 8),
                e=nn.Embedding(7, 4),
                out=nn.Linear(12, 1),
            ),
            words_and_numbers,
        ),
        "LSTM": (
            lambda: Net(
                lambda n, x: n.out(n.lstm(x)[0][:, -1]), lstm=nn.LSTM(3, 8, batch_first=True), out=nn.Linear(8, 1)
            ),
            series,
        ),
        "attention": (
            lambda: Net(
                attention,
                embed=nn.Linear(3, 8),
                attend=nn.MultiheadAttention(8, 2, batch_first=True),
                out=nn.Linear(8, 1),
            ),
            series,
        ),
        "Flatten(0)": (mlp(nn.ReLU(), nn.Linear(8, 8), nn.Flatten(0), nn.Unflatten(0, (-1, 8))), features),
        "Unflatten": (
            chain(
                nn.Linear(4, 8), nn.ReLU(), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 1)
            ),
            features,
        ),
        "weight norm": (
            lambda: nn.Sequential(weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 1)),
            features,
        ),
        "spectral norm": (
            lambda: nn.Sequential(spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 1)),
            features,
        ),
        "branches on values": (lambda: Net(branching, a=nn.Linear(4, 8), out=nn.Linear(8, 1)), features),
        "packed sequences": (
            lambda: Net(packed, lstm=nn.LSTM(3, 8, batch_first=True), out=nn.Linear(8, 1)),
            series,
        ),
        "several outputs": (
            lambda: Net(lambda n, x: (n.a(x), n.b(x)), a=nn.Linear(4, 1), b=nn.Linear(4, 1)),
            features,
        ),
        "MLP-Mixer": (
            lambda: Net(
                mixer,
                patches=nn.Conv2d(2, 8, 4, 4),
                n=nn.LayerNorm(8),
                mix_patches=nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
                mix_channels=nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
                out=nn.Linear(8, 1),
            ),
            image,
        ),
        "TCN": (
            lambda: Net(tcn, a=nn.Conv1d(2, 6, 3), b=nn.Conv1d(6, 6, 3, dilation=2), out=nn.Linear(6, 1)),
            signal,
        ),
        "TCN, weight norm": (
            lambda: Net(
                tcn,
                a=weight_norm(nn.Conv1d(2, 6, 3)),
                b=weight_norm(nn.Conv1d(6, 6, 3, dilation=2)),
                out=nn.Linear(6, 1),
            ),
            signal,
        ),
        "WaveNet": (
            lambda: Net(
                wavenet,
                start=nn.Conv1d(2, 4, 1),
                dilated=nn.Conv1d(4, 8, 2, dilation=2),
                mix=nn.Conv1d(4, 4, 1),
                out=nn.Linear(4, 1),
            ),
            signal,
        ),
        "radial basis functions": (
            lambda: Net(
                lambda n, x: n.out((-torch.cdist(x, n.centres.weight).square()).exp()),
                centres=nn.Linear(4, 8, bias=False),
                out=nn.Linear(8, 1),
            ),
            features,
        ),
        "bilinear": (
            lambda: Net(
                lambda n, x: n.out(n.b(n.a(x).tanh(), x).relu()),
                a=nn.Linear(4, 8),
                b=nn.Bilinear(8, 4, 6),
                out=nn.Linear(6, 1),
            ),
            features,
        ),
        "graph": (lambda: Net(graph, node=nn.Linear(3, 8), message=nn.Linear(8, 8), out=nn.Linear(8, 1)), series),
        "SIREN": (lambda: Net(siren, a=nn.Linear(4, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 1)), features),
        "U-Net": (
            lambda: Net(
                unet,
                a=nn.Conv2d(2, 4, 3, padding=1),
                b=nn.Conv2d(4, 6, 3, padding=1),
                out=nn.Conv2d(10, 1, 1),
            ),
            image,
        ),
        "seq2seq": (
            lambda: Net(
                seq2seq,
                encoder=nn.GRU(3, 6, batch_first=True),
                decoder=nn.GRU(3, 6, batch_first=True),
                out=nn.Linear(12, 1),
            ),
            series,
        ),
    }


def tried(make, data):
    """What a network is like, or why it is not taken."""
    import torch

    import pyro_sps as sps

    torch.manual_seed(0)
    net, x = make(), data(16)
    y = torch.randn(16, 1)
    example = tuple(part[:2] for part in x) if isinstance(x, tuple) else x[:2]
    try:
        bnn = sps.BNN(net, sps.Heavy(), sps.Zero(), example=example)
        fit = sps.fit(bnn, x, y, num_steps=5, progress=False)
        assert fit.predict(x, 20).mean.shape == (16, 1)
    except Exception as error:
        return {"works": False, "why": str(error).split(". Supported")[0][:240]}
    symmetry = bnn.symmetry(time_limit=20)
    signed = symmetry.signed_permutations
    return {
        "works": bool(bnn.topology.verify(net, example=example).ok),
        "before": symmetry.permutations.text(after=False),
        "left": symmetry.permutations.text(after=True),
        "signs": "" if signed is None else signed.text(after=True),
        "fixed": f"{bnn.num_fixed} of {bnn.topology.num_weights}",
    }


def main():
    """Try all networks."""
    options = arguments(__doc__, {"--only": ""})
    warnings.simplefilter("ignore")
    results = {}
    head = "| network | fixed by heavy | permutations | left | left with signs |"
    lines = [head, "| --- | --- | --- | --- | --- |"]
    for name, (make, data) in networks().items():
        if options.only and options.only != name:
            continue
        found = results[name] = tried(make, data)
        if found["works"]:
            lines.append(f"| {name} | {found['fixed']} | {found['before']} | {found['left']} | {found['signs']} |")
        else:
            lines.append(f"| {name} | *not taken*: {found.get('why', 'not verified')} | | | |")
        print(lines[-1], flush=True)
    report("ordinary", options, results, lines)


if __name__ == "__main__":
    main()
