"""Functions recorded without what nobody reads, and nobody else disturbed."""

import threading

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_sps.base.recording import record


def test_the_recording_computes_the_same_and_other_threads_record_as_ever():
    seen = []

    def function(x):
        # Another thread that records while this one does.
        other = threading.Thread(target=lambda: seen.append(make_fx(lambda y: y.sin())(torch.ones(2))))
        if not seen:
            other.start()
            other.join()
        return (x @ x.mT).exp().sum()

    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    recorded = record(function, x)
    assert torch.equal(recorded(x + 1), function(x + 1))
    assert not any("val" in node.meta for node in recorded.graph.nodes)
    assert any("val" in node.meta for node in seen[0].graph.nodes)
    assert any("val" in node.meta for node in make_fx(lambda y: y.cos())(x).graph.nodes)
