"""Units: the one place where a number with a unit becomes a number without one.

Inside the package everything is in ASE's units: eV, Å, u, and for time Å·sqrt(u/eV) (about
10.18 fs). A name that carries a unit (`timestep_fs`, `temperature_K`) is what a person typed;
it is multiplied by a constant of this module on the line where the suffix disappears.

The constants are CODATA 2014, the set ASE uses, so that numbers agree with ASE to the last digit
(tests compare them). Written out here because `ase` takes half a second to import.
"""

from __future__ import annotations

from math import pi, sqrt

ELEMENTARY_CHARGE_C = 1.6021766208e-19
ATOMIC_MASS_KG = 1.660539040e-27
BOLTZMANN_J_PER_K = 1.38064852e-23
AVOGADRO_PER_MOL = 6.022140857e23
ELECTRON_MASS_KG = 9.10938356e-31
PLANCK_J_S = 6.626070040e-34
LIGHT_M_PER_S = 299792458.0

second = 1e10 * sqrt(ELEMENTARY_CHARGE_C / ATOMIC_MASS_KG)
"""One second in Å·sqrt(u/eV)."""
fs = 1e-15 * second
"""One femtosecond in Å·sqrt(u/eV)."""
ps = 1000.0 * fs
"""One picosecond in Å·sqrt(u/eV)."""
kB = BOLTZMANN_J_PER_K / ELEMENTARY_CHARGE_C
"""The Boltzmann constant in eV/K."""
kJ_per_mol = 1000.0 / AVOGADRO_PER_MOL / ELEMENTARY_CHARGE_C
"""One kJ/mol in eV."""
meV = 1e-3
"""One meV in eV."""
GPa = 1e9 / ELEMENTARY_CHARGE_C * 1e-30
"""One GPa in eV/Å³."""
coulomb = 1e-7 * LIGHT_M_PER_S**2 * ELEMENTARY_CHARGE_C * 1e10
"""The Coulomb constant times the elementary charge squared, e²/(4πε₀), in eV Å."""
bohr = 1e20 * (PLANCK_J_S / 2.0 / pi) ** 2 / ELECTRON_MASS_KG / (coulomb * ELEMENTARY_CHARGE_C)
"""The Bohr radius, 4πε₀ħ²/(mₑe²), in Å."""
