"""Diffusion purification (Nie et al. 2022): the purifier, attacks on it, and the protocol that measures it."""
