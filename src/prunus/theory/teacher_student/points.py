"""Fixed quasi-random normal points: a smooth right-hand side where no closed form exists."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri

__all__ = ["gaussian_fields", "normal_points"]


@lru_cache(maxsize=8)
def normal_points(count: int, dimension: int) -> Float[ndarray, "count dimension"]:
    """`count` scrambled Sobol points as standard normals, mirrored, with second moment exactly I.

    The same call always gives the same points, so that an ODE solver sees a smooth function.

    Args:
        count: an even number; half of a power of two is drawn, the rest are the mirror images.
        dimension: number of normals per point.
    """
    from scipy.stats import qmc  # half a second that most calls of the theory do not need

    half = max(count // 2, dimension)
    uniform = qmc.Sobol(dimension, scramble=True, seed=20211).random_base2(
        int(np.ceil(np.log2(half)))
    )
    normal = ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    moment = normal.T @ normal / len(normal)
    values, vectors = np.linalg.eigh(moment)
    white = normal @ (vectors / np.sqrt(values)) @ vectors.T
    points: ndarray = np.concatenate([white, -white])
    points.setflags(write=False)
    return points


def gaussian_fields(covariance: Float[ndarray, "P P"], count: int) -> Float[ndarray, "count P"]:
    """The fixed points mapped to N(0, C) by the symmetric root of C, which is smooth in C."""
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    fields: ndarray = normal_points(count, len(covariance)) @ root
    return fields
