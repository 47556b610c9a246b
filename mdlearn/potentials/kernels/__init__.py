"""Loops over atoms and their neighbors, compiled by Numba: what frozen potentials are made of."""
