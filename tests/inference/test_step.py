"""The recorded step against torch.optim and against the plain objective."""

import io
import math
import sys
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_sps as sps
import pyro_sps.inference.program as program_module
from pyro_sps.inference import replay
from pyro_sps.inference.optimizers import State, adam_scalars
from pyro_sps.inference.program import _rational_tanh, make_program
from pyro_sps.inference.step import Layout, Parts, make_step

TARGET = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=torch.float64)


def objective(params, noise, x, y):
    return ((params["a"] * x - y) ** 2).sum() + (params["b"] - noise).exp().sum()


def start(replicas, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [
        {
            "a": torch.randn(3, generator=generator, dtype=torch.float64),
            "b": torch.randn((), generator=generator, dtype=torch.float64),
        }
        for _ in range(replicas)
    ]
    layout = Layout.of(params[0])
    noise = torch.randn(replicas, 2, generator=generator, dtype=torch.float64)
    return params, layout, State.start(torch.stack([layout.pack(p) for p in params])), noise


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("max_grad_norm", [1e9, 0.1])
def test_steps_equal_torch_adam(replicas, max_grad_norm):
    params, layout, state, noise = start(replicas)
    x, y = torch.ones(3, dtype=torch.float64) * 2, TARGET[0]
    step = make_step(objective, layout, (state, noise, x, y), (0, None, None), max_grad_norm, compile=False)
    assert step.mode == "recorded"
    assert step.reason == ""
    rates = [0.01 * 0.9**count for count in range(1, 31)]
    for scalars in adam_scalars(rates, state.params):
        losses = step.run(state, scalars, noise, x, y)
    for replica in range(replicas):
        own = {name: value.clone().requires_grad_() for name, value in params[replica].items()}
        adam = torch.optim.Adam(own.values())
        for rate in rates:
            adam.param_groups[0]["lr"] = rate
            adam.zero_grad()
            loss = objective(own, noise[replica], x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own.values(), max_grad_norm)
            adam.step()
        torch.testing.assert_close(losses[replica], loss.detach())
        unpacked = layout.unpack(state.params)
        for name, value in own.items():
            torch.testing.assert_close(unpacked[name][replica], value.detach(), rtol=1e-5, atol=1e-7)


def test_data_may_have_a_replica_dimension():
    params, layout, state, noise = start(2)
    x, y = torch.ones(2, 3, dtype=torch.float64), TARGET
    step = make_step(objective, layout, (state, noise, x, y), (0, 0, 0), 1e9, compile=False)
    losses = step.run(state, adam_scalars([0.0], state.params)[0], noise, x, y)
    expected = [objective(params[r], noise[r], x[r], y[r]) for r in range(2)]
    torch.testing.assert_close(losses, torch.stack(expected))
    torch.testing.assert_close(state.params, torch.stack([layout.pack(p) for p in params]))


@pytest.mark.parametrize("compile", [False, True])
def test_groups_of_replicas_give_the_same_steps(compile):
    results = []
    for group in (None, 1, 2, 4):
        _, layout, state, noise = start(4)
        x, y = torch.ones(3, dtype=torch.float64) * 2, TARGET.repeat(2, 1)
        step = make_step(objective, layout, (state, noise, x, y), (0, None, 0), 1.0, compile, group)
        for scalars in adam_scalars([0.01] * 5, state.params):
            losses = step.run(state, scalars, noise, x, y)
        results.append((state.params, losses))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_a_step_that_is_not_finite_changes_nothing_in_its_replica():
    _, layout, state, noise = start(2)
    x, y = torch.ones(3, dtype=torch.float64), TARGET[0]
    step = make_step(objective, layout, (state, noise, x, y), (0, None, None), 1e9, compile=False)
    before = state.params.clone()
    noise[1, 0] = float("nan")
    losses = step.run(state, adam_scalars([0.1], state.params)[0], noise, x, y)
    assert losses[0].isfinite()
    assert not losses[1].isfinite()
    assert torch.equal(state.params[1], before[1])
    assert not torch.equal(state.params[0], before[0])


def test_a_gradient_that_is_not_finite_changes_nothing():
    # The loss is finite at zero, its derivative is not.
    def root(params, noise, x, y):
        return params["a"].abs().sqrt().sum() + 0 * params["b"]

    layout = Layout({"a": torch.Size([3]), "b": torch.Size([])})
    state = State.start(torch.zeros(1, 4, dtype=torch.float64))
    arguments = (torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    step = make_step(root, layout, (state, *arguments), (0, None, None), 1e9, compile=False)
    step.run(state, adam_scalars([0.1], state.params)[0], *arguments)
    assert torch.equal(state.params, torch.zeros(1, 4, dtype=torch.float64))


def test_what_cannot_be_recorded_runs_all_the_same_and_says_why():
    def branching(params, noise, x, y):
        loss = objective(params, noise, x, y)
        return loss if loss.item() > 0 else -loss

    params, layout, state, noise = start(1)
    x, y = torch.ones(3, dtype=torch.float64), TARGET[0]
    step = make_step(branching, layout, (state, noise, x, y), (0, None, None), 1e9, compile=True)
    assert step.mode == "traced" or step.reason
    losses = step.run(state, adam_scalars([0.1], state.params)[0], noise, x, y)
    torch.testing.assert_close(losses[0], objective(params[0], noise[0], x, y))


def test_constants_of_which_several_parts_are_taken():
    """As of deterministic weights, where a large step runs a network with one set of weights after the other."""
    several = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)

    def parts(params, noise, x, y):
        first, second = (several * 2).unbind()
        return objective(params, noise, x * first, y) + (second * params["a"].sum()).sum()

    params, layout, state, noise = start(1)
    x, y = torch.ones(3, dtype=torch.float64), TARGET[0]
    step = make_step(parts, layout, (state, noise, x, y), (0, None, None), 1e9, compile=False)
    assert step.mode == "recorded"
    losses = step.run(state, adam_scalars([0.1], state.params)[0], noise, x, y)
    torch.testing.assert_close(losses[0], parts(params[0], noise[0], x, y))


def test_compiled_step_equals_recorded_step():
    results = []
    for compile in (False, True):
        _, layout, state, noise = start(2)
        x, y = torch.ones(3, dtype=torch.float64) * 2, TARGET[0]
        step = make_step(objective, layout, (state, noise, x, y), (0, None, None), 1.0, compile=compile)
        if compile and step.mode != "compiled":
            pytest.skip(f"no compiler here: {step.reason}")
        for scalars in adam_scalars([0.01] * 5, state.params):
            losses = step.run(state, scalars, noise, x, y)
        results.append((state.params, losses))
    torch.testing.assert_close(results[0], results[1])


def test_the_same_step_is_compiled_once_a_process(monkeypatch):
    """Known by its operations, numbers, constants and shapes; those of other constants or shapes are others."""
    made = []
    monkeypatch.setattr(program_module, "_COMPILED", OrderedDict())
    monkeypatch.setattr(program_module, "_by_inductor", lambda recorded, *_: made.append(recorded) or recorded)

    def run(scale, factor, rows, replicas=1):
        _, layout, state, noise = start(replicas)
        x, y = torch.ones(rows, dtype=torch.float64), TARGET[0]

        def scaled(params, noise, x, y):
            return factor * objective(params, noise, x[:3] * scale, y)

        step = make_step(scaled, layout, (state, noise, x, y), (0, None, None), 1.0, compile=True)
        return step.run(state, adam_scalars([0.01], state.params)[0], noise, x, y)

    one = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    first = run(one, 2.0, 3)
    assert torch.equal(run(one.clone(), 2.0, 3), first)
    assert len(made) == 1
    for other in ((one + 1, 2.0, 3), (one, 3.0, 3), (one, 2.0, 4), (one, 2.0, 3, 2)):
        run(*other)
    assert len(made) == 5
    # Numbers that are spread out, single ones too, whose strides may be anything.
    spread = [torch.tensor(2.0, dtype=torch.float64).expand(n) for n in (1, 3)] + [torch.zeros(0).double().sum()]
    for constant in (*spread, torch.full((1, 1), 2.0).double().as_strided((1,), (0,))):
        run(constant, 2.0, 3)
    for factor in range(40):  # what is kept has a bound
        run(one, float(factor), 3)
    assert len(program_module._COMPILED) == program_module._KEPT


def test_what_was_compiled_is_found_on_disk_whatever_its_constants(monkeypatch):
    """Other processes compile the same in a fourth of the time; here one that has forgotten what it compiled."""
    from torch._dynamo.utils import counters

    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(3):
        few, many = torch.randn(3, generator=generator), torch.randn(500, 3, generator=generator)
        number = torch.rand((), generator=generator)

        def function(x, few=few, many=many, number=number):
            return (x * few).sin() + many.sum(0) * number, (x @ many.T).sum(-1)

        x = torch.randn(4, 3, generator=generator)
        for again in (False, True):  # the second time from the disk
            monkeypatch.setattr(program_module, "_COMPILED", OrderedDict())
            before = counters["inductor"]["fxgraph_cache_hit"]
            compiled = make_program(function, (x,), compile=True)
            if compiled.mode != "compiled":
                pytest.skip(f"no compiler here: {compiled.reason}")
            if again:
                found.append(counters["inductor"]["fxgraph_cache_hit"] - before)
            torch.testing.assert_close(compiled.run(x + 1), function(x + 1), rtol=1e-4, atol=1e-4)
    assert found[1:] == [1, 1]  # inductor settles some of its options in the first


@pytest.mark.parametrize("parts", [None, Parts(6, 2, 2)])
@pytest.mark.parametrize("group", [None, 1])
def test_a_replayed_program_does_the_same(monkeypatch, parts, group):
    """Each argument may be another tensor than before, or the same with other numbers in it; results stay whole."""
    monkeypatch.setattr(program_module, "_compile", lambda recorded, *_: (recorded, ""))
    found = []
    for kinds in ((), ("cpu",)):
        monkeypatch.setattr(replay, "REPLAYED", frozenset(kinds))
        _, layout, state, noise = start(2)
        noise = noise.unsqueeze(1)
        x, y = torch.linspace(1, 2, 6, dtype=torch.float64).unsqueeze(1), torch.linspace(-1, 1, 6).double().unsqueeze(1)
        step = make_step(objective, layout, (state, noise, x, y), (0, None, None), 10.0, True, group=group, parts=parts)
        assert step.mode == "compiled"
        losses = []
        for count, scalars in enumerate(adam_scalars([0.1] * 6, state.params)):
            noise.mul_(0.9)
            data = (x, y) if count < 2 else (x.clone() + count, y.clone())
            if count == 4:  # as where a checkpoint was read
                state = State(state.params.clone(), state.first.clone(), state.second.clone())
            losses.append(step.run(state, scalars, noise, *data))
        found.append((torch.stack(losses), state.params))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_fit_with_replayed_compiled_steps_is_the_same(monkeypatch):
    x = torch.linspace(-1, 1, 40).unsqueeze(1)
    options = {"num_steps": 40, "batch_size": 8, "replicas": 3, "compile": True, "progress": False}
    fits = []
    for kinds in ((), ("cpu",)):
        monkeypatch.setattr(replay, "REPLAYED", frozenset(kinds))
        fits.append(sps.fit(sps.BNN(sps.mlp([1, 4, 1]), sps.Unmasked(), sps.Zero()), x, x**2, **options))
        assert fits[-1][0].mode == "compiled"
    for one, other in zip(*fits, strict=True):
        torch.testing.assert_close(one.guide.loc, other.guide.loc)


def test_a_replayed_program_copies_only_what_is_new():
    """What it changes stays where it is; data that is the same tensor as before is not copied again."""
    calls = []

    def program(total, x, y):
        calls.append((total.data_ptr(), x.data_ptr(), x.clone()))
        total.add_(x * y)

    again = replay.Replay(program, 1)
    total, x, y = torch.zeros(3), torch.ones(3), torch.full((3,), 2.0)
    counted = Copies()
    with counted:
        for _ in range(4):
            again(total, x, y)
    assert counted.count == 0  # the first time they were cloned
    assert total.tolist() == [8.0] * 3
    assert {place for place, _, _ in calls} == {total.data_ptr()}
    assert x.data_ptr() not in {place for _, place, _ in calls}
    x.mul_(3)
    with counted:
        again(total, x, y)
    assert counted.count == 1
    assert total.tolist() == [14.0] * 3
    other = torch.zeros(3)
    again(other, x, y)
    assert (total.tolist(), other.tolist()) == ([14.0] * 3, [6.0] * 3)


def test_what_a_device_changes_by_itself_is_copied_again():
    """Programs that share a tensor: torch does not see that a graph, here NumPy, writes to it."""

    def change(total):
        total.numpy()[:] += 1

    first, second = replay.Replay(change, 1), replay.Replay(lambda total: 2 * total, 0)
    total = torch.zeros(3)
    for count in range(1, 4):
        first(total)
        assert second(total).tolist() == [2.0 * count] * 3


def test_a_graph_is_recorded_without_a_step(monkeypatch):
    """With stand-ins for what torch has on accelerators: while a graph is recorded, kernels do not run."""
    arguments, graphs = [], []

    def program(total, x):
        arguments.append((total, x))
        return total.add_(x).sum()

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    class Graph:
        def replay(self):
            self.outputs.copy_(program(*self.held))

    @contextmanager
    def recording(graph, pool, capture_error_mode):
        before = total.clone()
        yield
        graph.held = arguments[-1]
        assert graph.held[0] is total
        total.copy_(before)
        graphs.append((pool, capture_error_mode))

    for name, fake in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph": recording}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(Graph, "outputs", torch.zeros(()), raising=False)
    again = replay.Replay(program, 1)
    again.held = [torch.full((3,), 2.0)]
    for total in (torch.zeros(3), torch.ones(3)):
        before = total.clone()
        run = again._graph((total,))
        assert torch.equal(total, before)
        run()
        assert torch.equal(total, before + 2)
    assert len({pool for pool, _ in graphs}) == 1  # of the whole program
    assert {mode for _, mode in graphs} == {"thread_local"}


class Copies(TorchDispatchMode):
    """Counts copies from one tensor to another."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten.copy_.default
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("terminal", "progress", "lines"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_that_it_is_compiled_is_said_once_where_there_is_a_bar(monkeypatch, terminal, progress, lines):
    said = io.StringIO()
    said.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(program_module, "_COMPILED", OrderedDict())
    monkeypatch.setattr(program_module, "_by_inductor", lambda recorded, *_: recorded)
    x = torch.linspace(-1, 1, 6).unsqueeze(1)
    bnn = sps.BNN(sps.mlp([1, 3, 1]), sps.Unmasked(), sps.Zero())
    for _ in range(2):
        sps.fit(bnn, x, x, num_steps=2, compile=True, progress=progress)
    assert said.getvalue().count("fit: compiling the step") == lines


def test_layout_packs_and_unpacks():
    layout = Layout({"a": torch.Size([2, 3]), "b": torch.Size([]), "c": torch.Size([4])})
    params = {name: torch.randn((5, *shape)) for name, shape in layout.shapes.items()}
    flat = layout.pack(params)
    assert flat.shape == (5, 11)
    for name, value in layout.unpack(flat).items():
        assert torch.equal(value, params[name])


def test_rational_tanh_is_tanh_to_three_units_in_the_last_place():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 2, 10_001), torch.tensor([0.0, float("inf")])])
    x = torch.cat([x, -x])
    exact = x.double().tanh()
    error = (_rational_tanh(x).double() - exact).abs()
    assert (error <= 3 * torch.finfo(torch.float32).eps * exact.abs()).all()
    assert _rational_tanh(torch.tensor([float("nan")])).isnan()
    assert _rational_tanh(x.double()) is NotImplemented


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quick_tanh_of_recorded_steps_is_right_to_three_units_of_one(dtype):
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 2, 10_001), torch.tensor([0.0, float("inf")])])
    x = torch.cat([x, -x]).to(dtype)
    x = torch.cat([x, torch.full_like(x[:1], float("nan"))])

    def slope(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = leaf.tanh()
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    program = make_program(slope, (x,), compile=False)
    assert program.mode == "recorded"
    value, gradient = (one.double() for one in program.run(x))
    exact, unit = x.double().tanh(), torch.finfo(dtype).eps
    assert (value - exact)[:-1].abs().max() <= 3 * unit
    assert (gradient - (1 - exact.square()))[:-1].abs().max() <= 6 * unit
    assert value[-1].isnan()


def test_without_torchscript_a_recorded_step_does_the_same(monkeypatch):
    """As for a few calls, and where there is no TorchScript."""
    results, made = [], []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *args, **kwargs: made.append(1) or trace(*args, **kwargs))
    for calls in (1e6, 5, math.inf):
        if calls == math.inf:
            monkeypatch.setattr(torch.jit, "trace", None)
        _, layout, state, noise = start(2)
        x, y = torch.ones(3, dtype=torch.float64) * 2, TARGET[0]
        step = make_step(objective, layout, (state, noise, x, y), (0, None, None), 1.0, compile=False, calls=calls)
        assert (step.mode, step.reason, len(made)) == ("recorded", "", 1)
        for scalars in adam_scalars([0.01] * 5, state.params):
            losses = step.run(state, scalars, noise, x, y)
        results.append((state.params, losses))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_a_compiled_step_runs_with_another_number_of_threads():
    _, layout, state, noise = start(1)
    x, y = torch.ones(3, dtype=torch.float64), TARGET[0]
    step = make_step(objective, layout, (state, noise, x, y), (0, None, None), 1.0, compile=True)
    if step.mode != "compiled":
        pytest.skip(f"no compiler here: {step.reason}")
    scalars, threads = adam_scalars([0.0], state.params)[0], torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        more = step.run(state, scalars, noise, x, y)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(more, step.run(state, scalars, noise, x, y))
