"""What the options --density, --budget, --plan and --drop ask for."""

from pathlib import Path
from typing import Any

from prunus.cli.options import number

__all__ = ["one_of", "target"]

BUDGETS = ("density", "parameters", "macs", "bytes", "compressed", "latency", "gap")


def target(
    density: list[str] | None,
    budget: str | None = None,
    plan: Path | None = None,
    drop: str | None = None,
    *,
    example: Any = None,
    kind: str | None = None,
    delta: float | None = None,
    metric: str | None = None,
    higher: bool | None = None,
) -> Any:
    """A density, {glob: density}, Budget or Plan from the options; None where there are none.

    Args:
        density: one number, or GLOB=NUMBER each.
        budget: NAME=NUMBER.
        plan: a file.
        drop: how much worse the metric may be.
        example: the input whose latency counts, where there are data.
        kind: of a gap; "predicted" where None.
        delta: of a gap; 0.05 where None.
        metric: of a drop.
        higher: of a drop: whether a larger metric is better; None where pruning shall tell.

    Raises:
        ValueError: two of them, or one that cannot be read.
        FileNotFoundError: no such plan.
    """
    from prunus.budget import Budget, Plan
    from prunus.reading import text_of

    one_of(density, budget, plan, drop)
    if metric is not None and drop is None:
        raise ValueError("--metric belongs to --drop, how much worse it may be.")
    of_gap = {key: v for key, v in (("kind", kind), ("delta", delta)) if v is not None}
    if of_gap and not (budget or "").startswith("gap="):
        raise ValueError("--kind and --delta belong to --budget gap=LIMIT, a bound on the outputs.")
    if plan is not None:
        if not plan.is_file():
            raise FileNotFoundError(f"No plan at {plan}. Write one with prunus plan --out.")
        return Plan.from_json(text_of(plan), f"--plan {plan}")
    if drop is not None:
        return Budget(metric=metric, drop=number("--drop", drop), higher_is_better=higher)
    if budget is not None:
        return _budget(budget, example, of_gap)
    return _densities(density) if density else None


def one_of(
    density: list[str] | None, budget: str | None, plan: Path | None, drop: str | None
) -> None:
    """Raise a ValueError where more than one of them is given."""
    given = {"--density": density, "--budget": budget, "--plan": plan, "--drop": drop}
    named = [option for option, value in given.items() if value]
    if len(named) > 1:
        raise ValueError(f"Give {' or '.join(named)}, not both.")


def _budget(text: str, example: Any, of_gap: dict[str, Any]) -> Any:
    from prunus.budget import Budget
    from prunus.check import unknown

    name, _, value = text.partition("=")
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    amount = number(f"--budget {name}", value)
    if name == "latency":
        if example is None:
            raise ValueError("--budget latency needs --data: the first batch is timed.")
        return Budget(latency=amount, example=example)
    if name == "density":
        return Budget(density=amount)
    if name == "gap":
        return Budget(gap=amount, **of_gap)
    if not amount.is_integer() or "%" in value:
        raise ValueError(f"--budget {name} must be a whole number >= 1, got {value!r}.")
    if name == "compressed":
        return Budget(bytes=int(amount), coder="compressed")
    whole: dict[str, Any] = {name: int(amount)}
    return Budget(**whole)


def _densities(texts: list[str]) -> Any:
    pairs = [text.rpartition("=") for text in texts]
    if len(pairs) == 1 and not pairs[0][1]:
        return number("--density", texts[0])
    if any(not glob for glob, _, _ in pairs):
        raise ValueError(
            f"--density must be one number, or GLOB=VALUE each time, got {' '.join(texts)}."
        )
    return {glob: number("--density", value) for glob, _, value in pairs}
