"""From a planning problem to the plan that is handed out: solved, verified, in words."""

from collections.abc import Callable, Mapping

from prunus.budget import Plan
from prunus.guarantee.criteria import Outputs
from prunus.guarantee.family import Family
from prunus.guarantee.solve import Choice, Problem, careful_first, in_order, least_error, solve
from prunus.rows import RowSet
from prunus.theory.gap.held_out import clopper_pearson, sample_size_for_quantile

__all__ = ["planned", "verified"]


def planned(
    problem: Problem,
    limit: float,
    kind: str,
    unit: float,
    density: float | None,
    notes: tuple[str, ...],
    rows: RowSet,
    check: Callable[[Mapping[str, int]], None] | None = None,
) -> Plan:
    """The cheapest plan within a limit, with its exact value.

    Args:
        problem: options, errors and exact values.
        limit: in units of `unit`.
        kind: what the limit bounds.
        unit: what a limit of 1 stands for.
        density: the plan may keep this share at most, or None.
        notes: to stand with the plan.
        rows: samples that planned.
        check: raises an error where the planned networks exceed the bound.
    """
    choice = solve(problem, limit * unit)
    if kind == "predicted":
        notes += ("a prediction from the planning data: certify on fresh data",)
    if kind == "mean_square":
        notes += ("a bound on the planning data; fresh data need a held-out statement",)
    return _answer(
        problem, choice, limit, kind, density, notes, rows,
        lambda c: problem.value(c) / unit, check,
    )  # fmt: skip


def verified(
    problem: Problem,
    family: Family,
    fresh: Outputs,
    limit: float,
    delta: float,
    density: float | None,
    notes: tuple[str, ...],
    rows: RowSet,
) -> Plan:
    """The deepest plan whose changed predictions are within a limit on samples that did not plan.

    Args:
        problem: options, errors and exact values, of the planning samples.
        family: the pruned networks.
        fresh: outputs of the dense network on the verifying samples.
        limit: share of changed predictions.
        delta: failure probability over the verifying samples.
        density: the plan may keep this share at most, or None.
        notes: to stand with the plan.
        rows: samples that planned or verified.
    """

    def test(kept: Mapping[str, int]) -> float:
        return clopper_pearson(fresh.changed(family.network(kept)), fresh.samples, delta)

    needed = sample_size_for_quantile(1 - limit, delta) if 0 < limit < 1 else 1
    choice: Choice = (0,) * len(problem.kept)
    if limit > 0 and fresh.samples >= needed:
        passed, _ = in_order(
            careful_first(problem, limit), limit, lambda c: test(problem.counts(c))
        )
        choice = choice if passed is None else passed
    elif limit > 0:
        notes += (
            f"{fresh.samples} samples verify, but a share of {limit:g} needs {needed} even where "
            f"none changes: give more data",
        )
    notes += (
        f"verified on {fresh.samples} samples that did not plan: the value is the Clopper-Pearson "
        f"limit for fresh data, δ = {delta:g}, if these samples did not train the network",
    )
    return _answer(
        problem, choice, limit, "changed", density, notes, rows,
        lambda c: test(problem.counts(c)) if any(c) else 0.0,
    )  # fmt: skip


def _answer(
    problem: Problem,
    choice: Choice,
    limit: float,
    kind: str,
    density: float | None,
    notes: tuple[str, ...],
    rows: RowSet,
    value: Callable[[Choice], float],
    check: Callable[[Mapping[str, int]], None] | None = None,
) -> Plan:
    """The plan as it is handed out; of least error, infeasible, where it would keep too much.

    `check` raises an error where the networks exceed the bound of the plan.
    """
    full = problem.total((0,) * len(problem.kept))
    feasible = density is None or problem.total(choice) <= density * full * (1 + 1e-12)
    if not feasible:
        assert density is not None
        choice = least_error(problem, density * full)
        notes += (
            f"no plan that keeps at most {density:g} of the weights meets the limit; this one has "
            f"the least error at that density",
        )
    elif not any(choice):
        notes += ("no pruning of the grid meets the limit: nothing is pruned",)
    if check is not None:
        check(problem.counts(choice))
    return Plan(
        kept=problem.counts(choice),
        density=problem.total(choice) / full,
        limit=limit,
        kind=kind,
        value=value(choice),
        feasible=feasible,
        notes=notes,
        rows=rows,
    )
