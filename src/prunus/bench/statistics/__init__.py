"""What records say and how surely."""

from prunus.bench.statistics.paired import (
    COMPRESSIONS,
    against_baselines,
    differences,
    group_rows,
    higher_is_better,
    pareto,
    ranks,
    score,
    shrinkbench,
)

__all__ = [
    "COMPRESSIONS",
    "against_baselines",
    "differences",
    "group_rows",
    "higher_is_better",
    "pareto",
    "ranks",
    "score",
    "shrinkbench",
]
