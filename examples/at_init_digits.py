"""
Pruning before training
=======================

How far may a network be pruned at random before it is trained? The theory says so from the data and
the widths alone; here its answer stands beside trained networks, with SynFlow and SNIP beside it.
"""

from _pictures import lines
from _shipping import SMALL

from prunus.bench import load_data
from prunus.bench.at_init import sweep
from prunus.theory.at_init import safe_density

digits = load_data("digits")

# %%
# The rule, which has seen no training.

safe = safe_density(digits.x_train[:300], digits.y_train[:300], [100])
print(f"safe down to density {safe.density:.3f}")

# %%
# Trained networks: gain in test accuracy over the dense one of the same seed.

found = sweep(
    digits,
    (100,),
    methods=("random-init", "synflow") if SMALL else ("random-init", "synflow", "snip"),
    densities=(0.3, 0.03) if SMALL else (0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
    seeds=2 if SMALL else 5,
    samples=150 if SMALL else 300,
)
rows = [
    {"x": cell.density, "y": cell.accuracy, "series": cell.method}
    for cell in found.cells
    if cell.density < 1
]
dense = [cell.accuracy for cell in found.cells if cell.density == 1]
print(f"dense {sum(dense) / len(dense):.2%}")

# %%
# Test accuracy against density.

lines(rows, x_title="density (kept / total)", y_title="test accuracy", x_scale="log")
