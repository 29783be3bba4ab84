"""Counts of sets against their exact probabilities."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.stats import chi2


def p_value(
    draw: Callable[[], Hashable], cells: Sequence[Hashable], probabilities: np.ndarray, draws: int
) -> float:
    """p of Pearson's statistic over `draws` calls; cells expected less than 5 times are pooled.

    A set of probability zero that is drawn gives p = 0.
    """
    counts = Counter(draw() for _ in range(draws))
    observed = np.array([counts.pop(cell, 0) for cell in cells], dtype=float)
    if counts or observed[probabilities < 1e-14].any():
        return 0.0
    expected = draws * probabilities
    rare = expected < 5
    seen = np.append(observed[~rare], observed[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 5:  # too rare even together: into the smallest cell that stands alone
        smallest = int(wanted[:-1].argmin())
        seen[smallest] += seen[-1]
        wanted[smallest] += wanted[-1]
        seen, wanted = seen[:-1], wanted[:-1]
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return float(chi2.sf(statistic, len(wanted) - 1))
