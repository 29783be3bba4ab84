"""What pruning scope by scope costs: time and runs of layers against depth, memory against blocks.

Times are processor seconds of one thread, dense and pruned inputs in turn in one process, the
smallest of the repetitions; the ratio is the figure. Runs of a layer are counted by a hook on each.
The naive definition (two passes of the whole network for every layer, `tests/reference`) is timed
up to a depth that stays bearable. Memory, in a fresh process each: the peak above what the process
holds before the call less what the answer and the copy of the dense network hold (freed memory that
the allocator keeps is in it), and the most bytes of statistics and kept inputs alive together.

    python benchmarks/scopes.py [--small] [--parts depth memory]
"""

import argparse
import copy
import gc
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.files import write_text
from prunus.host import host_facts, versions
from prunus.report.figure import figure, save_figure

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from memory import peak_of  # noqa: E402

from reference.sequential import prune_edges  # noqa: E402
from scope_nets import Transformer  # noqa: E402

WIDTH, ROWS, BATCHES = 192, 256, 8


def chain(layers: int) -> tuple[nn.Module, list[Tensor]]:
    """A chain of linear layers with ReLU between, and eight batches."""
    torch.manual_seed(0)
    parts = [m for _ in range(layers) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*parts[:-1]), [torch.randn(ROWS, WIDTH) for _ in range(BATCHES)]


def naive(model: nn.Module, data: list[Tensor], name: str) -> float:
    """Processor seconds of the definition; equality with it is checked in double precision.

    In single precision a last bit that differs in one layer grows through the layers behind it.
    """
    recipe = replace(prunus.recipes[name], inputs="pruned")
    for precise in (True, False):
        own = copy.deepcopy(model).to(torch.float64 if precise else torch.float32)
        batches = [x.double() if precise else x for x in data]
        pruned = prunus.prune(own, recipe, 0.5, data=batches)
        kept = {key: r.mask.sum(1) for key, r in pruned.layers.items()}
        begun = time.process_time()
        _, results = prune_edges(own, recipe, kept, [(key,) for key in kept], batches)
        spent = time.process_time() - begun
        if precise:
            for key, result in results.items():
                assert torch.equal(result.mask, pruned.layers[key].mask), f"masks of {key} differ"
                gap = float((result.weight - pruned.layers[key].weight).abs().max())
                assert gap < 1e-6, f"weights of {key} differ by {gap}"
    return spent


def watched(model: nn.Module) -> Counter[str]:
    """Counts the runs of each layer from now on, in copies of the model too."""
    runs: Counter[str] = Counter()

    def note(key: str, *_: object) -> None:
        runs[key] += 1

    for key, module in model.named_children():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(partial(note, key))
    return runs


def depth(small: bool) -> list[dict[str, Any]]:
    """Processor seconds and runs per layer, dense against pruned inputs, by depth and recipe."""
    records: list[dict[str, Any]] = []
    repeats = 2 if small else 4
    for name in ("wanda", "wanda+ls"):
        for layers in (4, 8) if small else (4, 8, 16, 32):
            model, data = chain(layers)
            runs = watched(model)
            seconds: dict[str, float] = {}
            counts: dict[str, float] = {}
            for _ in range(repeats):
                for inputs in ("dense", "pruned"):
                    recipe = replace(prunus.recipes[name], inputs=inputs)
                    runs.clear()
                    begun = time.process_time()
                    prunus.prune(model, recipe, 0.5, data=data)
                    spent = time.process_time() - begun
                    seconds[inputs] = min(spent, seconds.get(inputs, spent))
                    counts[inputs] = max(runs.values())
            if layers <= 8:
                seconds["naive"] = naive(model, data, name)
            record = {
                "recipe": name, "layers": layers, "ratio": seconds["pruned"] / seconds["dense"],
                "seconds": seconds, "runs_of_a_layer": counts,
            }  # fmt: skip
            records.append(record)
            print(record, flush=True)
    return records


def prepare(blocks: int, width: int, samples: int, scoped: bool) -> tuple[Any, ...]:
    """A network of equal blocks, its data, and the arguments of `prune`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer(blocks, width).eval()
    data = [torch.randn(samples, 16, 5) for _ in range(4)]
    recipe = replace(prunus.recipes["sparsegpt"], inputs="pruned")
    prunus.prune(Transformer(2, 8).eval(), recipe, 0.5, data=data[:1], blocks="auto")  # warm
    return model, data, recipe, "auto" if scoped else None


def held(pruned: Any) -> int:
    """Bytes of what the answer holds: the model, the layers' weights, the masks."""
    tensors = [*pruned.model.state_dict().values(), *pruned.masks.values()]
    for result in pruned.layers.values():
        tensors += [t for t in (result.weight, result.mask, result.bias) if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors)


def work(
    model: nn.Module, data: list[Tensor], recipe: Any, blocks: str | None
) -> tuple[int, int, int]:
    """Prune; bytes of the model, of the answer, and the most of live statistics and inputs."""
    from prunus.engine import sweep

    most = [0]
    collect = sweep.scope_layers

    def seen(*args: Any, **options: Any) -> Any:
        found = collect(*args, **options)
        gc.collect()
        tensors = {
            id(t.untyped_storage()): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is Tensor and (t.dtype == torch.float64 or len(data[0]) in t.shape[:1])
        }
        most[0] = max(most[0], sum(tensors.values()))
        return found

    if blocks is None:
        recipe = replace(recipe, inputs="dense")  # all statistics at once
    sweep.scope_layers = seen
    try:
        pruned = prunus.prune(model, recipe, 0.5, data=data, blocks=blocks, progress=False)
    finally:
        sweep.scope_layers = collect
    own = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return own, held(pruned), most[0]


def memory(small: bool) -> list[dict[str, Any]]:
    """Peak bytes of statistics and inputs, by number of equal blocks."""
    width, samples = (64, 64) if small else (192, 128)
    records = []
    for scoped in (True, False):
        for blocks in (2, 4) if small else (6, 12, 24):
            peak, spent, (own, answer, live) = peak_of(
                prepare, work, blocks, width, samples, scoped
            )
            # the copy of the dense network is a model too
            record = {
                "blocks": blocks, "scopes": "auto" if scoped else "whole model",
                "peak_bytes": peak, "model_bytes": own, "answer_bytes": answer,
                "beyond_bytes": peak - answer - own,
                "statistics_and_inputs_bytes": live or None, "seconds": spent,
            }  # fmt: skip
            records.append(record)
            print(record, flush=True)
    return records


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="*", default=["depth", "memory"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results" / "scopes.json"
    results = json.loads(path.read_text()) if path.exists() and not options.small else {}
    results.update(versions=versions(), host=host_facts())
    if "depth" in options.parts:
        results["depth"] = depth(options.small)
        points = [
            {
                "series": f"{r['recipe']}, {inputs} inputs", "kind": "measured",
                "layers": r["layers"], "seconds": seconds,
            }
            for r in results["depth"]
            for inputs, seconds in r["seconds"].items()
        ]  # fmt: skip
        chart = figure(
            points, x="layers", y="seconds", x_title="linear layers",
            y_title="processor seconds of a pruning", x_scale="log", y_scale="log",
            title="Dense and sequential calibration against depth",
        )  # fmt: skip
        if not options.small:
            save_figure(chart, HERE / "results" / "scopes-depth", points)
    if "memory" in options.parts:
        results["memory"] = memory(options.small)
    if not options.small:
        write_text(path, json.dumps(results, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
