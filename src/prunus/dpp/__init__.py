"""Determinantal point processes: kernels, exact and approximate samplers, and their modes."""
