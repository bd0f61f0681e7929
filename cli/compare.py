"""The command `compare`: two records of `benchmark`, and whether the new one keeps budgets."""

from __future__ import annotations

from pathlib import Path

import click

from .console import (
    json_option,
    out_option,
    path_type,
)


@click.command()
@click.argument("old", metavar="OLD.json", type=path_type())
@click.argument("new", metavar="NEW.json", type=path_type())
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    help="A limit that NEW.json must keep, such as p99=33ms or dice_drop=0.005; of one row: "
    "ROW:p99=33ms.",
)
@out_option("Write it as this HTML page too; .json, .md beside.", required=False)
@json_option
def compare(
    old: Path, new: Path, budgets: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Compare the records of two benchmarks of one machine; nothing is measured.

    A budget that is not kept ends with exit code 3.
    """
    from ..benchmarks.compare import compare_records, read_pair, require_budgets
    from ..benchmarks.report.comparison import (
        comparison_document,
        comparison_to_json,
        render_comparison,
        require_comparison_path,
        write_comparison,
    )
    from ..benchmarks.report.metrics import parse_budget

    limits = [parse_budget(text) for text in budgets]
    if out:
        require_comparison_path(out, (old, new))
    before, after = read_pair(old, new)
    comparison = compare_records(before, after, limits)
    if out:
        command = ["edgeseg", "compare", old.name, new.name]
        command += [word for text in budgets for word in ("--budget", text)]
        document = comparison_document(comparison, before, after, [*command, "--out", out.name])
        write_comparison(comparison, document, out)
    click.echo(comparison_to_json(comparison) if as_json else render_comparison(comparison))
    if out and not as_json:
        click.echo(f"report: {out}")
    require_budgets(comparison)
