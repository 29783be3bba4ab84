"""What the pages of real networks have in common: train, prune, retrain, export, say so."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import prunus

SMALL = bool(os.environ.get("PRUNUS_SMALL"))  # seconds and not minutes, for tests


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    samples: int,
    *,
    epochs: int,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Adam with a rate that falls to zero; `loss(model, index)` is that of some samples."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * (samples // batch)
    fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(samples, generator=generator).split(batch)[: samples // batch]:
            optimizer.zero_grad()
            loss(model, index).backward()
            optimizer.step()
            fall.step()
    model.eval()


def ship(
    model: nn.Module,
    recipe: object,
    density: float,
    *,
    data: object,
    example: object,
    error: Callable[[nn.Module], float],
    retrain: Callable[[nn.Module], None],
    what: str,
    layers: str | None = None,
) -> prunus.Pruned:
    """Prune, retrain with the zeros held, write ONNX, and print what it cost and gained."""
    pruned = prunus.prune(
        model,
        recipe,
        density,
        data=data,
        layers=layers,
        evaluate=error,
        train=lambda network, step: retrain(network),
    )
    small = pruned.compact(example)
    with tempfile.TemporaryDirectory() as folder:
        found = pruned.export(Path(folder) / "net.onnx", example=example)
    count = {k: sum(p.numel() for p in m.parameters()) for k, m in (("d", model), ("s", small))}
    print(f"{what:28}{pruned.metrics['before']:10.4f} dense")
    print(f"{'':28}{pruned.metrics['pruned']:10.4f} pruned")
    print(f"{'':28}{pruned.metrics['trained']:10.4f} retrained")
    print(f"{'':28}{error(small):10.4f} compact, the same network")
    print(f"{'parameters':28}{count['d']:10,} dense, {count['s']:,} compact")
    print(f"{'bytes of the ONNX file':28}{found.bytes:10,}")
    print(found.verdict)
    for note in found.notes:
        print(note)
    return pruned
