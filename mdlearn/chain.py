"""A chain of thermostats in a loop: operations on a few numbers would take a step of a molecule.

For `integrators.nose_hoover`, which says what it is, and for steps in loops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.jit import compiled

_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
SUZUKI_YOSHIDA = (_OUTER, 1.0 - 2.0 * _OUTER, _OUTER)
"""Weights of a fourth-order splitting (H. Yoshida, Phys. Lett. A 150, 262, 1990, eq. 2.11)."""
Array = NDArray[Any]


@compiled(error_model="numpy", inner=True)
def drive(
    v: Array, twice_kinetic: float, freedom: float, kT: float, dt: float, time: float
) -> tuple[float, float]:
    """Moves one chain in time, with velocities v (L,); see `integrators.nose_hoover.drive_chain`.

    Returns:
        The factor of what has the kinetic energy, and the energy that the chain has received.
    """
    length, factor, heat = len(v), 1.0, 0.0
    q = (kT * time**2 * freedom, kT * time**2)  # of the first thermostat, and of the others
    for i in range(length):
        heat -= 0.5 * q[min(i, 1)] * v[i] ** 2
    for weight in SUZUKI_YOSHIDA:
        h = weight * dt
        for i in range(length - 1, -1, -1):
            v[i] = _accelerated(i, v, q, kT, freedom, twice_kinetic * factor**2, h)
        factor *= math.exp(-h * v[0])
        heat += kT * h * freedom * v[0]
        for i in range(1, length):
            heat += kT * h * v[i]
        for i in range(length):
            v[i] = _accelerated(i, v, q, kT, freedom, twice_kinetic * factor**2, h)
    for i in range(length):
        heat += 0.5 * q[min(i, 1)] * v[i] ** 2
    return factor, heat


@compiled(error_model="numpy", inner=True)
def _accelerated(
    i: int,
    v: Array,
    q: tuple[float, float],
    kT: float,
    freedom: float,
    twice_kinetic: float,
    dt: float,
) -> Any:
    """The velocity of one thermostat, half of dt later."""
    if i == 0:
        push = (twice_kinetic - freedom * kT) / q[0]
    else:
        push = (q[min(i - 1, 1)] * v[i - 1] ** 2 - kT) / q[1]
    if i == len(v) - 1:
        return v[i] + push * 0.5 * dt
    brake = math.exp(-0.25 * dt * v[i + 1])
    return (v[i] * brake + push * 0.5 * dt) * brake


def drive_chains(
    velocities: Tensor, twice_kinetic: Tensor, freedom: Tensor, kT: Tensor, dt: float, time: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`integrators.nose_hoover.drive_chain` on a CPU."""
    given = (velocities, twice_kinetic, freedom, kT)
    v, *numbers = (each.contiguous().numpy() for each in given)
    v = v.copy()
    factors, heat = _drive_all(v, tuple(numbers), dt, time)
    return torch.from_numpy(v), torch.from_numpy(factors), torch.from_numpy(heat)


@compiled()
def _drive_all(v: Array, numbers: tuple[Array, ...], dt: float, time: float) -> tuple[Array, Array]:
    """Moves chains (n_systems, L); factors and energies (n_systems,)."""
    twice_kinetic, freedom, kT = numbers
    factors, heat = np.empty(len(v)), np.empty(len(v))
    for s in range(len(v)):
        factors[s], heat[s] = drive(v[s], twice_kinetic[s], freedom[s], kT[s], dt, time)
    return factors, heat
