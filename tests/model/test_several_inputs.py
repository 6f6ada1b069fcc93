"""Networks with several inputs: data, inference, prediction, files and errors."""

import pickle

import numpy as np
import pyro.infer
import pytest
import torch
from network.networks import Net
from torch import nn

import pyro_sps as sps
from pyro_sps.network.inputs import inputs_of, pack, unpack

ROWS = 24


class Two(nn.Module):
    """Numbers, and words with a mask that says which of them count."""

    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(5, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x, words, counts=None, scale=1.0):
        read = self.table(words)
        if counts is not None:
            read = read * counts[..., None]
        return self.last(torch.cat([torch.tanh(self.first(x * scale)), read.mean(1)], 1))


def data(rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 5 + 2 * torch.randn(rows, 3, generator=generator)
    words = torch.randint(0, 5, (rows, 6), generator=generator)
    counts = torch.rand(rows, 6, generator=generator) < 0.7
    y = torch.stack([x[:, 0], words.double().mean(1).float()], 1)
    return x, words, counts, y


def small(example, **options):
    return sps.BNN(Two(), sps.Heavy(), sps.Zero(), sps.Gaussian(0.3), example=example, **options)


def test_a_row_that_is_packed_is_unpacked_again():
    x, words, counts, _ = data()
    for example in ((x, words, counts), {"x": x, "words": words, "counts": counts}):
        inputs = inputs_of(example)
        packed = pack(inputs, [x, words, counts], torch.zeros((), dtype=torch.float64))
        again = unpack(inputs, packed)
        assert type(again) is type(example)
        parts = again if isinstance(example, tuple) else [again[name] for name in example]
        for part, own in zip(parts, (x, words, counts), strict=True):
            torch.testing.assert_close(part, own.double() if own.is_floating_point() else own)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_a_fit_of_several_inputs(form, tmp_path):
    x, words, counts, y = data()

    def formed(*parts):
        return parts if form == "tuple" else dict(zip(("x", "words", "counts"), parts, strict=True))

    bnn = small(formed(x[:2], words[:2], counts[:2]))
    assert bnn.topology.verify(Two(), example=formed(x[:2], words[:2], counts[:2])).ok
    assert bnn(formed(x, words, counts)).shape == (ROWS, 2)
    fit = sps.fit(bnn, formed(x, words, counts), y, num_steps=30, batch_size=8, progress=False)
    assert fit.standardizer.x_mean[:3] == pytest.approx(x.mean(0))
    assert not fit.standardizer.x_mean[3:].any()  # words and masks are left alone
    assert (fit.standardizer.x_scale[3:] == 1).all()
    # Arrays and lists count as tensors do.
    prediction = fit.predict(formed(x.numpy(), words.tolist(), counts.numpy()), 50)
    weights = bnn.assemble(fit.guide.draws(3, torch.Generator().manual_seed(0)))
    scaled = (x - x.mean(0)) / x.std(0, unbiased=False)
    together = bnn.function(weights, formed(scaled, words, counts))
    net = Two()
    for i in range(3):
        one = {name: value[i] for name, value in weights.items()}
        own = torch.func.functional_call(net, one, (scaled, words, counts))
        torch.testing.assert_close(together[i], own)
    fit.save(tmp_path)
    again = sps.load(tmp_path, Two()).predict(formed(x, words, counts), 50)
    assert (again.mean == prediction.mean).all()
    gradient = prediction.gradient()
    parts = gradient if form == "tuple" else list(gradient.values())
    assert parts[0].shape == (ROWS, 2, 3)
    assert parts[1] is None
    mean = fit.mean_network()
    out = mean(x, words, counts) if form == "tuple" else mean(x=x, words=words, counts=counts)
    assert out.shape == (ROWS, 2)
    assert (out - y).square().mean() < 4 * y.var()
    pickle.loads(pickle.dumps(fit.bnn.function))


def test_other_inference_takes_several_inputs():
    x, words, _, y = data()
    bnn = small((x, words))  # without what has a default
    samples = sps.sample(bnn, (x, words), y, chains=2, num_samples=4, warmup=10, map_steps=5, progress=False)
    assert samples.predict((x, words)).mean.shape == (ROWS, 2)
    assert set(sps.map_estimate(bnn, (x, words), y, num_steps=3, progress=False)) >= {"first.weight"}
    svi = pyro.infer.SVI(bnn, sps.AutoSPSNormal(bnn), pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert np.isfinite(svi.step((x, words), y))


def test_what_does_not_fit_is_refused():
    x, words, counts, y = data()
    bnn = small((x, words))

    def fails(given, match):
        with pytest.raises(ValueError, match=match):
            sps.fit(bnn, given, y, num_steps=1, progress=False)

    fails(x, "x must be a tuple of 2 inputs")
    fails((x, words, counts), "x must be a tuple of 2 inputs, as the network takes them, got 3")
    fails((x, words[:-1]), r"same number of rows, got \[24, 23\]")
    fails((x, words[:, :3]), r"x\[1\] must have rows of shape \(6,\)")
    fails((x, words + 0.5), r"x\[1\] must hold integer labels")
    fails((x, words + 9), "on which the network cannot be run: index out of range")
    fails({"x": x, "words": words}, "x must be a tuple")
    named = small({"x": x, "words": words})
    with pytest.raises(ValueError, match=r"must be a dictionary of \['x', 'words'\]"):
        sps.fit(named, {"x": x}, y, num_steps=1, progress=False)
    with pytest.raises(ValueError, match="of several give BNN an example"):
        sps.fit(sps.BNN(sps.mlp([3, 4, 2])), (x, words), y, num_steps=1, progress=False)
    with pytest.raises(ValueError, match="the same for all rows belongs into the network"):
        sps.Topology.of(Two(), example=(x, words[0]))
    with pytest.raises(TypeError, match=r"example\['scale'\] must be a tensor, got float"):
        sps.Topology.of(Two(), example={"x": x, "words": words, "scale": 2.0})
    with pytest.raises(ValueError, match="of several inputs a tuple, or a dictionary"):
        sps.BNN(Two())
    half = small((x.half(), words)).half()
    with pytest.raises(ValueError, match="float16 cannot hold"):
        half((x.half(), words + 4099), y.half())


def test_several_outputs_say_what_to_do():
    net = Net(lambda net, x: (net.first(x), net.last(x)), first=nn.Linear(3, 2), last=nn.Linear(3, 2))
    with pytest.raises(sps.UnsupportedLayerError, match=r"it returns a tuple of outputs.* puts several side by side"):
        sps.Topology.of(net, example=torch.zeros(2, 3))


def test_packed_sequences_say_what_to_do():
    def forward(net, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True)
        return net.last(net.lstm(packed)[1][0][0])

    net = Net(forward, lstm=nn.LSTM(3, 4, batch_first=True), last=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="packed sequences are not known; run on padded ones"):
        sps.Topology.of(net, example=torch.zeros(2, 4, 3))
