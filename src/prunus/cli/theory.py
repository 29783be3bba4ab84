"""`prunus theory`: one group of verbs per theory."""

import typer

from prunus.cli import (
    theory_at_init,
    theory_gap,
    theory_subset_sum,
    theory_teacher_student,
)

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The theories of pruning: curves, bounds, maps.")
app.add_typer(theory_at_init.app, name="at-init")
app.add_typer(theory_teacher_student.app, name="teacher-student")
app.add_typer(theory_gap.app, name="gap")
app.add_typer(theory_subset_sum.app, name="subset-sum")
