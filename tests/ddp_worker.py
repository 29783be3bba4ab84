"""One of two processes that train one network together, its masks chosen inside the training."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import prunus
from forks import group

STEPS, EVERY = 12, 3
RECIPES = ("gradual", "rigl", "set", "movement", "soft-filter")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(),
                             nn.Linear(12, 3))  # fmt: skip


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """32 samples of a step, of which each process takes 16."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(32, 8, generator=generator), torch.randint(3, (32,), generator=generator)


def trained(
    name: str, rank: int, size: int, *, seed: int = 0, wrapped: bool = True
) -> dict[str, torch.Tensor]:
    """Weights and masks after a training of which this process sees a part."""
    recipe = prunus.recipes[name]
    recipe = replace(recipe, schedule=replace(recipe.schedule, every=EVERY))
    model = network()
    whole = nn.parallel.DistributedDataParallel(model) if wrapped else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    sparse = prunus.sparsify(
        model, recipe, 0.4, optimizer=optimizer, steps=STEPS, seed=seed, example=batch(0)[0]
    )
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(whole(x[rank::size]), y[rank::size]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, mask in sparse.masks.items():
            assert not model.get_parameter(key)[~mask].any(), f"{name}: not zero after step {step}"
    sparse.finish(strict=True)
    return {**dict(model.state_dict()), **{f"mask {k}": m for k, m in sparse.masks.items()}}


def refusal(rank: int) -> str:
    """What is said where the processes do not choose alike: here they have seeds of their own."""
    try:
        trained("set", rank, 2, seed=rank)
    except RuntimeError as error:
        return str(error)
    return ""


def main(rank: int, folder: Path) -> None:
    group(rank, folder)
    found = {name: trained(name, rank, 2) for name in RECIPES}
    torch.save({"found": found, "refusal": refusal(rank)}, folder / f"said-{rank}.pt")
    dist.destroy_process_group()
