"""All of prunus writes through `prunus.files`."""

import ast
from pathlib import Path

import prunus

ROOT = Path(prunus.__file__).parent
# Calls that make, change or remove files, by their last name.
CALLS = {
    "write_text", "write_bytes", "save_file", "save_model", "savez", "savez_compressed", "rename",
    "unlink", "rmtree", "rmdir", "symlink_to", "touch", "truncate", "fdopen", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "to_csv", "to_json_file", "makedirs", "mkdir", "copyfile", "copytree",
    "save_pretrained",
}  # fmt: skip
# What may do so itself, and why.
ALLOWED = {
    "bench/data/language.py": {"save_pretrained"},  # transformers' own writer
    "scopes/keep.py": {"save_file", "unlink"},  # in a temporary folder of its own
    "reproduce/harness.py": {"mkdtemp"},  # likewise; it stays where runs failed
    "bench/record/store.py": {"unlink"},  # an own file without rows
    "bench/record/sql.py": {"write_bytes"},  # whole lines, into a temporary folder
    "bench/grid/work.py": {"write_text"},  # /proc/self/clear_refs
    "folder/depth.py": {"unlink"},  # its own streams, in the folder of work that a run resumes
    "folder/streams.py": {"unlink"},  # likewise
    "export/to_hf.py": {"save_pretrained"},  # into a folder that `new_folder` gives
    "theory/gap/walks.py": {"savez_compressed"},  # makes the package's own table
    "cli/prune.py": {"rmdir"},  # the empty folder that it made, after a failure
    "folder/workers.py": {"unlink"},  # what workers left in its own scratch, once it is read
}


def writing(path: Path) -> set[str]:
    """Names of calls that write, except those of `prunus.files`' functions by their bare names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        bare = isinstance(node.func, ast.Name)
        if name in CALLS and not (bare and name in ("write_text", "write_bytes")):
            found.add(name)
        words = [a.value for a in (*node.args, *(k.value for k in node.keywords))
                 if isinstance(a, ast.Constant)]  # fmt: skip
        if name == "open" and any(
            w in words for w in ("w", "wb", "a", "ab", "x", "xb", "r+", "r+b")
        ):
            found.add("open to write")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name == "save" and owner in ("torch", "np"):
            found.add(f"{owner}.save")
    return found


def test_nobody_else_opens_files_for_writing():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith("files/") and (calls := writing(path)):
            found[place] = calls
    assert found == ALLOWED


def test_the_search_sees_what_it_looks_for(tmp_path):
    source = tmp_path / "a.py"
    source.write_text(
        "open('x', 'w')\nPath('x').open(mode='ab')\nnp.save(x, y)\np.write_text('x')\n"
        "write_text('x', 'y')\nopen('x')\nsave(tensors)\n"
    )
    assert writing(source) == {"open to write", "np.save", "write_text"}
