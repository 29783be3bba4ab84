"""The examples in docstrings run, and give what they say."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(path: Path) -> list[tuple[str, str]]:
    """Name and docstring of all that has an example in a file."""
    source = path.read_text()
    if ">>> " not in source:  # most files, which need not be parsed then
        return []
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, DOCUMENTED)]
    found = [(getattr(node, "name", path.stem), ast.get_docstring(node) or "") for node in nodes]
    return [(name, text) for name, text in found if ">>> " in text]


WITH_EXAMPLES = [path for path in sorted(ROOT.rglob("*.py")) if examples(path)]


def failures(text: str, space: dict, name: str) -> str:
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, space, name, None, 0)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_give_what_they_say(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(["prunus", *parts]))
    for name, text in examples(path):
        said = failures(text, dict(vars(module)), name)
        assert not said, said


def test_a_wrong_example_is_noticed():
    """The negative control, and that the examples are found at all."""
    assert "Expected" in failures(">>> 1 + 1\n3\n", {}, "wrong")
    assert len(WITH_EXAMPLES) >= 18
