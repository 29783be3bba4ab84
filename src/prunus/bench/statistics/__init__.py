"""What records say and how surely."""

from prunus.bench.statistics.fronts import COMPRESSIONS, pareto, shrinkbench
from prunus.bench.statistics.paired import against_baselines, differences, group_rows
from prunus.bench.statistics.places import higher_is_better, score
from prunus.bench.statistics.ranks import ranks

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
