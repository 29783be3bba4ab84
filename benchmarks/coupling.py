"""Time and memory of finding which channels go together, against the network's own forward pass.

Each network runs two samples in a fresh process with one thread. Time is processor time, the
median of five in turn; memory is the peak above what the process held with the network loaded.
The aim: three forward passes and 0.2 s, and no more memory than the forward pass.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from memory import peak_of

RESULTS = Path(__file__).parent / "results"


def bottleneck(wide: int, middle: int, stride: int) -> Any:
    """A residual block of ResNet-50: 1×1, 3×3 and 1×1 convolutions around a shortcut."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            out = 4 * middle
            self.path = nn.Sequential(
                nn.Conv2d(wide, middle, 1, bias=False), nn.BatchNorm2d(middle),
                nn.ReLU(inplace=True),
                nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle),
                nn.ReLU(inplace=True),
                nn.Conv2d(middle, out, 1, bias=False), nn.BatchNorm2d(out),
            )  # fmt: skip
            self.down = None
            if stride > 1 or wide != out:
                self.down = nn.Sequential(
                    nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )
            self.end = nn.ReLU(inplace=True)

        def forward(self, x: Any) -> Any:
            y = self.path(x)
            y += x if self.down is None else self.down(x)
            return self.end(y)

    return Bottleneck()


def resnet50() -> tuple[Any, Any]:
    """ResNet-50 of He et al. (2016) and images of 224×224."""
    import torch
    from torch import nn

    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    parts.append(nn.MaxPool2d(3, 2, 1))
    wide = 64
    for stage, (middle, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(blocks):
            parts.append(bottleneck(wide, middle, 2 if stage and not i else 1))
            wide = 4 * middle
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 1000)]
    return nn.Sequential(*parts).eval(), torch.randn(2, 3, 224, 224)


def decoder() -> tuple[Any, Any]:
    """Six blocks of attention and gated feed-forward, 512 wide, on 256 tokens."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, wide: int = 512, inner: int = 1376) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(wide, wide, bias=False), nn.Linear(wide, 128, bias=False)
            self.v, self.o = nn.Linear(wide, 128, bias=False), nn.Linear(wide, wide, bias=False)
            self.gate, self.up = nn.Linear(wide, inner), nn.Linear(wide, inner)
            self.down, self.one, self.two = (
                nn.Linear(inner, wide),
                nn.RMSNorm(wide),
                nn.RMSNorm(wide),
            )

        def forward(self, x: Any) -> Any:
            y = self.one(x)
            q, k, v = (
                p(y).unflatten(2, (-1, 64)).transpose(1, 2) for p in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + self.o(y.transpose(1, 2).flatten(2))
            y = self.two(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    stem = nn.Linear(64, 512)
    model = nn.Sequential(stem, *(Block() for _ in range(6)), nn.RMSNorm(512), nn.Linear(512, 64))
    return model.eval(), torch.randn(2, 256, 64)


NETWORKS: dict[str, Callable[[], tuple[Any, Any]]] = {"resnet50": resnet50, "decoder": decoder}


def prepared(name: str) -> tuple[Any, Any]:
    """The network and its inputs, after one run of each piece of work on a small network."""
    import torch
    from torch import nn

    from prunus.coupling import couple

    torch.set_num_threads(1)
    torch.manual_seed(0)
    couple(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4))
    return NETWORKS[name]()


def forward(model: Any, x: Any) -> None:
    """One forward pass without gradients."""
    import torch

    with torch.no_grad():
        model(x)


def coupled(model: Any, x: Any) -> tuple[int, int]:
    """Number of groups and classes."""
    from prunus.coupling import couple

    groups = couple(model, x).groups
    return len(groups), sum(group.size for group in groups)


def timed(name: str, repeats: int) -> dict[str, float]:
    """Processor seconds of both, in turn."""
    model, x = prepared(name)
    found: dict[str, list[float]] = {"forward": [], "couple": []}
    for _ in range(repeats + 1):
        for key, work in (("forward", forward), ("couple", coupled)):
            begun = time.thread_time()
            work(model, x)
            found[key].append(time.thread_time() - begun)
    return {key: median(values[1:]) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "coupling.json")
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        seconds = timed(name, options.repeats)
        own, _, _ = peak_of(prepared, forward, name)
        ours, _, (groups, classes) = peak_of(prepared, coupled, name)
        rows.append(
            {
                "network": name,
                "groups": groups,
                "classes": classes,
                "forward_seconds": seconds["forward"],
                "couple_seconds": seconds["couple"],
                "aim_seconds": 3 * seconds["forward"] + 0.2,
                "forward_mib": own / 2**20,
                "couple_mib": ours / 2**20,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    options.out.write_text(json.dumps({"benchmark": "coupling", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
