"""Teacher–student theory: times against a plain quadruple loop and against stated targets.

    python benchmarks/teacher_student.py [--small]

Times are processor seconds of one thread (set OMP_NUM_THREADS=1), the smallest of several runs.
The peer evaluates the learning equations as literal sums over all three- and four-point averages,
from their definition (tests/reference/teacher_student.py).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from prunus.dpp import KDPP
from prunus.files import write_text
from prunus.theory import teacher_student as ts
from prunus.theory.teacher_student.activation import ACTIVATIONS
from prunus.theory.teacher_student.ode import learning_rhs
from prunus.theory.teacher_student.order import as_arrays

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import teacher_student as plain

RESULTS = Path(__file__).parent / "results" / "teacher_student.json"


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Processor time of one call, the smallest of `repeats`."""
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def order_of(students: int, teachers: int, inputs: int = 500) -> ts.OrderParameters:
    generator = torch.Generator().manual_seed(students)
    weights = ts.random_weights(students, teachers, inputs, generator=generator)
    return ts.order_parameters(weights)


def right_hand_side(order: ts.OrderParameters) -> Callable[[], object]:
    covariance, readout, students = as_arrays(order)
    erf = ACTIVATIONS["erf"]
    return lambda: learning_rhs(
        covariance, readout, students, rate=0.5, readout_rate=0.5, noise=0.25, activation=erf
    )


def fresh_process() -> float:
    """Processor seconds of a new interpreter that answers `rank_methods`, imports included."""
    code = (
        "from prunus.theory.teacher_student import rank_methods;rank_methods(K=6, M=2, noise=0.25)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(small: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def add(name: str, value: float, target: float) -> None:
        rows.append({"what": name, "seconds": value, "target": target, "met": value <= target})
        print(f"{name:<58} {value:10.4g} s   target {target:g} s")

    targets = {(6, 2): 0.3e-3, (20, 4): 3e-3, (50, 10): 60e-3, (50, 50): 150e-3}
    for (students, teachers), target in targets.items():
        call = right_hand_side(order_of(students, teachers))
        add(f"right-hand side, K = {students}, M = {teachers}", seconds(call, 20), target)

    order = order_of(6, 2)
    covariance, readout, students = as_arrays(order)
    fast = right_hand_side(order)
    slow = seconds(
        lambda: plain.learning_rhs(covariance, readout, students, 0.5, 0.5, 0.25), 2 if small else 5
    )
    quick = seconds(lambda: [fast() for _ in range(50)], 5) / 50
    wanted = plain.learning_rhs(covariance, readout, students, 0.5, 0.5, 0.25)
    found = learning_rhs(
        covariance, readout, students, rate=0.5, readout_rate=0.5, noise=0.25,
        activation=ACTIVATIONS["erf"],
    )  # fmt: skip
    difference = float(np.abs(found.Q - wanted[0]).max())
    rows.append({"what": "quadruple loop", "seconds": slow, "ratio": slow / quick})
    print(
        f"plain quadruple loop, K = 6, M = 2: {slow:.4g} s, {slow / quick:.0f} times the "
        f"vectorised {quick:.3g} s (target 100); results differ by {difference:.1e}"
    )

    for noise in (0.0, 0.25):
        curve = lambda noise=noise: ts.solve(order, until=1600, noise=noise)  # noqa: E731
        add(f"learning curve, K = 6, M = 2, alpha = 1600, sigma = {noise}", seconds(curve, 2), 0.5)

    steps = 40_000 if small else 800_000
    start = ts.random_weights(6, 2, 500, generator=torch.Generator().manual_seed(0))
    begun = time.process_time()
    ts.simulate(start, until=steps / 500, generator=torch.Generator().manual_seed(1), noise=0.25)
    taken = time.process_time() - begun
    add(f"simulation, N = 500, K = 6, {steps} steps", taken, 40 * steps / 800_000)

    wide = order_of(50, 10)
    for rule, target in (("random", 0.3e-3), ("magnitude", 2e-3), ("dpp", 25e-3)):
        moments = ts.edge_moments(rule, 0.3)
        call = lambda moments=moments: ts.prune_edges(wide, moments)  # noqa: E731
        # The check of the result (an eigendecomposition) is not part of the formula's target.
        add(f"{rule} edge, K = 50 (with checks)", seconds(call, 10), target)
    kernel = wide.Q
    add(
        "k-DPP pair inclusion, K = 50, k = 25",
        seconds(lambda: KDPP(kernel).pair_inclusion(25), 3),
        100e-3,
    )

    patterns = ts.random_patterns(order, 0.5)
    add(
        "masked retraining, K = 6, M = 2, alpha = 200",
        seconds(lambda: ts.retrain(patterns, until=200, noise=0.25), 1),
        1.0,
    )
    add("rank_methods(K=6, M=2, noise=0.25), fresh process", fresh_process(), 5.0)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a twentieth of the simulation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.small)
    if not arguments.small:
        write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
        print(RESULTS)


if __name__ == "__main__":
    main()
