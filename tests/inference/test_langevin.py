"""Microcanonical dynamics against closed forms."""

import math

import pytest
import torch

from pyro_sps.inference.langevin import (
    Tuning,
    equal_times,
    follow_acceptance,
    follow_error,
    kick,
    leapfrog,
    rescale,
    unadjusted,
)

D, K = 100, 16


def gaussian(position):
    """Gradients and energies of a standard normal."""
    return position, position.square().sum(-1) / 2


def unit(*shape, seed=0):
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return value / value.norm(dim=-1, keepdim=True)


def test_a_kick_is_the_formula():
    velocity, gradient = unit(K, D), 30 * unit(K, D, seed=1)
    step = torch.full((K, 1), 2.0, dtype=torch.float64)
    moved, gained = kick(velocity, gradient, step)
    delta = step * 30.0 / (D - 1)
    force = -gradient / 30.0
    along = (velocity * force).sum(-1, keepdim=True)
    divisor = delta.cosh() + along * delta.sinh()
    expected = (velocity + force * (delta.sinh() + along * (delta.cosh() - 1))) / divisor
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gained, (D - 1) * divisor.log().squeeze(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.norm(dim=-1), torch.ones(K, dtype=torch.float64))


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e150])
def test_kicks_without_a_force_or_with_a_huge_one_are_finite(size):
    velocity = unit(K, D)
    moved, gained = kick(velocity, size * unit(K, D, seed=1), torch.ones(K, 1, dtype=torch.float64))
    assert moved.isfinite().all()
    assert gained.isfinite().all()
    if size < 1:
        torch.testing.assert_close(moved, velocity)


def test_a_step_is_reversible_and_its_error_falls_as_the_third_power():
    """Of a symmetric integrator of order two: the error of one step is odd in ε, and its energy error O(ε³)."""
    position = 1.3 * unit(K, D, seed=2) * math.sqrt(D)
    state = (position, unit(K, D), *gaussian(position))
    scale = torch.rand(K, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    errors = []
    for size in (0.8, 0.4):
        step = torch.full((K, 1), size, dtype=torch.float64)
        *after, error = leapfrog(gaussian, *state, step, scale)
        errors.append(error.abs().mean())
        back = leapfrog(gaussian, after[0], -after[1], after[2], after[3], step, scale)
        torch.testing.assert_close(back[0], position)
        torch.testing.assert_close(back[1], -state[1])
        torch.testing.assert_close(back[4], -error)
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)


def run(step, limit=math.inf, steps=2000, length=None, seed=0):
    """Positions of unadjusted chains on a standard normal, after a tenth of the steps."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(K, D, generator=generator, dtype=torch.float64)
    state = (position, unit(K, D), *gaussian(position))
    advance = unadjusted(gaussian, limit, math.sqrt(D) if length is None else length)
    sizes, scale = torch.full((K, 1), step, dtype=torch.float64), torch.ones(K, D, dtype=torch.float64)
    squares = []
    for number in range(steps):
        noise = torch.randn(K, D, generator=generator, dtype=torch.float64)
        *state, error, good = advance(*state, sizes, scale, noise)
        if number >= steps // 10:
            squares.append(state[0].square().mean(-1))
    return torch.stack(squares), error, good


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_bias_of_unadjusted_steps_is_that_of_the_leapfrog(share):
    """The shadow Hamiltonian of the leapfrog on a harmonic force is p²(1 + h²/6)/2 + q²(1 - h²/12)/2 up to O(h⁴).

    Here h = ε/√d. Canonical dynamics refreshes p to variance 1, so that q has 1/(1 - h²/4); microcanonical dynamics
    refreshes directions alone, and q has 1/(1 - h²/12).
    """
    squares, _, good = run(share * math.sqrt(D))
    assert good.all()
    chains = squares.mean(0)
    error = chains.std() / math.sqrt(K)
    assert abs(chains.mean() - 1 / (1 - share**2 / 12)) < 4 * error + share**4 / 24 + share**2 / D


def test_bad_steps_are_taken_back_with_the_velocity_reversed():
    position = unit(K, D) * math.sqrt(D)
    state = (position, unit(K, D, seed=1), *gaussian(position))
    advance = unadjusted(gaussian, 1e-12, 1e9)
    step, scale = torch.full((K, 1), 3.0, dtype=torch.float64), torch.ones(K, D, dtype=torch.float64)
    *after, _, good = advance(*state, step, scale, torch.zeros(K, D, dtype=torch.float64))
    assert not good.any()
    torch.testing.assert_close(after[0], position)
    torch.testing.assert_close(after[1], -state[1])


def test_energies_that_are_not_finite_move_nothing():
    def broken(position):
        return position * math.nan, position.sum(-1) * math.nan

    position = unit(K, D)
    *after, _, good = unadjusted(broken, 1e9, 10.0)(
        position,
        unit(K, D, seed=1),
        *gaussian(position),
        torch.ones(K, 1, dtype=torch.float64),
        torch.ones(K, D, dtype=torch.float64),
        unit(K, D, seed=2),
    )
    assert not good.any()
    assert all(one.isfinite().all() for one in after)


def test_step_sizes_come_to_the_wanted_error():
    """On errors that grow as ε³, whose size at ε = 1 is known."""
    tuning = Tuning.start(torch.ones(K, 1, dtype=torch.float64), 0.01)
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(3000):
        error = 7.0 * tuning.step.squeeze(1) ** 3 * torch.randn(K, generator=generator, dtype=torch.float64)
        follow_error(tuning, error, error.abs() < 1e6, 20, 0.01)
        sizes.append(tuning.step)
    expected = (0.01 * 20 / 49) ** (1 / 6)
    assert torch.stack(sizes[1000:]).log().mean().exp().item() == pytest.approx(expected, rel=0.05)


def test_step_sizes_shrink_after_failures():
    tuning = Tuning.start(torch.ones(K, 1, dtype=torch.float64), 1.0)
    good = torch.arange(K) > 0
    for _ in range(10):
        follow_error(tuning, torch.full((K,), math.nan, dtype=torch.float64).where(~good, 0.01), good, 20, 0.01)
    assert tuning.step[0] < 0.1
    assert (tuning.step[1:] >= 1.0).all()
    assert tuning.step.isfinite().all()


def test_settled_steps_shrink_in_necks_and_come_back_but_do_not_grow():
    tuning = Tuning.start(torch.ones(K, 1, dtype=torch.float64), 0.5)
    tuning.settle()
    errors = [1e-6] * 20 + [1.0] * 100 + [1e-6] * 1000
    sizes = []
    for size in errors:
        follow_error(tuning, torch.full((K,), size, dtype=torch.float64), torch.ones(K, dtype=torch.bool), 20, 0.01)
        sizes.append(tuning.step[0].item())
    assert max(sizes) == sizes[19] == sizes[-1] == 0.5
    assert sizes[119] < 0.4


def funnel(position):
    """Gradients and energies of x ~ N(0, 1)ⁿ exp(v) with v ~ N(0, 0.5²) in the first coordinate (Neal 2003)."""
    v, x = position[:, :1], position[:, 1:]
    shrunk = x * torch.exp(-v)
    energy = 2 * v.square() + shrunk.square().sum(-1, keepdim=True) / 2 + x.shape[1] * v
    slope = 4 * v - shrunk.square().sum(-1, keepdim=True) + x.shape[1]
    return torch.cat([slope, shrunk * torch.exp(-v)], 1), energy.squeeze(1)


def test_steps_that_change_leave_the_moments_of_a_funnel():
    """Which are known; steps are the shorter the narrower it is."""
    generator = torch.Generator().manual_seed(0)
    chains, dimensions, thinning, count = 64, 12, 10, 150
    v = 0.5 * torch.randn(chains, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(chains, dimensions - 1, generator=generator, dtype=torch.float64) * v.exp()
    position = torch.cat([v, x], 1)
    state = (position, unit(chains, dimensions), *funnel(position))
    advance = unadjusted(funnel, 2 * math.sqrt(dimensions), math.sqrt(dimensions))
    scale = torch.ones(chains, dimensions, dtype=torch.float64)
    tuning = Tuning.start(scale[:, :1], 0.5)
    draws, times = [], []
    for _ in range(count):
        times.append(torch.zeros(chains, dtype=torch.float64))
        for _ in range(thinning):
            noise = torch.randn(chains, dimensions, generator=generator, dtype=torch.float64)
            times[-1] += tuning.step.squeeze(1)
            *state, error, good = advance(*state, tuning.step, scale, noise)
            follow_error(tuning, error, good, dimensions, 2e-4)
        draws.append(state[0][:, 0])
    every, passed = torch.stack(draws, 1), torch.stack(times, 1)
    assert passed.max() > 2 * passed[:, 1:].min()
    found = every.gather(1, equal_times(passed))
    for moment, expected in ((found.mean(1), 0.0), (found.square().mean(1), 0.25)):
        assert abs(moment.mean() - expected) < 4 * moment.std() / math.sqrt(chains)


def test_equal_stretches_give_each_draw_once():
    assert equal_times(torch.full((2, 50), 0.1)).tolist() == [list(range(50))] * 2
    assert equal_times(torch.tensor([[1.0, 1.0, 4.0, 2.0]])).tolist() == [[0, 2, 2, 3]]


def test_acceptance_comes_to_its_target():
    tuning = Tuning.start(torch.ones(K, 1, dtype=torch.float64), 0.1)
    for number in range(500):
        follow_acceptance(tuning, torch.exp(-tuning.step.squeeze(1)), 0.9, number)
    torch.testing.assert_close(torch.exp(-tuning.step), torch.full_like(tuning.step, 0.9), rtol=1e-3, atol=0)


def test_scales_are_those_of_the_curvature_and_shared():
    """Of blocks of curvature 1/s², up to a common factor; a chain far away does not count."""
    scales, sizes = torch.tensor([0.1, 0.01], dtype=torch.float64), torch.tensor([30.0, 10.0], dtype=torch.float64)
    tuning = Tuning.start(torch.ones(3, 2, dtype=torch.float64), 0.5)
    tuning.squares = (scales**-2).expand(3, -1).clone()
    tuning.squares[1] *= 1e6
    tuning.seen += 1
    rescale(tuning, sizes, torch.ones(2, dtype=torch.float64))
    assert torch.equal(tuning.scale[0], tuning.scale[1])
    ratio = tuning.scale[0, 0] / tuning.scale[0, 1]
    assert ratio.item() == pytest.approx((101 / 10001) ** -0.5)
    weighted = (tuning.scale[0] ** -2 * sizes).sum() / sizes.sum()
    assert weighted.item() == pytest.approx(1.0)
