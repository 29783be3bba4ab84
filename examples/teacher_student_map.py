"""
Which rule wins, by theory
==========================

A two-layer student with more units than its teacher is trained and pruned. In the limit of many
inputs the error after pruning has a closed form for every rule, and so the winner can be mapped
without training anything: over the number of students, the density and the noise of the labels.
"""

from _pictures import Picture
from _shipping import SMALL

from prunus.report.teacher_student import map_figure
from prunus.reproduce.pruned_students import map_records
from prunus.theory.teacher_student import method_map

# %%
# A student is trained, by its differential equations, for each size and noise.

cells = method_map(
    [3, 4] if SMALL else [3, 4, 5, 6, 8],
    [2],
    [0.0, 0.3],
    reweights=(None, "act"),
)
records = map_records(cells)
wins: dict[str, int] = {}
for record in records:
    wins[record["best"]] = wins.get(record["best"], 0) + 1
for name, count in sorted(wins.items(), key=lambda item: -item[1]):
    print(f"{count:4} of {len(records)} places: {name}")

# %%
# The map.

Picture(map_figure(records))
