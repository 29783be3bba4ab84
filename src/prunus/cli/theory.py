"""`prunus theory`: one group of verbs per theory."""

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The theories of pruning: curves, bounds, maps.")
