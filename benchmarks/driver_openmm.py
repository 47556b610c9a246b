"""What OpenMM does in the benchmarks against it; see `peers.py`.

Its own units, nm, dalton, kJ/mol and ps, are consistent: numbers in another consistent set of units
stay what they are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openmm


def trajectory(
    positions: list[list[float]],
    velocities: list[list[float]],
    mass: float,
    length: float,
    formula: str,
    cutoff: float,
    timestep: float,
    steps: int,
) -> dict[str, Any]:
    """Velocity Verlet in a cubic box at constant energy, in double precision.

    Returns:
        The last `positions`, not wrapped into the box.
    """
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors((length, 0, 0), (0, length, 0), (0, 0, length))
    force = openmm.CustomNonbondedForce(formula)
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    for _ in positions:
        system.addParticle(mass)
        force.addParticle([])
    system.addForce(force)
    # Its own integrator named after Verlet is leapfrog.
    integrator = openmm.CustomIntegrator(timestep)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(positions)
    context.setVelocities(velocities)
    integrator.step(steps)
    last = context.getState(getPositions=True).getPositions(asNumpy=True)
    return {"positions": last.value_in_unit(last.unit).tolist()}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    request.pop("threads")
    actions = {"trajectory": trajectory}
    print(json.dumps(actions[request.pop("action")](**request)))
