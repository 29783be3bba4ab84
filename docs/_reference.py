"""The reference's pages, written from the code: every public name, every command."""

import importlib
import re
from pathlib import Path

import prunus

GROUPS = {
    "Pruning": ("prune", "sparsify", "prune_folder", "compact", "Budget", "Plan", "Group"),
    "Results": ("Pruned", "load"),
    "Choosing": ("compare", "sensitivity", "plan", "perplexity"),
    "Guarantees": ("certify", "Certificate"),
    "Recipes": ("Recipe", "recipes"),
    "Data": ("calibrate", "Calibration", "text"),
}
ANSWERS = {  # what public functions answer, which nobody imports
    "Results": ("prunus.result.LayerResult",),
    "Choosing": ("prunus.engine.Comparison", "prunus.engine.SensitivityScan"),
    "Pruning": ("prunus.folder.FolderResult",),
}
FAMILIES = (
    "granularity", "scores", "allocation", "selection", "compensation", "joint", "schedules",
    "courses",
)  # fmt: skip
PACKAGES = (
    "prunus.dpp", "prunus.theory.teacher_student", "prunus.theory.gap", "prunus.theory.at_init",
    "prunus.theory.subset_sum", "prunus.theory.logarithmic", "prunus.bench", "prunus.export",
    "prunus.training", "prunus.integrations", "prunus.surgery",
)  # fmt: skip


def write_reference(folder: Path) -> list[Path]:
    """Write the pages below `folder`; a page that has not changed is left alone."""
    pages = {"api.md": api_page(), "cli.md": cli_page(), "parts.md": parts_page()}
    pages |= {f"{_stem(name)}.md": package_page(name) for name in PACKAGES}
    pages["index.md"] = index_page(tuple(pages))
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def index_page(pages: tuple[str, ...]) -> str:
    """The table of contents of the reference."""
    listed = "\n".join(name.removesuffix(".md") for name in pages)
    return (
        "# Reference\n\nMade from the code. Everything that `import prunus` offers is under "
        f"[the Python interface](api.md).\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    )


def public_names() -> list[str]:
    """What the root package offers, beside its subpackages."""
    return [name for name in prunus.__all__ if name in prunus._PLACES]


def api_page() -> str:
    """Every public name of the root package, by what one wants."""
    listed = {name for names in GROUPS.values() for name in names}
    groups = {title: [n for n in names if n in public_names()] for title, names in GROUPS.items()}
    if rest := [name for name in public_names() if name not in listed]:
        groups["More"] = rest
    lines = ["# The Python interface", ""]
    for title, names in groups.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"### {name}", "", *_entry(f"prunus.{name}", prunus._PLACES[name])]
        for place in ANSWERS.get(title, ()):
            module, _, name = place.rpartition(".")
            lines += [f"### {name}", "", *_entry(place, module)]
    return "\n".join(lines)


def parts_page() -> str:
    """The parts of recipes, a family each."""
    lines = [
        "# Parts of recipes",
        "",
        "A recipe is granularity × score × allocation × selection × compensation × schedule. "
        "[Your own](../how_to/your_own_part.md) stand beside these.",
        "",
    ]
    for family in FAMILIES:
        lines += [f"## {family}", "", *_module(f"prunus.{family}")]
    return "\n".join(lines)


def package_page(name: str) -> str:
    """A package with its public names."""
    return "\n".join([f"# {name}", "", *_module(name)])


def cli_page() -> str:
    """The command line with every command's options, as typer writes it."""
    from typer.cli import get_docs_for_click
    from typer.core import TyperGroup
    from typer.main import get_command

    from prunus.cli.app import app

    command = get_command(app)
    assert isinstance(command, TyperGroup)
    context = command.context_class(command, info_name="prunus")
    text = get_docs_for_click(obj=command, ctx=context, name="prunus")
    text = text.replace("# `prunus`", "# The command line", 1)
    return re.sub(r"(?m)^(\* `[^`]*`): ", r"\1 – ", text).strip() + "\n"


def in_plain_words(lines: list[str]) -> None:
    """A docstring as people read it in the code, made safe for reStructuredText in place.

    Bars of absolute values and stars are no markup there, and one backtick is enough for code.
    """
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            pieces = re.split(r"(``.*?``|`.*?`)", line)
            for place in range(1, len(pieces), 2):
                parted = "\\ " if pieces[place + 1][:1].isalnum() else ""
                pieces[place] = f"``{pieces[place].strip('`')}``{parted}"
            pieces[::2] = [re.sub(r"(?<!\\)[|*`]", r"\\\g<0>", words) for words in pieces[::2]]
            lines[number] = "".join(pieces)


def _stem(name: str) -> str:
    return name.removeprefix("prunus.").replace(".", "_")


def _entry(place: str, module: str) -> list[str]:
    """The directive for one name; what it is decides which."""
    name = place.rpartition(".")[2]
    thing = getattr(importlib.import_module(module), name)
    if isinstance(thing, type):
        body = [f".. autoclass:: {module}.{name}", "   :members:"]
    elif callable(thing):
        body = [f".. autofunction:: {module}.{name}"]
    else:
        body = [f".. autodata:: {module}.{name}", "   :no-value:"]
    return ["```{eval-rst}", *body, "```", ""]


def _module(name: str) -> list[str]:
    """The module's docstring and every name that it lists."""
    module = importlib.import_module(name)
    said = (module.__doc__ or "").strip().split("\n\n")[0]
    lines = [" ".join(said.split()), ""]
    for public in module.__all__:
        thing = getattr(module, public)
        if public in prunus._PLACES and thing is getattr(prunus, public):
            lines += [f"`{public}` is under [the Python interface](api.md#{public.lower()}).", ""]
        elif isinstance(thing, type) or (callable(thing) and hasattr(thing, "__module__")):
            lines += _entry(f"{name}.{public}", name)
    return lines
