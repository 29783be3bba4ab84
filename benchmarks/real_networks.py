"""Networks as people have them: what prunus and Torch-Pruning 1.6.1 make of each.

Every network runs in a process of its own with limited processor time, once for each library.
Both remove about 40 % of the units. "works": the smaller network runs, and equals the one whose
removed units are zero; "wrong": it runs and does not; "crashes", "hangs": as it says; "nothing": no
unit was found, with the reason where one is given. Torch-Pruning is given what its documentation
and examples give it: which layers make queries, keys and values, the numbers of heads, the last
layer as one to leave alone, what of the output to differentiate, and after pruning the attributes
of attention modules are set. Where that fails it is called in the other ways of `WAYS` too, and the
best outcome counts. It also prunes channels over which a norm takes its statistics; there nothing
can be equal, so it is judged on a second run without those groups, and "inexact" stands where it
has no others.

    pip install --target FOLDER --no-deps torch-pruning==1.6.1
    python benchmarks/real_networks.py --peer FOLDER
"""

import argparse
import copy
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from peer_networks import halves_of, heads_of, own_pruners, set_attributes

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LIMIT = 20  # processor seconds of one network and library, without imports
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "src")]


def quiet() -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    except ImportError:
        pass


def ours(name: str) -> dict[str, Any]:
    """What prunus makes of a network."""
    from real_checks import judge
    from real_networks import build

    model, examples = build(name)
    begun = time.process_time()
    found = judge(model, examples)
    verdict = "nothing" if found.refusal else "works"
    if found.wrong or any(change > 1e-4 for change in found.change):
        verdict = "wrong"
    return {
        "verdict": verdict,
        "groups": found.groups,
        "removed": found.removed,
        "probed": found.probed,
        "change": max(found.change, default=None),
        "parameters": found.parameters,
        "reasons": dict(found.reasons),
        "refusal": found.refusal,
        "seconds": time.process_time() - begun,
    }


# How the peer is called, in this order, until it works.
WAYS: dict[str, dict[str, Any]] = {
    "as in its examples": {},
    "attention left alone": {"alone": True},
    "heads' dimensions pruned": {"dims": True},
    "channels under norms left alone": {"exact_only": True},
    "attention and channels under norms left alone": {"alone": True, "exact_only": True},
    **{f"round_to={n}": {"round_to": n} for n in (2, 4)},
}
BEST = ("works", "inexact", "wrong")  # else what came of the first way counts


def logits(output: Any) -> Any:
    """What of an output the peer's graph is built from."""
    from prunus.scopes.trees import tensors_of

    return getattr(output, "logits", None) if hasattr(output, "logits") else tensors_of(output)[0]


def peers(
    name: str,
    *,
    alone: bool = False,
    dims: bool = False,
    exact_only: bool = False,
    round_to: int | None = None,
) -> dict[str, Any]:
    """What Torch-Pruning makes of the same network, its groups one after the other.

    Args:
        name: of the network.
        alone: ignore the layers that make queries, keys and values.
        dims: prune dimensions of heads and not heads, its default.
        exact_only: leave groups out that change what norms take their statistics over.
        round_to: see there.
    """
    import torch
    import torch_pruning as tp
    from torch import nn

    from prunus.inputs import arguments
    from real_checks import compared, size
    from real_networks import build

    begun = time.process_time()
    found: dict[str, Any] = {}
    for exact in (True,) if exact_only else (False, True):
        model, examples = build(name)
        if hasattr(getattr(model, "config", None), "use_cache"):
            model.config.use_cache = False
        args, keywords = arguments(examples[0])
        dense = copy.deepcopy(model)
        last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
        heads = heads_of(model)
        given: dict[str, Any] = {"num_heads": heads}
        if alone:
            last += list(heads)
        elif not dims:
            given |= {
                "prune_num_heads": True, "head_pruning_ratio": 0.5,
                "prune_head_dims": False,  # they would change what the attributes say
            }  # fmt: skip
        pruner = tp.pruner.BasePruner(
            model, keywords or args[0], importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.4, ignored_layers=last, round_to=round_to, output_transform=logits,
            in_channel_groups={}, out_channel_groups=halves_of(model),
            customized_pruners=own_pruners(model), **(given if heads else {}),
        )  # fmt: skip
        names = {module: key for key, module in model.named_modules()}
        norms = parts_of_norms(model)
        zeroed = 0
        for group in pruner.step(interactive=True):
            if exact and any(id(item.dep.target.module) in norms for item in group):
                continue
            for item in group:
                zeroed += zero(
                    dense, names.get(item.dep.target.module), item.dep.handler.__name__, item.idxs
                )
            group.prune()
        set_attributes(model)
        with torch.no_grad():
            change = max(compared(dense, model, batch) for batch in examples)
        if not exact:
            found = {"parameters": (size(dense), size(model)), "change_with_norms": change}
        else:
            found["change"] = change
            found["parameters_exact"] = size(model)
            found["verdict"] = "wrong" if change > 1e-4 else "works" if zeroed else "inexact"
        if size(dense) == size(model) and (exact_only or not exact):
            found["verdict"] = "nothing"
            break
    return {**found, "seconds": time.process_time() - begun}


def parts_of_norms(model: Any) -> set[int]:
    """Norms over channels, and their parameters, which the peer prunes where it knows no class.

    A group that prunes one changes its statistics, so that nothing can be equal.
    """
    from torch import nn

    found: set[int] = set()
    for module in model.modules():
        name = type(module).__name__
        if "Norm" in name and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            found |= {id(module), *(id(p) for p in module.parameters())}
        if name == "SwinPatchMerging":
            found.add(id(module))  # it holds one
    return found


def zero(dense: Any, name: str | None, fn: str, idxs: Any) -> int:
    """Zero in the dense network what a group takes out of one of its modules."""
    import torch
    from torch import nn

    if name is None:
        return 0
    module = dense.get_submodule(name)
    weight = getattr(module, "weight", None)
    if weight is None or isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 0
    with torch.no_grad():
        if fn == "prune_in_channels" and weight.ndim > 1 and getattr(module, "groups", 1) == 1:
            into = 0 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
            weight.movedim(into, 0)[list(idxs)] = 0  # consumers are enough: nobody reads the rest
            return len(idxs)
    return 0


def in_every_way(name: str) -> dict[str, Any]:
    """The peer's best outcome, in which way it came, and what the other ways gave."""
    tried: dict[str, dict[str, Any]] = {}
    for way, options in WAYS.items():
        heads = any(key in options for key in ("alone", "dims"))
        if heads and not tried_heads(name):
            continue
        if options.get("exact_only") and tried[next(iter(tried))]["verdict"] != "crashes":
            continue
        tried[way] = guarded(name, "peer", options)
        if tried[way]["verdict"] == "works" or (
            tried[way]["verdict"] == "hangs" and "alone" in options
        ):
            break
    ran = [way for way in tried if tried[way]["verdict"] in BEST] or [next(iter(tried))]
    way = min(
        ran, key=lambda known: [*BEST, tried[known]["verdict"]].index(tried[known]["verdict"])
    )
    rest = {key: f"{v['verdict']}: {v.get('error', '')}" for key, v in tried.items() if key != way}
    return {**tried[way], "way": way, "others": rest}


def tried_heads(name: str) -> bool:
    """Whether the network has attention whose heads the peer can be told."""
    from real_networks import build

    return bool(heads_of(build(name)[0]))


def guarded(name: str, side: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """One network and library in a forked process, with a limit on its processor time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
        try:
            found = ours(name) if side == "ours" else peers(name, **(options or {}))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found = {"verdict": "crashes", "error": f"{type(error).__name__}: {lines[0][:200]}"}
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(found))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        cause = os.WTERMSIG(status)
        hung = cause in (signal.SIGXCPU, signal.SIGKILL)
        return {"verdict": "hangs", "seconds": LIMIT} if hung else {
            "verdict": "crashes", "error": f"signal {cause}"}  # fmt: skip
    result: dict[str, Any] = json.loads(said)
    return result


def units(row: dict[str, Any]) -> str:
    """What of a network prunus removed, in words."""
    names = row.get("removed") or {}
    if not names:
        return row.get("refusal", "").partition(". ")[0] or row.get("error", "")
    heads = [
        n
        for n in names
        if row["groups"][n] <= 4 and any(k in n.lower() for k in ("att", "q_", "qkv"))
    ]
    other = len(names) - len(heads)
    return ", ".join(
        [f"heads in {len(heads)} groups"] * bool(heads)
        + [f"channels in {other} groups"] * bool(other)
    )


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| network | prunus | what it removed | classes probed | compact = masked | parameters | "
        "Torch-Pruning 1.6.1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        own, peer = row["ours"], row["peer"]
        change = "–" if own.get("change") is None else f"{own['change']:.0e}"
        counts = own.get("parameters") or (0, 0)
        said = peer["verdict"]
        if peer.get("way", "as in its examples") != "as in its examples":
            said += f" ({peer['way']})"
        if "error" in peer:
            said += f": `{peer['error'][:70]}`".replace("|", "/")
        elif peer["verdict"] == "wrong":
            said += f", outputs differ by {peer['change']:.0e}"
        lines.append(
            f"| {row['network']} | {own['verdict']} | {units(own)} | {own.get('probed', '–')} | "
            f"{change} | {counts[0]:,} → {counts[1]:,} | {said} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="Folder that holds torch_pruning.")
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_networks.json")
    parser.add_argument("--resume", action="store_true", help="Keep the rows that --out holds.")
    options = parser.parse_args()
    sys.path.append(str(options.peer))
    quiet()
    from importlib.metadata import distributions

    import torch_pruning  # noqa: F401 once, before the processes part

    from prunus.host import versions
    from real_networks import SECTION_0

    (peer,) = (d.version for d in distributions(path=[str(options.peer)])
               if d.name == "torch-pruning")  # fmt: skip
    rows = json.loads(options.out.read_text())["rows"] if options.resume else []
    known = {row["network"] for row in rows}
    for name in [n for n in options.networks or SECTION_0 if n not in known]:
        row = {"network": name}
        row |= {"ours": guarded(name, "ours"), "peer": in_every_way(name)}
        rows.append(row)
        print(
            name, row["ours"]["verdict"], "|", row["peer"]["verdict"], file=sys.stderr, flush=True
        )
        rows.sort(key=lambda row: SECTION_0.index(row["network"]))
        facts = {"benchmark": "real_networks", "versions": {**versions(), "torch-pruning": peer},
                 "limit_processor_seconds": LIMIT, "rows": rows}  # fmt: skip
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(page(rows))


if __name__ == "__main__":
    main()
