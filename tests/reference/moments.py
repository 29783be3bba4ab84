"""Input vectors of layers and their moments from the definition, position by position."""

import itertools

import numpy as np

MODES = {"zeros": "constant", "reflect": "reflect", "circular": "wrap", "replicate": "edge"}


def patches(
    inputs: np.ndarray,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
    mode: str = "zeros",
) -> np.ndarray:
    """(samples · positions, groups, channels · taps): what every output position reads."""
    if padding == "same":
        ends = [
            (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
            for k, d in zip(kernel, dilation, strict=True)
        ]
    else:
        ends = [(p, p) for p in padding]
    padded = np.pad(inputs, [(0, 0), (0, 0), *ends], mode=MODES[mode])
    sides = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    channels = inputs.shape[1] // groups
    rows = []
    for sample in padded:
        for place in itertools.product(*map(range, sides)):
            row = np.empty((groups, channels, int(np.prod(kernel))))
            for g, c in itertools.product(range(groups), range(channels)):
                for t, tap in enumerate(itertools.product(*map(range, kernel))):
                    at = tuple(
                        p * s + x * d
                        for p, s, x, d in zip(place, stride, tap, dilation, strict=True)
                    )
                    row[g, c, t] = sample[(g * channels + c, *at)]
            rows.append(row.reshape(groups, -1))
    return np.array(rows)


def moments(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Every statistic of (vectors, groups, in), a group at a time."""
    n = len(vectors)
    return {
        "gram": np.einsum("ngi,ngj->gij", vectors, vectors) / n,
        "mean": vectors.sum(0) / n,
        "diag": (vectors**2).sum(0) / n,
        "max": np.abs(vectors).max(0),
        "zeros": (vectors == 0).sum(0) / n,
    }
