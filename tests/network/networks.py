# ruff: noqa: E501
"""Small networks of every family: whoever writes a rule for an operation adds one that has it, and inherits all tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def in_place(net, x):
    """`torch.fx` reads `other *= ...` as another value, and so another network."""
    h = net.a(x)
    other = h
    other *= 2
    return net.out(h.tanh())


class Net(nn.Module):
    """A network whose forward is a function of itself and its inputs."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                self.add_module(name, layer)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


def conv(*args, **options):
    return nn.Conv2d(*args, **options)


def residual(norm):
    def forward(net, x):
        x = F.relu(net.n0(net.stem(x)))
        x = x + F.relu(net.n1(net.c1(x)))
        return net.out(net.c2(x).mean((2, 3)))

    return Net(
        forward,
        stem=conv(2, 4, 3, padding=1),
        n0=nn.BatchNorm2d(4),
        c1=conv(4, 4, 3, padding=1, bias=False),
        n1=norm(4),
        c2=conv(4, 3, 1),
        out=nn.Linear(3, 2),
    )


def unet(net, x):
    a = F.relu(net.a(x))
    b = F.relu(net.b(F.max_pool2d(a, 2)))
    up = F.interpolate(b, scale_factor=2, mode="nearest")
    return net.out(F.adaptive_avg_pool2d(torch.tanh(net.c(torch.cat([up, a], 1))), 1).flatten(1))


def last_step(net, x):
    return net.out(net.cell(x)[0][:, -1])


def recurrent(kind, features=4, **options):
    return Net(last_step, cell=kind(3, 4, batch_first=True, **options), out=nn.Linear(features, 2))


def cells(kind):
    def forward(net, x):
        state = None
        for step in x.unbind(1):
            state = net.cell(step, state)
        return net.out(state[0] if isinstance(state, tuple) else state)

    return Net(forward, cell=kind(3, 4), out=nn.Linear(4, 2))


def lstm_by_hand(net, x):
    h = c = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        i, f, g, o = (net.input(step) + net.hidden(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return net.out(h)


def attention_by_hand(net, x):
    x = net.embed(x)
    rows, length, width = x.shape
    q, k, v = net.qkv(x).view(rows, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    x = x + net.proj((weights @ v).transpose(1, 2).reshape(rows, length, width))
    return net.out(net.norm(x).mean(1))


def causal(net, ids):
    x = net.tokens(ids) + net.positions(torch.arange(ids.shape[1]))
    rows, length, width = x.shape
    q, k, v = (t.view(rows, length, 2, -1).transpose(1, 2) for t in net.qkv(net.norm(x)).split(width, 2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + net.proj(y.transpose(1, 2).reshape(rows, length, width))
    x = x + net.down(F.gelu(net.up(net.norm2(x))))
    return F.linear(x, net.tokens.weight)[:, -1]


def grouped_queries(net, x):
    """Four heads of two units, of which two share keys and values; a table says how far apart positions are."""
    rows, length, _ = x.shape
    q, k, v = (layer(x).view(rows, length, -1, 2).transpose(1, 2) for layer in (net.q, net.k, net.v))
    k, v = (t[:, :, None].expand(rows, 2, 2, length, 2).reshape(rows, 4, length, 2) for t in (k, v))
    near = F.interpolate(net.table[:4].T.reshape(1, 4, 2, 2), (2, 2), mode="bilinear").flatten(2)[0].T
    far = torch.cat([near, net.table[4:]])[torch.arange(length)[:, None] + torch.arange(length)]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=far.permute(2, 0, 1))
    return net.out(y.transpose(1, 2).reshape(rows, length, 8).mean(1))


def heads_of_one_tensor(net, x):
    """Attention whose weights have an axis of heads."""
    q, k, v = (torch.einsum("nli,hie->nhle", x, weight) for weight in (net.q, net.k, net.v))
    weights = torch.einsum("nhqe,nhke->nhqk", q + net.shift[:, None], k).softmax(-1)
    z = torch.einsum("nhqk,nhke->nhqe", weights, v)
    return net.out(torch.einsum("nhqe,hed->nqd", z, net.o).tanh().mean(1))


def side_by_side(net, x):
    """Networks of one hidden layer in the same tensors, whose probabilities are averaged."""
    h = (x @ net.first + net.bias).tanh()
    return net.out((h @ net.second).softmax(-1).mean(0))


def stacked_layers(net, x):
    """Layers whose weights are slices of one tensor."""
    x = net.a(x).relu()
    for weight, bias in zip(net.weights, net.biases, strict=True):
        x = (x @ weight + bias).relu()
    return net.out(x)


def rows_of_scales(net, x):
    """Scales and shifts of two layers, each pair the rows of one tensor."""
    x = net.a(x)
    for layer in range(2):
        x = F.gelu(x * net.scale[layer] + net.shift[layer])
    return net.out(x)


def feature_tokens(net, x):
    """A transformer of a table (Gorishniy et al. 2021): each column is a token, and there is one more."""
    tokens = x[..., None] * net.weight + net.bias
    return net.out(net.block(torch.cat([net.token.expand(len(x), 1, -1), tokens], 1))[:, 0])


def periodic_embeddings(net, x):
    """Each column by itself becomes sines, and these a few units of its own (Gorishniy et al. 2022)."""
    waves = 2 * torch.pi * net.frequency * x[..., None]
    waves = torch.cat([waves.cos(), waves.sin()], -1)
    return net.out(((waves[..., None, :] @ net.weight).squeeze(-2) + net.bias).relu().flatten(1))


def padded_window(net, x):
    """Two heads with a table of how far apart positions are, of which two are padding and look alike."""
    rows = len(x)
    q, k, v = (t.view(rows, 5, 2, 2).transpose(1, 2) for t in net.qkv(F.pad(x, (0, 0, 0, 2))).chunk(3, 2))
    far = net.table[torch.arange(5)[:, None] - torch.arange(5) + 4].permute(2, 0, 1)
    y = (q @ k.transpose(-2, -1) + far).softmax(-1) @ v
    return net.out(y.transpose(1, 2).reshape(rows, 5, 4)[:, :3].mean(1))


def states(net, x):
    """A sum over what there was before, and a state of zeros at the beginning."""
    h = net.a(x).tanh()
    before = torch.cat([torch.zeros_like(h[:, :1]), h], 1)
    return net.out(torch.einsum("nzu,nz->nu", before, net.decay(x.flatten(1)).exp()))


def by_a_view(net, x):
    kernel = net.c.weight.squeeze(1)
    return net.out(F.conv1d(net.a(x).relu(), kernel.unsqueeze(1), net.c.bias, groups=4).tanh().mean(2))


def vision_transformer(net, x):
    x = net.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([net.token.expand(len(x), -1, -1), x], 1) + net.positions
    return net.out(net.block(x)[:, 0])


def mixer(net, x):
    x = net.patches(x).flatten(2).transpose(1, 2)
    x = x + net.b(F.gelu(net.a(net.n(x).transpose(1, 2)))).transpose(1, 2)
    return net.out((x + net.d(F.gelu(net.c(net.m(x))))).mean(1))


def gated(net, x):
    h = net.first(x)
    return net.out(net.down(F.silu(net.gate(h)) * net.up(h)) + h)


def squeeze_excite(net, x):
    x = F.relu(net.c(x))
    return net.out((x * net.e(F.relu(net.s(x.mean((2, 3))))).sigmoid()[:, :, None, None]).flatten(1))


def concatenated(net, x):
    h = net.a(x).tanh()
    return net.out(torch.cat([h, net.b(h).relu(), x], 1))


def wavenet(net, x):
    x = net.start(x)
    a, b = net.dilated(F.pad(x, (2, 0))).chunk(2, 1)
    return net.out((x + net.mix(a.tanh() * b.sigmoid())).mean(2))


def normed(*layers):
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2))


def sequence_to_sequence(net, x):
    _, state = net.encoder(x)
    return net.out(net.decoder(x.flip(1), state)[0][:, -1])


ROWS = 2


def neighbours(net, x):
    """A step of message passing on a directed ring: each node gets a sum of what comes along its edges."""
    h = net.node(x)
    sent = net.message(h).tanh()[:, [0, 1, 2, 2]]
    received = torch.zeros_like(h).index_add(1, torch.tensor([1, 2, 0, 1]), sent)
    return net.out((h + received).relu().mean(1))


def experts(net, x):
    """A mixture whose gates are those of the two experts that are largest."""
    values, which = net.gate(x).topk(2)
    weights = torch.zeros(len(x), 3, dtype=x.dtype).scatter(1, which, values.softmax(1))
    each = torch.einsum("neu,euo->neo", net.first(x).tanh().unflatten(1, (3, 4)), net.second)
    return net.out((weights.unsqueeze(-1) * each).sum(1))


class Doubled(torch.autograd.Function):
    """Written as before torch.func, so that it cannot be mapped over sets of weights."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def by_the_largest(net, x):
    h = net.a(x)
    told = h * (h.argmax(1, keepdim=True) == torch.arange(4)) + h.max(1, keepdim=True).indices
    return net.out(net.b(told).tanh())


# Of the units of a layer the first two are in the first sum, the third is in the second, and in the third there is none.
SOME = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def blocks_that_become_slots(net, x):
    h = net.a(x)
    F.glu(net.c(h.transpose(1, 2)), 1)  # which ties its two groups, though nothing comes of it
    return net.out(torch.cat([x, h], 2).mean(1))


NETWORKS = {
    "conv, flatten": (lambda: nn.Sequential(conv(2, 3, 3), nn.ReLU(), conv(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (2, 5, 5)),
    "conv, pools": (lambda: nn.Sequential(conv(2, 3, 3, stride=2, padding="valid"), nn.Tanh(), nn.AvgPool2d(2), conv(3, 4, 1), nn.MaxPool2d(2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)), (2, 12, 12)),
    "conv, one channel": (lambda: nn.Sequential(conv(1, 1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)), (1, 5, 5)),
    "circular": (lambda: nn.Sequential(conv(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), conv(3, 4, 3, padding=1, padding_mode="reflect", dilation=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), (2, 4, 4)),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv1d(3, 4, 2), nn.ZeroPad1d(1), nn.Flatten(), nn.Linear(36, 2)), (2, 4)),
    "conv 3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.SiLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3, 2)), (1, 3, 3, 3)),
    "transposed": (lambda: nn.Sequential(conv(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(96, 2)), (2, 4, 4)),
    "grouped": (lambda: nn.Sequential(conv(2, 4, 1), nn.ReLU(), conv(4, 4, 2, groups=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), (2, 3, 3)),
    "grouped twice": (lambda: nn.Sequential(conv(2, 4, 1), nn.ReLU(), conv(4, 4, 1, groups=2), nn.ReLU(), nn.ChannelShuffle(2), conv(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2)), (2, 2, 2)),
    "depthwise": (lambda: nn.Sequential(conv(2, 4, 1), nn.ReLU6(), conv(4, 4, 3, groups=4, padding=1), nn.Tanh(), conv(4, 3, 1), nn.Flatten(), nn.Linear(12, 2)), (2, 2, 2)),
    "depthwise, twice as many": (lambda: nn.Sequential(conv(2, 3, 1), nn.Tanh(), conv(3, 6, 1, groups=3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)), (2, 2, 2)),
    "depthwise on the input": (lambda: nn.Sequential(conv(2, 4, 1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (2, 2, 2)),
    "residual, group norm": (lambda: residual(lambda c: nn.GroupNorm(2, c)), (2, 3, 3)),
    "residual, batch norm": (lambda: residual(nn.BatchNorm2d), (2, 3, 3)),
    "residual, instance norm": (lambda: residual(lambda c: nn.InstanceNorm2d(c, affine=True)), (2, 3, 3)),
    "residual, no affine": (lambda: residual(lambda c: nn.GroupNorm(4, c, affine=False)), (2, 3, 3)),
    "u-net": (lambda: Net(unet, a=conv(1, 3, 3, padding=1), b=conv(3, 4, 3, padding=1), c=conv(7, 3, 1), out=nn.Linear(3, 2)), (1, 4, 4)),
    "squeeze and excite": (lambda: Net(squeeze_excite, c=conv(2, 4, 1), s=nn.Linear(4, 2), e=nn.Linear(2, 4), out=nn.Linear(16, 2)), (2, 2, 2)),
    "wavenet": (lambda: Net(wavenet, start=nn.Conv1d(1, 3, 1), dilated=nn.Conv1d(3, 6, 2, dilation=2), mix=nn.Conv1d(3, 3, 1), out=nn.Linear(3, 2)), (1, 5)),
    "concatenation": (lambda: Net(concatenated, a=nn.Linear(3, 4), b=nn.Linear(4, 3), out=nn.Linear(10, 2)), (3,)),
    "stack": (lambda: Net(lambda n, x: n.out(torch.stack([n.a(x), n.b(x)], 1).tanh().amax(1)), a=nn.Linear(3, 4), b=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "layer norm": (lambda: normed(nn.LayerNorm(4), nn.Tanh()), (3,)),
    "rms norm": (lambda: normed(nn.RMSNorm(4), nn.ReLU()), (3,)),
    "batch norm": (lambda: normed(nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)), (3,)),
    "batch norm of the input": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "depthwise, also of the input": (lambda: Net(lambda n, x: n.out(n.c(torch.cat([x, n.a(x).tanh()], 1)).flatten(1)), a=nn.Conv1d(2, 3, 1), c=nn.Conv1d(5, 5, 3, groups=5), out=nn.Linear(15, 2)), (2, 5)),
    "one scale of the input": (lambda: Net(lambda n, x: n.out(n.a(x * n.scale).tanh()), a=nn.Linear(3, 4), scale=nn.Parameter(torch.ones(1)), out=nn.Linear(4, 2)), (3,)),
    "thrown away": (lambda: Net(lambda n, x: (n.out(n.a(x).tanh()), n.b(n.a(x).softmax(1)), n.c.sort().values.cumsum(0))[0], a=nn.Linear(3, 4), b=nn.Linear(4, 3), c=nn.Parameter(torch.ones(3)), out=nn.Linear(4, 2)), (3,)),
    "thrown away, of convolutions": (lambda: Net(lambda n, x: (n.out(n.a(x).tanh().flatten(1)), n.b(n.a(x).softmax(1)).flip(1))[0], a=conv(2, 3, 1), b=conv(3, 2, 1), out=nn.Linear(12, 2)), (2, 2, 2)),
    "in place, by another name": (lambda: Net(in_place, a=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "batch norm, no affine": (lambda: normed(nn.BatchNorm1d(4, affine=False), nn.Tanh()), (3,)),
    "softmax": (lambda: normed(nn.Softmax(-1)), (3,)),
    "prelu": (lambda: normed(nn.PReLU(4)), (3,)),
    "prelu, one": (lambda: normed(nn.PReLU(), nn.Hardshrink()), (3,)),
    "glu": (lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)), (3,)),
    "swiglu": (lambda: Net(gated, first=nn.Linear(3, 4), gate=nn.Linear(4, 3), up=nn.Linear(4, 3), down=nn.Linear(3, 4, bias=False), out=nn.Linear(4, 2)), (3,)),
    "product of two": (lambda: Net(lambda n, x: n.out(n.a(x) * n.b(x) / (1 + n.a(x).abs())), a=nn.Linear(3, 4), b=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "even": (lambda: Net(lambda n, x: n.out(n.a(x).square() + n.b(x).cos()), a=nn.Linear(3, 4), b=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "scale and shift": (lambda: Net(lambda n, x: n.out((n.a(x).tanh() * n.scale + n.shift).tanh()), a=nn.Linear(3, 4), scale=nn.Parameter(torch.ones(4)), shift=nn.Parameter(torch.zeros(4)), out=nn.Linear(4, 2)), (3,)),
    "one scale": (lambda: Net(lambda n, x: n.out(n.a(x).tanh() * n.scale), a=nn.Linear(3, 4), scale=nn.Parameter(torch.ones(1)), out=nn.Linear(4, 2)), (3,)),
    "residual gain": (lambda: Net(lambda n, x: n.out(n.a(x) + n.gain * n.b(n.a(x)).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 4), gain=nn.Parameter(torch.tensor(0.5)), out=nn.Linear(4, 2)), (3,)),
    "divided by one number": (lambda: Net(lambda n, x: n.out(n.a(x).tanh() / n.gain), a=nn.Linear(3, 4), gain=nn.Parameter(torch.tensor(0.5)), out=nn.Linear(4, 2)), (3,)),
    "weight norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "weight norm, convolutions": (lambda: nn.Sequential(weight_norm(conv(2, 3, 3, padding=1)), nn.Tanh(), weight_norm(conv(3, 4, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (2, 4, 4)),
    "weight norm, transposed": (lambda: nn.Sequential(conv(2, 3, 1), nn.Tanh(), weight_norm(nn.ConvTranspose2d(3, 4, 2, stride=2)), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)), (2, 2, 2)),
    "gated kernel": (lambda: Net(lambda n, x: n.out(F.conv1d(n.a(x).tanh(), n.k * n.g.sigmoid()[:, None, None], padding=1).tanh().amax(2)), a=nn.Conv1d(2, 3, 1), k=nn.Parameter(torch.randn(4, 3, 3)), g=nn.Parameter(torch.randn(4)), out=nn.Linear(4, 2)), (2, 5)),
    "bilinear": (lambda: Net(lambda n, x: n.out(n.c(n.a(x), n.b(x)).tanh()), a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Bilinear(4, 4, 3), out=nn.Linear(3, 2)), (3,)),
    "radial basis functions": (lambda: Net(lambda n, x: n.out((-torch.cdist(n.a(x).tanh(), n.centres) ** 2).exp()), a=nn.Linear(3, 4), centres=nn.Parameter(torch.randn(5, 4)), out=nn.Linear(5, 2)), (3,)),
    "affine embeddings": (lambda: Net(lambda n, x: n.out(torch.addcmul(n.bias, n.weight, x[..., None]).relu().flatten(1)), weight=nn.Parameter(torch.randn(3, 4)), bias=nn.Parameter(torch.randn(3, 4)), out=nn.Linear(12, 2)), (3,)),
    "in between": (lambda: Net(lambda n, x: n.out(torch.lerp(n.a(x).tanh(), n.b(x), n.gate(x).sigmoid())), a=nn.Linear(3, 4), b=nn.Linear(3, 4), gate=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "clamped between two": (lambda: Net(lambda n, x: n.out(torch.clamp(n.a(x), n.low, n.b(x))), a=nn.Linear(3, 4), b=nn.Linear(3, 4), low=nn.Parameter(torch.zeros(4)), out=nn.Linear(4, 2)), (3,)),
    "cosine": (lambda: Net(lambda n, x: n.out(torch.stack([F.cosine_similarity(n.a(x), n.b(x)), torch.hypot(n.a(x), n.b(x)).sum(1)], 1)), a=nn.Linear(3, 4), b=nn.Linear(3, 4), out=nn.Linear(2, 2)), (3,)),
    "in order": (lambda: Net(lambda n, x: n.out(torch.cat([n.a(x).sort(1).values, n.b(x).tanh().topk(2).values, n.b(x).median(1, keepdim=True).values, n.b(x).quantile(0.3, 1, keepdim=True)], 1)), a=nn.Linear(3, 4), b=nn.Linear(3, 3), out=nn.Linear(8, 2)), (3,)),
    # What was found by random networks: relabellings that are none were counted.
    "sums of some": (lambda: Net(lambda n, x: n.out((n.a(x).tanh()[..., None] * SOME).sum(1)), a=nn.Linear(3, 3), out=nn.Linear(3, 2)), (3,)),
    "flipped, and added up": (lambda: Net(lambda n, x: n.out(torch.stack([n.a(x), n.a(x).flip(1), n.a(x).flip(1)]).sum(0)), a=nn.Linear(3, 6), out=nn.Linear(6, 2)), (3,)),
    "two in groups of the input": (lambda: Net(lambda n, x: n.out((n.a(x).tanh() * n.b(x).tanh()).flatten(1)), a=nn.Conv1d(4, 4, 3, padding=1, groups=2), b=nn.Conv1d(4, 4, 3, padding=1, groups=2), out=nn.Linear(12, 2)), (4, 3)),
    "slots that are not named": (lambda: Net(lambda n, x: (n.a(x) + (x + n.s)).tanh().mean(1, keepdim=True) + n.out(((n.a(x).unsqueeze(1) - n.c) ** 2).sum(-1)), a=nn.Linear(3, 3), s=nn.Parameter(torch.ones(1)), c=nn.Parameter(torch.randn(4, 3)), out=nn.Linear(4, 2)), (3,)),
    "blocks that become slots": (lambda: Net(blocks_that_become_slots, a=nn.Linear(4, 6), c=nn.Conv1d(6, 2, 3, padding=1, groups=2), out=nn.Linear(10, 2)), (3, 4)),
    "with itself, rolled": (lambda: Net(lambda n, x: n.out(n.b(n.a(x) * n.a(x).roll(1, 1)).tanh()), a=nn.Linear(3, 6), b=nn.Linear(6, 3), out=nn.Linear(3, 2)), (3,)),
    "picked": (lambda: Net(lambda n, x: n.out(n.a(x).tanh().gather(1, torch.tensor([[0, 2]]).expand(len(x), 2))), a=nn.Linear(3, 4), out=nn.Linear(2, 2)), (3,)),
    "two of three experts": (lambda: Net(experts, gate=nn.Linear(3, 3), first=nn.Linear(3, 12), second=nn.Parameter(torch.randn(3, 4, 2)), out=nn.Linear(2, 2)), (3,)),
    "the largest": (lambda: Net(by_the_largest, a=nn.Linear(3, 4), b=nn.Linear(4, 3), out=nn.Linear(3, 2)), (3,)),
    "function of one's own": (lambda: Net(lambda n, x: n.out(Doubled.apply(n.a(x).tanh()).amax(2)), a=nn.Conv1d(2, 4, 1), out=nn.Linear(4, 2)), (2, 3)),
    "neighbours": (lambda: Net(neighbours, node=nn.Linear(2, 4), message=nn.Linear(4, 4), out=nn.Linear(4, 2)), (3, 2)),
    "rnn": (lambda: recurrent(nn.RNN), (3, 3)),
    "rnn, relu": (lambda: recurrent(nn.RNN, nonlinearity="relu", num_layers=2), (3, 3)),
    "lstm": (lambda: recurrent(nn.LSTM), (3, 3)),
    "lstm, two layers both ways": (lambda: recurrent(nn.LSTM, 8, num_layers=2, bidirectional=True), (3, 3)),
    "lstm, projected": (lambda: recurrent(nn.LSTM, 2, proj_size=2), (3, 3)),
    "gru": (lambda: recurrent(nn.GRU), (3, 3)),
    "rnn cell": (lambda: cells(nn.RNNCell), (3, 3)),
    "lstm cell": (lambda: cells(nn.LSTMCell), (3, 3)),
    "gru cell": (lambda: cells(nn.GRUCell), (3, 3)),
    "lstm by hand": (lambda: Net(lstm_by_hand, input=nn.Linear(3, 16), hidden=nn.Linear(4, 16, bias=False), out=nn.Linear(4, 2)), (3, 3)),
    "seq2seq": (lambda: Net(sequence_to_sequence, encoder=nn.GRU(3, 4, batch_first=True), decoder=nn.GRU(3, 4, batch_first=True), out=nn.Linear(4, 2)), (3, 3)),
    "multihead attention": (lambda: Net(lambda n, x: n.out(n.att(x, x, x, need_weights=False)[0].mean(1)), att=nn.MultiheadAttention(4, 2, batch_first=True), out=nn.Linear(4, 2)), (3, 4)),
    "attention by hand": (lambda: Net(attention_by_hand, embed=nn.Linear(3, 4), qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4), norm=nn.LayerNorm(4), out=nn.Linear(4, 2)), (3, 3)),
    "encoder layer": (lambda: Net(lambda n, x: n.out(n.layer(n.embed(x)).mean(1)), embed=nn.Linear(3, 4), layer=nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, norm_first=True), out=nn.Linear(4, 2)), (3, 3)),
    "decoder layer": (lambda: Net(lambda n, x: n.out(n.layer(n.embed(x), n.memory(x)).mean(1)), embed=nn.Linear(3, 4), memory=nn.Linear(3, 4), layer=nn.TransformerDecoderLayer(4, 2, 5, batch_first=True), out=nn.Linear(4, 2)), (3, 3)),
    "grouped queries": (lambda: Net(grouped_queries, q=nn.Linear(3, 8), k=nn.Linear(3, 4), v=nn.Linear(3, 4), table=nn.Parameter(torch.randn(5, 4)), out=nn.Linear(8, 2)), (3, 3)),
    "padded window": (lambda: Net(padded_window, qkv=nn.Linear(3, 12, bias=False), table=nn.Parameter(torch.randn(9, 2)), out=nn.Linear(4, 2)), (3, 3)),
    "heads of one tensor": (lambda: Net(heads_of_one_tensor, q=numbers(2, 3, 2), k=numbers(2, 3, 2), shift=numbers(2, 2), v=numbers(2, 3, 2), o=numbers(2, 2, 4), out=nn.Linear(4, 2)), (3, 3)),
    "side by side": (lambda: Net(side_by_side, first=numbers(3, 3, 4), bias=numbers(3, 1, 4), second=numbers(3, 4, 2), out=nn.Linear(2, 2)), (3,)),
    "stacked layers": (lambda: Net(stacked_layers, a=nn.Linear(3, 4), weights=numbers(2, 4, 4), biases=numbers(2, 4), out=nn.Linear(4, 2)), (3,)),
    "feature tokens": (lambda: Net(feature_tokens, weight=numbers(3, 4), bias=numbers(3, 4), token=numbers(1, 4), block=nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), out=nn.Linear(4, 2)), (3,)),
    "periodic embeddings": (lambda: Net(periodic_embeddings, frequency=numbers(3, 4), weight=numbers(3, 8, 2), bias=numbers(3, 2), out=nn.Linear(6, 2)), (3,)),
    "states": (lambda: Net(states, a=nn.Linear(3, 4), decay=nn.Linear(9, 4), out=nn.Linear(4, 2)), (3, 3)),
    "kernel by a view": (lambda: Net(by_a_view, a=nn.Conv1d(2, 4, 1), c=nn.Conv1d(4, 4, 2, groups=4), out=nn.Linear(4, 2)), (2, 4)),
    "padded units": (lambda: Net(lambda n, x: n.out((F.pad(n.a(x), (0, 2)) + n.b(x)).tanh()), a=nn.Linear(3, 2), b=nn.Linear(3, 4), out=nn.Linear(4, 2)), (3,)),
    "a parameter in order": (lambda: Net(lambda n, x: n.out(n.a(x).tanh() * n.c.sort().values), a=nn.Linear(3, 4), c=nn.Parameter(torch.randn(4)), out=nn.Linear(4, 2)), (3,)),
    "small gpt": (lambda: Net(causal, tokens=nn.Embedding(5, 4), positions=nn.Embedding(3, 4), norm=nn.LayerNorm(4), qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4), norm2=nn.LayerNorm(4), up=nn.Linear(4, 5), down=nn.Linear(5, 4)), "ids"),
    "small vit": (lambda: Net(vision_transformer, patches=conv(1, 4, 2, stride=2), token=nn.Parameter(torch.zeros(1, 1, 4)), positions=nn.Parameter(torch.zeros(1, 5, 4)), block=nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), out=nn.Linear(4, 2)), (1, 4, 4)),
    "mixer": (lambda: Net(mixer, patches=conv(1, 4, 2, stride=2), n=nn.LayerNorm(4), a=nn.Linear(4, 3), b=nn.Linear(3, 4), m=nn.LayerNorm(4), c=nn.Linear(4, 5), d=nn.Linear(5, 4), out=nn.Linear(4, 2)), (1, 4, 4)),
    "embedding": (lambda: Net(lambda n, x: n.out(n.e(x).mean(1).relu()), e=nn.Embedding(5, 4), out=nn.Linear(4, 2)), "ids"),
    "embedding bag": (lambda: Net(lambda n, x: n.out(n.e(x)), e=nn.EmbeddingBag(5, 4), out=nn.Linear(4, 2)), "ids"),
    "two uses of one layer": (lambda: Net(lambda n, x: n.out(n.b(n.b(n.a(x)).tanh()).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 4), out=nn.Linear(4, 2)), (3,)),
}  # fmt: skip


def numbers(*shape):
    return nn.Parameter(torch.randn(shape))


def example(name, rows=ROWS, generator=None):
    """Random inputs of a network, in float64."""
    shape = NETWORKS[name][1]
    if shape == "ids":
        return torch.randint(0, 3, (rows, 3), generator=generator)
    return torch.randn(rows, *shape, dtype=torch.float64, generator=generator)


def build(name):
    """A network in float64 and evaluation mode."""
    return NETWORKS[name][0]().double().eval()
