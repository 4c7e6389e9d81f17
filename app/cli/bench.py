"""`framefit bench compare`: tables of the results of `tests/bench/gpu.py`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson
from app.cli.outputs import print_json

bench = typer.Typer(help="Benchmarks of decoding.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(bench, name="bench")


@bench.callback()
def _bench() -> None:
    """Show results of decode benchmarks. To run one, use `tests/bench/gpu.py` in the repository."""


@bench.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A results file of tests/bench/gpu.py.")],
    second: Annotated[Path | None, typer.Argument(help="A second results file to compare with.")] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every decode setting on every card, or compare Framefit's times in two results files."""
    from app.cli.benchmark_tables import HEAD, group_by_case, side_by_side, stamp_line, summary_line

    documents = [_read(path) for path in (first, second) if path is not None]
    try:
        found = [group_by_case(document) for document in documents]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    head: tuple[str, ...] = HEAD
    if second is None:
        lines = [each.cells() for each in found[0]]
    else:
        head = ("card", "case", first.name, second.name, "second / first")
        lines = side_by_side(*found)
    if as_json:
        rows = [dict(zip(head, line, strict=True)) for line in lines]
        print_json({"stamps": [document["stamp"] for document in documents], "rows": rows})
        return
    for document in documents:
        typer.echo(stamp_line(document))
    _table(head, lines, markdown=markdown)
    if second is None:
        typer.echo(summary_line(found[0]))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise typer.BadParameter(
            f"{path} is not a results file of tests/bench/gpu.py: it holds no JSON object"
        )
    return document


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]], *, markdown: bool) -> None:
    if markdown:
        for line in (head, ("---",) * len(head), *lines):
            typer.echo(f"| {' | '.join(line)} |")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
