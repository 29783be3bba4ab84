"""No two files and no two rooms import each other, as the sources say, wherever the import stands.

A room is a folder with an `__init__.py`; beside it, at the same place, stand other rooms and
files, and what a room's files import counts as imported by the room. Where two of them need one
another, a reader has to know both before either.
"""

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Imports inside functions that close a circle, each for a reason.
KNOWN = {
    # `Pruned.save` and `.reloaded` are what `save` and `load` do for a result at hand.
    ("prunus.result.value", "prunus.result.store"),
}


def named(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, *, inside: bool) -> Iterator[ast.AST]:
    """Every node of a file, those in functions only where asked."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if inside or not isinstance(child, FUNCTIONS):
            yield from statements(child, inside=inside)


def imported(path: Path, files: set[str], *, inside: bool) -> set[str]:
    """The files that a file names in its imports."""
    found = set()
    for node in statements(ast.parse(path.read_text()), inside=inside):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in files else node.module)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path} imports by dots, which this test does not follow")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & files


@cache
def graph(root: Path, inside: bool) -> dict[str, set[str]]:
    """{file: files that it imports}; the root package, which imports by name only, aside."""
    files = {named(path, root): path for path in root.rglob("*.py")}
    del files[root.name]
    return {
        name: imported(path, set(files), inside=inside) - {name} for name, path in files.items()
    }


def among(files: dict[str, set[str]], room: str) -> dict[str, set[str]]:
    """The same between what stands in a room: files, and rooms each as a whole."""

    def part(name: str) -> str:
        return name.removeprefix(f"{room}.").split(".")[0] if name.startswith(f"{room}.") else ""

    found: dict[str, set[str]] = {}
    for name, others in files.items():
        if part(name):
            known = {part(other) for other in others} - {"", part(name)}
            found.setdefault(part(name), set()).update(known)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a ring, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


ROOMS = sorted({named(path, ROOT) for path in ROOT.rglob("__init__.py")})


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_between_what_stands_in_a_room(room):
    assert circle(among(graph(ROOT, False), room)) == []


def test_no_circle_between_files():
    assert circle(graph(ROOT, False)) == []


def test_no_further_circle_through_imports_inside_functions():
    files = graph(ROOT, True)
    for name, other in KNOWN:
        assert other in files[name], f"{name} no longer imports {other}: take it off the list"
    left = {
        name: {other for other in others if (name, other) not in KNOWN}
        for name, others in files.items()
    }
    assert circle(left) == []
    assert {room: found for room in ROOMS if (found := circle(among(left, room)))} == {}


def test_circles_are_found(tmp_path):
    """A ring of files, one of rooms whose files make none, and one inside a function."""
    texts = {
        "pack/__init__.py": "",
        "pack/base.py": "import torch",
        "pack/a/__init__.py": "from pack.a.one import x",
        "pack/a/one.py": "from pack import base",
        "pack/a/two.py": "from pack.b.three import y",
        "pack/b/__init__.py": "",
        "pack/b/three.py": "import pack.base",
        "pack/b/four.py": "def f():\n    from pack.a import one",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    outside, inside = graph(tmp_path / "pack", False), graph(tmp_path / "pack", True)
    assert outside["pack.a"] == {"pack.a.one"}
    assert outside["pack.b.four"] == set()
    assert circle(outside) == circle(inside) == []
    assert circle(among(outside, "pack")) == []
    assert set(circle(among(inside, "pack"))) == {"a", "b"}
    (tmp_path / "pack/a/one.py").write_text("class C:\n    import pack.a.two")
    (tmp_path / "pack/b/three.py").write_text("from pack.a.one import x")
    graph.cache_clear()
    assert set(circle(graph(tmp_path / "pack", False))) == {
        "pack.a.one",
        "pack.a.two",
        "pack.b.three",
    }
