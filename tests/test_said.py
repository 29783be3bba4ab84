"""What pages and advice say of LeNet-300-100 is what the kept records show."""

import itertools
import json
import re
import statistics
from pathlib import Path

from prunus.bench.statistics.intervals import paired
from prunus.presets import ADVICE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table_of(page: str, title: str) -> dict[str, list[str]]:
    """{name in the first cell: the numbers of its line} of the table under a title."""
    lines = (ROOT / "docs" / page).read_text().replace("−", "-").partition(title)[2].splitlines()
    found = {}
    for line in itertools.takewhile(lambda own: own.startswith("|"), lines[2:]):
        name, *cells = line.strip("|").split("|")
        found[name.strip(" `")] = re.findall(r"-?[0-9]+\.[0-9]+", " ".join(cells))
    assert len(found) > 1
    return found


def test_what_is_said_of_lenet_is_what_was_recorded():
    """Every number of both tables, from the records; the advice quotes the same."""

    def errors(folder: str) -> dict[tuple[str, str], dict[int, float]]:
        found: dict[tuple[str, str], dict[int, float]] = {}
        for line in (RESULTS / folder / "records.jsonl").read_text().splitlines():
            row = json.loads(line)
            kind = (row["recipe"], row["schedule"])
            found.setdefault(kind, {})[row["seed"]] = 100 * row["after"]["test_error"]
        assert {len(own) for own in found.values()} == {5}
        return found

    def mean(own: dict[int, float]) -> str:
        return f"{statistics.mean(own.values()):.2f}"

    edges = errors("mnist_lenet300_edges") | errors("mnist_lenet300_obs")
    for name, numbers in table_of("second_order.md", "| a tenth of").items():
        kinds = [(own, s) for s in ("none", "Refine(rounds=5)") for own in (name, f"{name}+ls")]
        if name.startswith("obs-global"):
            kinds = [(own, "none") for own in ("obs-global without ls", "obs-global")]
        assert numbers == [mean(edges[kind]) for kind in kinds if kind in edges] != []
    nodes = errors("mnist_lenet300_nodes")
    for name, numbers in table_of("second_order.md", "| a quarter of").items():
        pair = nodes[name, "none"], nodes[f"{name}+ls", "none"]
        expected = [mean(own) for own in pair]
        if name != "random-node":
            gap = paired(pair[1], nodes["random-node+ls", "none"])
            expected += [f"{gap[key]:.2f}" for key in ("mean", "low", "high")]
        assert numbers == expected
    said = " ".join(ADVICE)
    rounds = "Refine(rounds=5)"
    for own in (
        edges["obs-global", "none"],
        edges["obs", "none"],
        edges["magnitude-global+ls", "none"], edges["gap-gradient+ls", rounds],
        edges["obd+ls", rounds], *(nodes[f"{n}+ls", "none"] for n in ("obs-node", "apoz")),
    ):  # fmt: skip
        assert mean(own) in said[said.index("on LeNet-300-100 (dense") :]


def test_what_is_said_of_methods_inside_training_is_what_was_recorded():
    """The advice, and the page's means and differences with their intervals."""
    lines = (RESULTS / "mnist_lenet300_training" / "records.jsonl").read_text().splitlines()
    errors: dict[str, dict[int, float]] = {}
    for row in map(json.loads, lines):
        if row["recipe"] == "random-edge":  # the lottery's
            continue
        errors.setdefault(row["recipe"], {})[row["seed"]] = 100 * row["retrained"]["test_error"]
    means = {name: statistics.mean(own.values()) for name, own in errors.items()}
    assert {len(own) for own in errors.values()} == {5}
    said = " ".join(ADVICE)
    order = ("gradual", "lottery", "rigl", "set", "gradual-layer", "static")
    assert re.findall(r"[0-9.]+", said[said.index("errs by") :])[:7] == [
        f"{means['gradual']:.2f}",
        "1.56",
        *(f"{means[name]:.2f}" for name in order[1:]),
    ]
    page = (ROOT / "docs" / "prune_while_you_train.md").read_text().replace("−", "-")
    for name in order[:-1]:
        gap = paired(errors[name], errors["static"])
        [line] = re.findall(rf"^\| {name}[,a-z ]* \| [0-9.]+ \| -.*\|$", page, re.MULTILINE)[:1]
        assert re.findall(r"-?[0-9.]+", line) == [
            f"{value:.2f}" for value in (means[name], gap["mean"], gap["low"], gap["high"])
        ]


def test_what_is_said_of_methods_on_the_digits_is_what_was_recorded():
    lines = (RESULTS / "inside_training.jsonl").read_text().splitlines()
    errors: dict[tuple[str, float], dict[int, float]] = {}
    for row in map(json.loads, lines):
        own = errors.setdefault((row["method"], row["density"]), {})
        assert row["seed"] not in own
        own[row["seed"]] = 100 * row["test_error"]
    assert {len(own) for own in errors.values()} == {5}
    table = table_of("prune_while_you_train.md", "one of them is 0.22 points):\n\n")
    assert set(table) == {method for method, _ in errors}
    for method, said in table.items():
        found = []
        for density in (0.2, 0.1, 0.05):
            own = errors[method, 0.2 if method == "dense" else density]
            found += [statistics.mean(own.values()), min(own.values()), max(own.values())]
        assert said == [f"{value:.2f}" for value in found]
    page = (ROOT / "docs" / "prune_while_you_train.md").read_text()
    for one, other in (
        ("rigl", "static random"), ("gradual", "static random"), ("set", "static random"),
        ("gradual", "static in gradual's layers"), ("gradual", "one shot at half time"),
        ("static random", "gradual-layer"),
    ):  # fmt: skip
        gap = paired(errors[other, 0.05], errors[one, 0.05])
        assert f"{gap['mean']:.2f} ({gap['low']:.2f} to {gap['high']:.2f})" in page
    best = ("rigl", "gradual", "set")
    a, b, c = (f"{name} ({table[name][6]})" for name in best)
    assert f"(dense {table['dense'][0]}) at 5 % {a}, {b} and {c} are not" in " ".join(ADVICE)
    assert f"random masks err by {table['static random'][6]}." in " ".join(ADVICE)
    for one, other in itertools.combinations(best, 2):
        gap = paired(errors[other, 0.05], errors[one, 0.05])
        assert gap["low"] < 0 < gap["high"]
    for method in set(table) - {"static random"}:
        gap = paired(errors[method, 0.2], errors["static random", 0.2])
        assert (gap["low"] > 0) == (method == "soft (global)")
        assert gap["high"] > 0


def test_what_is_said_of_distillation_is_what_was_recorded():
    lines = (RESULTS / "digits_distil" / "records.jsonl").read_text().splitlines()
    scores: dict[tuple[str, bool], dict[int, dict[str, float]]] = {}
    for row in map(json.loads, lines):
        kind = (row["task"], bool(row["extra"]["settings"].get("distil")))
        scores.setdefault(kind, {})[row["seed"]] = row["after"]
    assert {len(own) for own in scores.values()} == {5}
    page = " ".join((ROOT / "docs" / "prune_while_you_train.md").read_text().split())

    def of(task: str, distilled: bool, key: str) -> dict[int, float]:
        by = 100 if key == "test_error" else 1
        return {seed: by * own[key] for seed, own in scores[task, distilled].items()}

    for task, words in (
        ("digits-mlp", "MLP errs by {} % with it and {} without, {} points more ({} to {})"),
        ("digits-cnn", "CNN by {} and {}, {} points more ({} to {}), not told apart"),
    ):
        having, lacking = (of(task, d, "test_error") for d in (True, False))
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        numbers = [*means, gap["mean"], gap["low"], gap["high"]]
        assert words.format(*(f"{value:.2f}" for value in numbers)) in page
        having, lacking = (of(task, d, "cross_entropy") for d in (True, False))
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        assert "{:.3f} from {:.3f}".format(*means) in page
        assert gap["low"] < 0 < gap["high"]


def test_what_is_said_of_distillation_on_mnist_is_what_was_recorded():
    rows = {}
    for folder in ("mnist_lenet300_distil", "mnist_lenet300_training"):
        lines = map(json.loads, (RESULTS / folder / "records.jsonl").read_text().splitlines())
        own = [row for row in lines if row["recipe"] == "gradual"]
        rows[folder] = {row["seed"]: row for row in own}
        assert len(own) == len(rows[folder]) == 5
    distilled, plain = rows.values()
    for seed, row in distilled.items():  # all else alike
        settings, other = row["extra"]["settings"], plain[seed]["extra"]["settings"]
        assert settings == {**other, "distil": [4.0, 0.9]}
        assert (row["schedule"], row["budget"]) == (plain[seed]["schedule"], plain[seed]["budget"])
    page = " ".join((ROOT / "docs" / "prune_while_you_train.md").read_text().split())
    for key, by, words in (
        ("test_error", 100, "errs by {:.2f} % with it and {:.2f} without, {:.2f} points more "
         "({:.2f} to {:.2f})"),
        ("cross_entropy", 1, "cross-entropy rises, {:.3f} from {:.3f}"),
    ):  # fmt: skip
        having, lacking = (
            {seed: by * row["retrained"][key] for seed, row in own.items()}
            for own in (distilled, plain)
        )
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        assert words.format(*means, gap["mean"], gap["low"], gap["high"]) in page
        assert gap["low"] > 0
