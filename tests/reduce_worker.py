"""One of two processes that calibrate parts of the data, reduce, prune and train together."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import prunus
from forks import group

STATISTICS = ("gram", "mean", "max", "zeros")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.ReLU(),
            nn.Linear(10, 3),
        ).eval()  # fmt: skip


def data() -> list[torch.Tensor]:
    """Unequal parts, as the last batches of a data set are."""
    x = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return list(x.split([20, 44]))


def refusal(calibration: prunus.Calibration) -> str:
    try:
        calibration.all_reduce()
    except ValueError as error:
        return str(error)
    return ""


def train(pruned: prunus.Pruned, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Two steps of a distributed network; the zeros that are left, and a weight."""
    model = nn.parallel.DistributedDataParallel(pruned.model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    with pruned.hold(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    zeros = sum(int((p == 0).sum()) for p in pruned.model.parameters())
    return zeros, pruned.model[3].weight.detach().clone()


def main(rank: int, folder: Path) -> None:
    group(rank, folder)
    model, part = network(), data()[rank]
    own = prunus.calibrate(model, part, STATISTICS)
    every = own.all_reduce()
    every.save(folder / f"rank-{rank}")
    pruned = prunus.prune(model, "wanda+ls", 0.3, data=prunus.calibrate(model, part).all_reduce())
    before = sum(int((p == 0).sum()) for p in pruned.model.parameters())
    after, weight = train(pruned, part)
    other = network()
    if rank == 1:
        with torch.no_grad():
            other[3].weight[0, 0] += 1
    torch.save(
        {
            "statistics": refusal(prunus.calibrate(model, part, ("gram", "max")[rank : rank + 1])),
            "weights": refusal(prunus.calibrate(other, part)),
            "layers": refusal(prunus.calibrate(model, part, layers=("0", "3")[rank])),
            "pair": (before, after),
            "mask": pruned.layers["3"].mask,
            "weight": weight,
        },
        folder / f"said-{rank}.pt",
    )
    dist.destroy_process_group()
