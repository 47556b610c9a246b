"""Energies of atoms, and the forces, stress and files that follow from them."""
