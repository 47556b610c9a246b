"""Langevin dynamics samples the distribution that it says it samples."""

from __future__ import annotations

import math

import ase
import numpy as np
import pytest
import torch
from oracles import well
from validation import SIGMAS

from mdlearn.atoms import to_system
from mdlearn.integrators import State, Surroundings, langevin
from mdlearn.momenta import noise
from mdlearn.system import System

ATOMS = 20_000


def oscillators() -> System:
    """Independent atoms, half of them of another mass; each axis is a sample."""
    half = ATOMS // 2
    return to_system(ase.Atoms(f"H{half}O{half}", positions=np.zeros((ATOMS, 3))))


def run(stiffness: float, dt: float, kT: float, friction: float, steps: int) -> list[State]:
    system, integrator = oscillators(), langevin(dt, friction)
    like = torch.ones_like(system.charge)
    at_rest = torch.zeros_like(system.positions)
    state = integrator.init(system, at_rest, well(stiffness), 3.0 * ATOMS * like)
    states = [state]
    for step in range(steps):
        draw = noise(7, step, integrator.draws, state.momenta)
        state = integrator.step(state, well(stiffness), Surroundings(draw, kT * like, like))
        states.append(state)
    return states


def assert_variance(samples: torch.Tensor, expected: float) -> None:
    """Mean zero, the variance, and the fourth moment of a normal distribution."""
    n = samples.numel()
    x = samples / math.sqrt(expected)
    assert abs(float(x.mean())) < SIGMAS / math.sqrt(n)
    assert abs(float(x.square().mean()) - 1.0) < SIGMAS * math.sqrt(2.0 / n)
    assert abs(float(x.pow(4).mean()) - 3.0) < SIGMAS * math.sqrt(96.0 / n)


@pytest.mark.parametrize("dt", [0.2, 0.9])
def test_harmonic_oscillator(dt: float) -> None:
    """B A O A B samples positions without any error of the step, momenta with a known one.

    Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013): <x²> = kT/k, and the momenta are
    too cold by the factor 1 - ω²dt²/4. At dt = 0.9 that is a fifth: other orders of the same
    sub-steps, which have the error in the positions, do not pass.
    """
    stiffness, kT = 1.3, 0.4
    last = run(stiffness, dt, kT, friction=0.8, steps=math.ceil(40 / dt))[-1]
    for chosen in (slice(0, ATOMS // 2), slice(ATOMS // 2, ATOMS)):
        mass = float(last.system.masses[chosen][0])
        assert_variance(last.system.positions[chosen], kT / stiffness)
        cold = 1.0 - stiffness / mass * dt**2 / 4.0
        assert_variance(last.momenta[chosen], mass * kT * cold)
    correlation = (last.system.positions * last.momenta).mean()
    scale = last.system.positions.std() * last.momenta.std()
    assert abs(float(correlation / scale)) < SIGMAS / math.sqrt(3 * ATOMS)


def test_free_atoms_warm_up_and_forget_at_the_rate_of_the_friction() -> None:
    """An Ornstein-Uhlenbeck process: <p²> = m kT (1 - exp(-2γt)), <p(0)p(t)> = m kT exp(-γt)."""
    dt, kT, friction = 0.5, 0.4, 0.3
    states = run(0.0, dt, kT, friction, steps=40)
    masses = states[0].system.masses[:, None]
    for n in (1, 4):
        warm = kT * (1.0 - math.exp(-2.0 * friction * n * dt))
        assert_variance(states[n].momenta / masses.sqrt(), warm)
    first, later = (states[n].momenta / masses.sqrt() for n in (36, 40))
    correlation = float((first * later).mean()) / kT
    expected = math.exp(-friction * 4 * dt)
    assert abs(correlation - expected) < SIGMAS * math.sqrt((1 + expected**2) / (3 * ATOMS))


def test_axes_and_atoms_are_independent() -> None:
    momenta = run(0.0, 0.5, 0.4, 0.3, steps=12)[-1].momenta
    x = momenta / momenta.std(0)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(float((x[:, a] * x[:, b]).mean())) < SIGMAS / math.sqrt(ATOMS)
    assert abs(float((x[1:] * x[:-1]).mean())) < 2.0 * SIGMAS / math.sqrt(3 * ATOMS)
