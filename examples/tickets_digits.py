"""
Winning tickets, with their controls
====================================

A network is trained, its largest weights are kept, and what is left goes back to its first weights
and is trained again, in rounds. The controls have as many weights in every layer: the same mask
with other first weights, and a random mask. Without them a ticket is only a small network.
"""

import torch
from _pictures import lines
from _shipping import SMALL
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data
from prunus.schedules import Rewinding

digits = load_data("digits")
x, y = digits.x_train.flatten(1)[:600], digits.y_train[:600]
x_test, y_test = digits.x_test.flatten(1), digits.y_test
STEPS, SEEDS = (60, 1) if SMALL else (300, 3)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def train(model: nn.Module, step: object = None, *, seed: int = 0) -> None:
    """The same samples in the same order each time; zeros are held while it runs."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for index in torch.randint(len(x), (STEPS, 50), generator=draw):
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return float((model(x_test).argmax(1) == y_test).float().mean())


def masked(seed: int, masks: dict[str, torch.Tensor]) -> float:
    """Accuracy of a fresh network trained under masks."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    for index in torch.randint(len(x), (STEPS, 50), generator=draw):
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
    return accuracy(model)


# %%
# Tickets at a few densities, each with its two controls.

rows = []
for density in (0.2, 0.05) if SMALL else (0.5, 0.2, 0.1, 0.05, 0.03):
    scores: dict[str, list[float]] = {"ticket": [], "other first weights": [], "random mask": []}
    for seed in range(SEEDS):
        recipe = prunus.Recipe(
            score=prunus.recipes["lottery"].score,
            allocation=prunus.recipes["lottery"].allocation,
            schedule=Rewinding(rounds=2 if SMALL else 5),
        )
        found = prunus.prune(network(seed), recipe, density, train=train)
        scores["ticket"].append(accuracy(found.model))
        scores["other first weights"].append(masked(seed + 100, dict(found.masks)))
        shuffle = torch.Generator().manual_seed(seed)
        random = {
            name: mask.flatten()[torch.randperm(mask.numel(), generator=shuffle)].view_as(mask)
            for name, mask in found.masks.items()
        }
        scores["random mask"].append(masked(seed, random))
    for series, values in scores.items():
        rows.append({"x": density, "y": sum(values) / len(values), "series": series})
        print(f"density {density:<5} {series:20}{rows[-1]['y']:.2%}")

# %%
# Mean test accuracy. So few networks rank nothing: ``prunus reproduce`` has intervals.

lines(rows, x_title="density", y_title="test accuracy", x_scale="log")
