"""Steps of dynamics around the forces, on a GPU: in a few launches, whatever the thermostat.

What atoms do by themselves is shared out over all of them. What is known of a system from all of
its atoms has a program for each, as in `triton_systems`: it looks at all atoms of the batch, some
at a time. What they do is explained in `mdlearn.integrators`; the same in loops of a CPU are
`motion` and `thermostats`.

Axes: N atoms, S systems, D draws, V variables. All numbers are float64. Of each step is

    given: (5,) dt/2, what O keeps of momenta, the same of the noise, exp(-dt/2τ), and τ.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mdlearn.chain import SUZUKI_YOSHIDA

CSVR, NOSE_HOOVER = tl.constexpr(1), tl.constexpr(2)
"""Thermostats, which scale all momenta of a system alike."""
OUTER, INNER = tl.constexpr(SUZUKI_YOSHIDA[0]), tl.constexpr(SUZUKI_YOSHIDA[1])
"""Weights of a splitting; the third is the first again."""


@triton.jit(do_not_specialize=["atoms"])
def depart(
    positions: tl.tensor,
    momenta: tl.tensor,
    forces: tl.tensor,
    masses: tl.tensor,
    system: tl.tensor,
    noise: tl.tensor,
    kT: tl.tensor,
    factors: tl.tensor,
    given: tl.tensor,
    to_positions: tl.tensor,
    to_momenta: tl.tensor,
    heat: tl.tensor,
    atoms: tl.int64,
    scaled: tl.constexpr,
    friction: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """What comes before the forces of a step: B A, or B A O A.

    Args:
        positions: (N, 3) Å.
        momenta: (N, 3)
        forces: (N, 3) eV/Å.
        masses: (N,) u.
        system: (N,) which one each atom belongs to.
        noise: (D, N, 3) normal deviates; the first, for O.
        kT: (S,) eV.
        factors: (S,) of momenta before all else, by a thermostat.
        given: (5,)
        to_positions: (N, 3) is filled.
        to_momenta: (N, 3) is filled.
        heat: (N,) eV is filled with what O takes out.
        atoms: N.
        scaled: whether there are factors.
        friction: whether there is an O.
        block: atoms of a program.
    """
    n = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    live = n < atoms
    half, remember, forget = tl.load(given), tl.load(given + 1), tl.load(given + 2)
    s, mass = tl.load(system + n, live, 0), tl.load(masses + n, live, 1.0)
    lost = tl.zeros((block,), tl.float64)
    for axis in tl.static_range(3):
        i = n * 3 + axis
        p = tl.load(momenta + i, live, 0.0)
        if scaled:
            p *= tl.load(factors + s, live, 1.0)
        p += tl.load(forces + i, live, 0.0) * half
        x = tl.load(positions + i, live, 0.0)
        if friction:
            x += p / mass * half
            spread = tl.sqrt(mass * tl.load(kT + s, live, 0.0)) * forget
            q = p * remember + tl.load(noise + i, live, 0.0) * spread
            # The difference of squares as a product: without rounding what stays.
            lost += (p - q) * (p + q) / (2.0 * mass)
            p = q
            x += p / mass * half
        else:
            x += p / mass * (2.0 * half)
        tl.store(to_positions + i, x, live)
        tl.store(to_momenta + i, p, live)
    if friction:
        tl.store(heat + n, lost, live)


@triton.jit(do_not_specialize=["atoms"])
def arrive(
    momenta: tl.tensor,
    forces: tl.tensor,
    system: tl.tensor,
    factors: tl.tensor,
    given: tl.tensor,
    to_momenta: tl.tensor,
    atoms: tl.int64,
    scaled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """What comes after the forces of a step: B.

    Args:
        momenta: (N, 3)
        forces: (N, 3) eV/Å.
        system: (N,) which one each atom belongs to.
        factors: (S,) of momenta after all else, by a thermostat.
        given: (5,)
        to_momenta: (N, 3) is filled.
        atoms: N.
        scaled: whether there are factors.
        block: atoms of a program.
    """
    n = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    live, half = n < atoms, tl.load(given)
    s = tl.load(system + n, live, 0)
    for axis in tl.static_range(3):
        i = n * 3 + axis
        p = tl.load(momenta + i, live, 0.0) + tl.load(forces + i, live, 0.0) * half
        if scaled:
            p *= tl.load(factors + s, live, 1.0)
        tl.store(to_momenta + i, p, live)


@triton.jit(do_not_specialize=["atoms"])
def book(
    heat: tl.tensor,
    system: tl.tensor,
    bath: tl.tensor,
    to_bath: tl.tensor,
    atoms: tl.int64,
    block: tl.constexpr,
) -> None:
    """What baths have been handed by friction.

    Args:
        heat: (N,) eV, of atoms.
        system: (N,) which one each belongs to.
        bath: (S,) eV, before the step.
        to_bath: (S,) eV is filled.
        atoms: N.
        block: atoms at a time.
    """
    s = tl.program_id(0).to(tl.int64)
    total = tl.zeros((block,), tl.float64)
    for first in range(0, atoms, block):
        n = first + tl.arange(0, block).to(tl.int64)
        mine = tl.load(system + n, n < atoms, -1) == s
        total += tl.load(heat + n, mine, 0.0)
    tl.store(to_bath + s, tl.load(bath + s) + tl.sum(total, 0))


@triton.jit(do_not_specialize=["atoms"])
def thermalize(
    momenta: tl.tensor,
    forces: tl.tensor,
    masses: tl.tensor,
    system: tl.tensor,
    noise: tl.tensor,
    kT: tl.tensor,
    freedom: tl.tensor,
    bath: tl.tensor,
    variables: tl.tensor,
    given: tl.tensor,
    factors: tl.tensor,
    to_bath: tl.tensor,
    to_variables: tl.tensor,
    atoms: tl.int64,
    kicked: tl.constexpr,
    thermostat: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Half a step of a thermostat, but for the momenta.

    Args:
        momenta: (N, 3)
        forces: (N, 3) eV/Å.
        masses: (N,) u.
        system: (N,) which one each atom belongs to; one after another.
        noise: (D, N, 3) normal deviates; the first, for `csvr`.
        kT: (S,) eV.
        freedom: (S,)
        bath: (S,) eV.
        variables: (S, V), for `nose_hoover` the velocities of a chain of three.
        given: (5,)
        factors: (S,) is filled with what momenta are to be multiplied with.
        to_bath: (S,) is filled.
        to_variables: (S, V) is filled.
        atoms: N.
        kicked: whether it comes after the kick of `arrive`, whose momenta nobody has yet.
        thermostat: which one.
        block: atoms at a time.
    """
    s, half = tl.program_id(0).to(tl.int64), tl.load(given)
    energies = tl.zeros((block,), tl.float64)
    for first in range(0, atoms, block):
        n = first + tl.arange(0, block).to(tl.int64)
        mine = tl.load(system + n, n < atoms, -1) == s
        mass = tl.load(masses + n, mine, 1.0)
        for axis in tl.static_range(3):
            p = tl.load(momenta + n * 3 + axis, mine, 0.0)
            if kicked:
                p += tl.load(forces + n * 3 + axis, mine, 0.0) * half
            energies += p * p / (2.0 * mass)
    kinetic, free, energy = tl.sum(energies, 0), tl.load(freedom + s), tl.load(kT + s)
    if thermostat == CSVR:
        one, squares = deviates(s, free, system, noise, atoms, block)
        factor = rescaled(kinetic, energy, one, squares, tl.load(given + 3))
        heat = kinetic - factor * factor * kinetic
    else:
        tl.static_assert(thermostat == NOSE_HOOVER)
        v, to = variables + s * 3, to_variables + s * 3
        chain = (tl.load(v), tl.load(v + 1), tl.load(v + 2))
        chain, factor, heat = driven(chain, 2.0 * kinetic, free, energy, half, tl.load(given + 4))
        for i in tl.static_range(3):
            tl.store(to + i, chain[i])
    tl.store(factors + s, factor)
    tl.store(to_bath + s, tl.load(bath + s) + heat)


@triton.jit
def deviates(
    s: tl.tensor,
    freedom: tl.tensor,
    system: tl.tensor,
    noise: tl.tensor,
    atoms: tl.tensor,
    block: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A normal deviate for a system, and a sum of squares of `freedom` that it is one of."""
    squares, one, before = tl.zeros((block,), tl.float64), tl.zeros((block,), tl.float64), s * 0
    for first in range(0, atoms, block):
        n = first + tl.arange(0, block).to(tl.int64)
        mine = tl.load(system + n, n < atoms, -1) == s
        count = mine.to(tl.int64)
        rank = before + tl.cumsum(count, 0) - 1
        before += tl.sum(count, 0)
        for axis in tl.static_range(3):
            place = rank * 3 + axis
            deviate = tl.load(noise + n * 3 + axis, mine & (place < freedom), 0.0)
            squares += deviate * deviate
            one += tl.where(place == 0, deviate, 0.0)
    return tl.sum(one, 0), tl.sum(squares, 0)


@triton.jit
def rescaled(
    kinetic: tl.tensor, kT: tl.tensor, first: tl.tensor, squares: tl.tensor, remember: tl.tensor
) -> tl.tensor:
    """The factor of stochastic velocity rescaling; see `integrators.csvr`."""
    moving = kinetic > 0.0
    gain = (1.0 - remember) * tl.where(moving, 0.5 * kT / tl.where(moving, kinetic, 1.0), 0.0)
    square = remember + gain * squares + 2.0 * first * tl.sqrt(remember * gain)
    size = tl.sqrt(tl.where(square < 0.0, 0.0, square))
    return tl.where((first < 0.0) & (gain * first * first > remember), -size, size)


@triton.jit
def driven(
    velocities: tl.tuple,
    twice_kinetic: tl.tensor,
    freedom: tl.tensor,
    kT: tl.tensor,
    dt: tl.tensor,
    time: tl.tensor,
) -> tuple[tl.tuple, tl.tensor, tl.tensor]:
    """Moves a chain of three thermostats in time; see `integrators.nose_hoover.drive_chain`."""
    a, b, c = velocities
    rest = kT * time * time
    own, target = rest * freedom, freedom * kT
    factor, heat = kT / kT, -stored(a, b, c, own, rest)
    for i in tl.static_range(3):
        h = dt * (INNER if i == 1 else OUTER)
        c += (rest * b * b - kT) / rest * 0.5 * h
        b = braked(b, (own * a * a - kT) / rest, c, h)
        a = braked(a, (twice_kinetic * factor * factor - target) / own, b, h)
        factor *= tl.exp(-h * a)
        heat += kT * h * (freedom * a + b + c)
        a = braked(a, (twice_kinetic * factor * factor - target) / own, b, h)
        b = braked(b, (own * a * a - kT) / rest, c, h)
        c += (rest * b * b - kT) / rest * 0.5 * h
    return (a, b, c), factor, heat + stored(a, b, c, own, rest)


@triton.jit
def stored(a: tl.tensor, b: tl.tensor, c: tl.tensor, own: tl.tensor, rest: tl.tensor) -> tl.tensor:
    """The kinetic energy of a chain."""
    return 0.5 * (own * a * a + rest * (b * b + c * c))


@triton.jit
def braked(v: tl.tensor, push: tl.tensor, above: tl.tensor, dt: tl.tensor) -> tl.tensor:
    """The velocity of a thermostat that another one controls, half of dt later."""
    brake = tl.exp(-0.25 * dt * above)
    return (v * brake + push * 0.5 * dt) * brake
