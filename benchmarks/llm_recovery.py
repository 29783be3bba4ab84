"""What training gives back to a pruned folder: perplexity of tiny-llama before and after.

The trained network is saved as a folder and pruned by Wanda to 30 % of its blocks' weights. Each
way then has the same 150 steps of 8 windows of 96 tokens of the training pages, at a rate that
falls from its highest along a half cosine, AdamW: all weights with zeros held by `hold_folder`, by
the text or by the dense folder's answers (`distillation`), and LoRA adapters of rank 8, merged so
that zeros stay zeros, without and with a refit on the calibration windows. Perplexity is that of
the test pages, window = stride = 96. Rows are kept as they come; what has one is not run again.

    python benchmarks/llm_recovery.py [--small]
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.bench.data.cache import trained
from prunus.bench.data.language import python_text, save_folder, score
from prunus.bench.data.tasks import task
from prunus.files import write_text
from prunus.folder import folder_masks, hold_folder, prune_folder
from prunus.host import host_facts, versions
from prunus.integrations import merge_adapters
from prunus.training import distillation

HERE = Path(__file__).resolve().parent
RECIPE, DENSITY, STEPS, BATCH, SEEDS = "wanda", 0.3, 150, 8, 3
RATES = {"weights": 1e-3, "distilled": 1e-3, "lora": 3e-3}


def loaded(folder: Path) -> nn.Module:
    """The network of a folder."""
    from transformers import AutoModelForCausalLM

    found: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return found.eval()


def windows(steps: int, seed: int) -> Iterator[Tensor]:
    """The same batches for every way of training."""
    data = python_text()
    tokens, length = data.x_train.flatten(), data.x_train.shape[1]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length + 1, (BATCH,), generator=generator)
        yield torch.stack([tokens[s : s + length] for s in starts.tolist()])


def next_token(output: Any, rows: Tensor) -> Tensor:
    """Cross-entropy of the next token."""
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def learn(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], rate: float, steps: int, seed: int,
    held: Callable[[torch.optim.Optimizer], Any],
) -> None:  # fmt: skip
    """Train what asks for gradients."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    with held(optimizer):
        for rows in windows(steps, seed):
            value = loss(model(rows, use_cache=False), rows)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def zeros_kept(model: nn.Module, pruned: Path) -> bool:
    """Whether no zero of the folder was filled."""
    masks = folder_masks(loaded(pruned), pruned)
    known = dict(model.named_parameters())
    return all(not bool(known[name][~mask].any()) for name, mask in masks.items())


def perplexity(model: nn.Module) -> float:
    """On the test pages."""
    return score(model, python_text())["perplexity"]


def by_weights(dense: Path, pruned: Path, steps: int, seed: int) -> dict[str, Any]:
    """All weights, by the text."""
    model = loaded(pruned)
    learn(model, next_token, RATES["weights"], steps, seed, lambda o: hold_folder(model, pruned, o))
    return {"after": perplexity(model), "zeros kept": zeros_kept(model, pruned)}


def by_answers(dense: Path, pruned: Path, steps: int, seed: int) -> dict[str, Any]:
    """All weights, by the dense network's answers and the text alike."""
    model = loaded(pruned)
    loss = distillation(loaded(dense), temperature=1.0, weight=0.5, loss=next_token)
    learn(model, loss, RATES["distilled"], steps, seed, lambda o: hold_folder(model, pruned, o))
    return {"after": perplexity(model), "zeros kept": zeros_kept(model, pruned)}


def by_adapters(dense: Path, pruned: Path, steps: int, seed: int) -> dict[str, Any]:
    """LoRA of rank 8 on all layers of the blocks, merged into the zeros in two ways."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=names)
    model: Any = get_peft_model(loaded(pruned), config)  # type: ignore[arg-type]
    learn(model, next_token, RATES["lora"], steps, seed, lambda o: nullcontext())
    data = list(python_text().x_train[:128].split(16))
    dropped, refitted = merge_adapters(model), merge_adapters(model, data=data)
    return {
        "before the merge": perplexity(model),
        "merged, dropped": perplexity(dropped.model),
        "after": perplexity(refitted.model),
        "zeros kept": all(zeros_kept(m.model, pruned) for m in (dropped, refitted)),
    }


WAYS = {"all weights": by_weights, "distilled": by_answers, "LoRA, rank 8": by_adapters}


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results" / "llm_recovery.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() and not options.small else []
    done = {(row["way"], row["seed"]) for row in rows}
    steps, seeds = (2, 1) if options.small else (STEPS, SEEDS)
    with tempfile.TemporaryDirectory() as name:
        dense, pruned = Path(name) / "dense", Path(name) / "pruned"
        save_folder(trained(task("tiny-llama"), python_text(), seed=0).model, dense)
        prune_folder(
            dense, pruned, RECIPE, DENSITY, data=list(python_text().x_train[:128].split(16))
        )
        before = {"dense": perplexity(loaded(dense)), "pruned": perplexity(loaded(pruned))}
        for seed in range(seeds):
            for way, run in WAYS.items():
                if (way, seed) in done:
                    continue
                rows.append({"way": way, "seed": seed, **before, **run(dense, pruned, steps, seed)})
                print(rows[-1], flush=True)
                if not options.small:
                    facts = {
                        "recipe": RECIPE, "density": DENSITY, "steps": STEPS, "rates": RATES,
                        "rows": rows, "versions": versions(), "host": host_facts(),
                    }  # fmt: skip
                    write_text(path, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
