"""
A small CNN made smaller
========================

The network of the quick tour, trained on 1300 handwritten digits, loses channels by five recipes.
The picture has test accuracy against what is left; a random choice of channels is among them, and
least squares is what makes the difference.
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
    nn.Conv2d(1, 32, 3),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(1024, 10),
)
fit(model, lambda net, i: F.cross_entropy(net(x[i]), y[i]), len(x), epochs=3 if SMALL else 15)


@torch.no_grad()
def accuracy(network: nn.Module) -> dict[str, float]:
    return {"accuracy": float((network(x_test).argmax(1) == y_test).float().mean())}


# %%
# One pruning, in words.

pruned = prunus.prune(model, "importance-node+ls", 0.15, data=x, evaluate=accuracy)
print(pruned.headline())

# %%
# Five recipes at three densities. Three draws of the random one.

names = ["importance-node", "importance-node+ls", "random-node", "random-node+ls", "l1-filter+ls"]
found = prunus.compare(
    model,
    names,
    [0.5, 0.1] if SMALL else [0.5, 0.25, 0.1, 0.05],
    data=x,
    evaluate=accuracy,
    seeds=3,
)
found
