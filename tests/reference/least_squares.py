"""Least squares from the definition: regress each row's outputs on its kept inputs."""

import numpy as np


def refit(weight: np.ndarray, inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Minimum-norm change of the kept weights, row by row, from the inputs themselves."""
    fitted = np.zeros_like(weight)
    for row, kept in enumerate(mask):
        lost = inputs[:, ~kept] @ weight[row, ~kept]
        delta = np.linalg.lstsq(inputs[:, kept], lost, rcond=None)[0]
        fitted[row, kept] = weight[row, kept] + delta
    return fitted


def refit_with_intercept(
    weight: np.ndarray, inputs: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same with a free constant per row: the weights, and what the bias gains."""
    fitted, gain = np.zeros_like(weight), np.zeros(len(weight))
    for row, kept in enumerate(mask):
        outputs = inputs @ weight[row]
        design = np.column_stack([inputs[:, kept], np.ones(len(inputs))])
        solution = np.linalg.lstsq(design, outputs, rcond=None)[0]
        fitted[row, kept], gain[row] = solution[:-1], solution[-1]
    return fitted, gain


def error(weight: np.ndarray, fitted: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Mean squared output error of each row, measured on the inputs."""
    return ((inputs @ (weight - fitted).T) ** 2).mean(0)
