"""The 64 × 8 integer fixture: inputs with a duplicate and a constant column, and one row."""

import numpy as np

ROW = np.array([0.5, -0.3, 0.2, 0.7, -0.1, 0.4, 0.25, -0.6])
BETA, JITTER = 0.01, 0.01  # the bandwidth is for the sum over the 64 samples


def inputs() -> np.ndarray:
    """X[t, i] = ((t+1)(i+2)(i+3) + 3ti² + t²(i+1)) mod 13 − 6; columns 6 = 5; column 7 = 2."""
    t, i = np.mgrid[0:64, 0:8]
    x = (((t + 1) * (i + 2) * (i + 3) + 3 * t * i**2 + t**2 * (i + 1)) % 13 - 6).astype(float)
    x[:, 6] = x[:, 5]
    x[:, 7] = 2.0
    return x
