"""The order of imports, the docstrings of public names, and what an import must not cost."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
# A module imports only what stands above it (docs/architecture.md).
ORDER = [
    "check", "hints", "counting", "host", "rng", "inputs", "rows", "inclusion", "ranking",
    "zeros", "squares", "means",
    "reading", "files", "progress", "cells", "notebook", "ambient", "modes", "dispatch", "shapes",
    "threads", "noise", "later", "tokens", "likelihood",
    "dpp", "theory",
    "views", "layer", "weights", "coupling", "cost", "coding", "calibration", "scopes", "parts",
    "surgery", "bases",
    "nodes", "elimination", "imitation",
    "granularity", "budget", "scores", "allocation", "selection", "compensation", "joint",
    "schedules", "courses", "recipe", "presets", "report", "guarantee", "export",
    "result", "engine", "folder", "training", "compression", "integrations",
    "bench", "reproduce", "cli",
]  # fmt: skip


def modules() -> list[str]:
    found = pkgutil.walk_packages([str(ROOT)], "prunus.")
    return [m.name for m in found if not m.name.endswith("__main__")]


def imports_of(path: Path) -> set[str]:
    """Top-level parts of prunus that a source file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("prunus."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "prunus":
            found |= {alias.name for alias in node.names if (alias.name in ORDER)}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("prunus.")}
    return found


def test_the_order_of_imports_names_what_is_there():
    there = {p.name.removesuffix(".py") for p in ROOT.iterdir() if not p.name.startswith("_")}
    assert set(ORDER) == there - {"py.typed"}
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize(
    "path",
    sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_look_up_only(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in ORDER, f"{part} has no place in the order of imports"
    later = {name for name in imports_of(path) if ORDER.index(name) > ORDER.index(part)}
    assert not later, f"{path} imports {sorted(later)}, which stand below {part}"


@pytest.mark.parametrize("name", modules())
def test_public_names_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", ["prunus", "prunus.cli", "prunus.cli.app"])
def test_cli_imports_nothing_heavy(name):
    heavy = "{'torch', 'sklearn', 'altair', 'transformers', 'scipy', 'pandas'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_pruning_without_systems_imports_no_scipy_and_no_exporter():
    """Up to half a second each, which a first call would pay for nothing."""
    code = (
        "import sys, torch; had = set(sys.modules); import prunus; "
        "prunus.prune(torch.nn.Linear(3, 2), 'wanda', 0.5, data=torch.randn(9, 3)); "
        "heavy = ('scipy', 'torch._dynamo', 'altair', 'sklearn'); "
        "print(sorted(name for name in heavy if name in set(sys.modules) - had))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
