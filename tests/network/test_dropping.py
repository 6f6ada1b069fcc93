"""Dropout by given masks against PyTorch's own, and what must be refused."""

import random

import pytest
import torch
import torch.nn.functional as F
from network.networks import Net
from torch import nn

from pyro_sps.network.dropping import Dropping, check_dropout
from pyro_sps.network.trace import trace

DRAWS = 3000


def attend(net, x):
    return net.attention(x, x, x, need_weights=net.weights)[0]


def attention(weights):
    net = Net(attend, attention=nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True))
    net.weights = weights
    return net


def by_hand(net, x):
    q, k, v = net.qkv(x).view(len(x), 3, 3, 2, 2).permute(2, 0, 3, 1, 4)
    rate = 0.3 if net.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    return F.dropout(y.transpose(1, 2).flatten(2), 0.2, net.training)


CASES = {
    "entries": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3)), (3,)),
    "all": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(1.0), nn.Linear(4, 2)), (3,)),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.Dropout1d(0.4)), (2, 3)),
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Dropout2d(0.4)), (2, 2, 2)),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(1, 3, 1), nn.Dropout3d(0.4)), (1, 2, 1, 2)),
    "alpha": (lambda: nn.Sequential(nn.Linear(3, 4), nn.SELU(), nn.AlphaDropout(0.3)), (3,)),
    "alpha of channels": (lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.FeatureAlphaDropout(0.3)), (2, 3)),
    "attention": (lambda: attention(False), (3, 4)),
    "attention with weights": (lambda: attention(True), (3, 4)),
    "attention by hand": (lambda: Net(by_hand, qkv=nn.Linear(4, 12)), (3, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 5, dropout=0.2, batch_first=True), (3, 4)),
    "recurrent": (
        lambda: Net(lambda net, x: net.cell(x)[0], cell=nn.LSTM(3, 4, 2, dropout=0.4, batch_first=True)),
        (4, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_have_the_distribution_of_pytorchs_own_training_mode(name):
    make, shape = CASES[name]
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(2, *shape, dtype=torch.float64)
    topology, function = trace(net, x)
    weights = {key: value.detach() for key, value in net.named_parameters()}
    assert check_dropout(function, topology, x)
    many = {key: value.expand(DRAWS, *value.shape) for key, value in weights.items()}
    draws = torch.randn(DRAWS, function.num_draws(x, x), dtype=torch.float64)
    ours = function(many, x, draws)
    # Rows of a batch have masks of their own.
    theirs = net.train()(x.repeat_interleave(DRAWS, 0)).detach().unflatten(0, (2, DRAWS)).transpose(0, 1)
    for power in (1, 2):
        first, second = ours**power, theirs**power
        error = ((first.var(0) + second.var(0)) / DRAWS).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() <= 5 * error + 1e-9).all()
    # Without draws it is in evaluation mode, and draws that keep everything change its scale alone.
    torch.testing.assert_close(function(weights, x), net.eval()(x))
    one = function(weights, x, draws[0])
    torch.testing.assert_close(function(many, x, draws)[0], one)


def test_masks_are_used_one_after_the_other():
    with Dropping(torch.tensor([1.0, -9.0, -9.0, 1.0])) as mode:
        first, second = (F.dropout(torch.ones(2), 0.5) for _ in range(2))
    assert first.tolist() == [2, 0]
    assert second.tolist() == [0, 2]
    assert (mode.used, mode.rates) == (4, [0.5, 0.5])


def noisy(net, x):
    return net.out(F.dropout(net.a(x), 0.2, net.training) + (torch.rand(()) * 1e-9 if net.training else 0))


def drop_path(net, x):
    x = F.dropout(net.a(x), 0.2, net.training)
    return net.out(x if net.training and random.random() < 0 else x * 1.0)


def other(net, x):
    return net.out(F.dropout(net.a(x), 0.2, net.training) * (2 if net.training else 1))


def several(net, x):
    y = net.out(F.dropout(net.a(x), 0.2, net.training))
    return (y, y) if net.training else y


@pytest.mark.parametrize("forward", [noisy, drop_path, other, several])
def test_what_else_is_done_in_training_mode_is_refused(forward):
    net = Net(forward, a=nn.Conv1d(2, 3, 1), out=nn.Conv1d(3, 1, 2))
    x = torch.zeros(2, 2, 2)
    topology, function = trace(net, x)
    states = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="dropout: in training mode the network does more than dropout"):
        check_dropout(function, topology, x)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


@pytest.mark.parametrize("net", [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.0))])
def test_dropout_that_has_no_effect_is_refused(net):
    topology, function = trace(net)
    with pytest.raises(ValueError, match="dropout has no effect: the network has no dropout of a rate above 0"):
        check_dropout(function, topology, torch.zeros(1))
