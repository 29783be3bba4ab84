"""
Which layer hurts
=================

Every layer of a CNN is pruned alone, at several densities, and the network is tested each time. The
plan from it keeps more where pruning hurts, and is held against equal shares of the same size.
"""

import torch
from _shipping import SMALL, fit
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data

digits = load_data("digits")
x, y, x_test, y_test = digits.x_train, digits.y_train, digits.x_test, digits.y_test

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(),
    nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
)  # fmt: skip
fit(model, lambda net, i: F.cross_entropy(net(x[i]), y[i]), len(x), epochs=3 if SMALL else 15)


@torch.no_grad()
def accuracy(network: nn.Module) -> dict[str, float]:
    return {"accuracy": float((network(x_test).argmax(1) == y_test).float().mean())}


# %%
# The scan, and a plan from it beside equal shares.

densities = [0.5, 0.1] if SMALL else [0.7, 0.5, 0.3, 0.2, 0.1, 0.05]
scan = prunus.sensitivity(model, "magnitude-row", densities, data=x, evaluate=accuracy)
for name, target in (("planned", scan.plan(0.3)), ("equal shares", 0.3)):
    after = prunus.prune(model, "magnitude-row", target, data=x, evaluate=accuracy)
    score, density = after.metrics["pruned"]["accuracy"], after.cost_after.density
    print(f"{name:14}{score:.2%} at density {density:.3f}")

# %%
# What each layer alone costs.

scan
