"""How the command line speaks: JSON and results on stdout; tables, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bench.records import Cell, Record

DataDirs = Annotated[
    list[str] | None,
    typer.Option("--data-dir", help="NAME=FORMAT:PATH[/SPLIT], a local copy of a data set; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table on stderr.")]


def print_data(text: str) -> None:
    """One piece of data on stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: object) -> None:
    """`value` as JSON on stdout."""
    print_data(json.dumps(value, indent=2, ensure_ascii=False))


def print_note(text: str) -> None:
    """A line for a person."""
    sys.stderr.write(text + "\n")


def print_error(text: str) -> None:
    """An error for a person; names out of somebody's files may hold a terminal's escape codes."""
    from bench.records import without_control

    print_note(f"rove: {without_control(text)}")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for a person; columns that hold numbers are aligned right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[str(value) for value in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(row[index][:1] in "-+0123456789" for row in cells if row[index])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for row in cells:
        table.add_row(*(Text(value) for value in row))
    Console(stderr=True).print(table)


def parse_pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """`KEY=VALUE` strings as a mapping.

    Raises:
        UsageError: one of them is not of that form, or a key stands twice.
    """
    pairs: dict[str, str] = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if not separator or not key or not rest:
            raise UsageError(f"{flag} got '{value}'; expected KEY=VALUE.")
        if key in pairs:
            raise UsageError(f"{flag} names {key} twice; expected it once.")
        pairs[key] = rest
    return pairs


def command_line() -> str:
    """The command that this process was started with, as others may see it."""
    return shlex.join(["rove", *(_without_places(argument) for argument in sys.argv[1:])])


def keep_offline(offline: bool) -> None:
    """Tells the hub's libraries, before they are imported, to fetch nothing; child processes inherit it."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def flatten(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping as rows for a person; lists are joined, nested mappings are indented."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            rows += [(key, ""), *((f"  {inner}", text) for inner, text in flatten(item))]
        elif isinstance(item, (list, tuple)):
            rows.append((key, ", ".join(str(part) for part in item)))
        elif item not in (None, ""):
            rows.append((key, str(item)))
    return rows


class RunProgress:
    """Shows a run on stderr: a bar over cells with the time left, and a line for each finished cell."""

    def __init__(self, progress: Progress, n_cells: int) -> None:
        self._progress = progress
        self._cells: TaskID = progress.add_task("cells", total=n_cells)
        self._items: TaskID | None = None

    def cell_started(self, cell: Cell, n_items: int) -> None:
        self._items = self._progress.add_task(cell.id, total=n_items)

    def items_encoded(self, count: int) -> None:
        if self._items is not None:
            self._progress.advance(self._items, count)

    def cell_finished(self, record: Record, reused: bool) -> None:
        if self._items is not None:
            self._progress.remove_task(self._items)
            self._items = None
        self._progress.advance(self._cells)
        if not reused:
            self._progress.console.print(_cell_line(record), markup=False, highlight=False, soft_wrap=True)


class ShardProgress:
    """Shows generation on stderr: one bar over all images of all shifts, with the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rows: TaskID = progress.add_task("starting", total=None)

    def planned(self, n_rows: int) -> None:
        self._progress.update(self._rows, total=n_rows)

    def shard_done(self, shift_id: str, n_rows: int) -> None:
        self._progress.update(self._rows, advance=n_rows, description=shift_id)


@contextmanager
def run_progress(n_cells: int) -> Iterator[RunProgress]:
    """A progress display that is taken away at the end."""
    with _progress() as progress:
        yield RunProgress(progress, n_cells)


@contextmanager
def shard_progress() -> Iterator[ShardProgress]:
    """A progress display that is taken away at the end."""
    with _progress() as progress:
        yield ShardProgress(progress)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    quiet = logging.getLogger().level >= logging.ERROR
    return Progress(*columns, console=Console(stderr=True, quiet=quiet), transient=True)


def _cell_line(record: Record) -> str:
    if record.status != "ok":
        return f"{record.cell.id:<44} {record.status}: {record.reason.splitlines()[0]}"
    shown = []
    for direction, metrics in record.metrics.items():
        if direction != "both":
            shown.append(f"{direction} R@1 {100 * metrics['hit@1'].value:5.1f}")
    flags = f"  [{', '.join(record.flags)}]" if record.flags else ""
    return f"{record.cell.id:<44} {'  '.join(shown)}{flags}"


def _without_places(argument: str) -> str:
    """An argument as others may see it: absolute paths and paths upwards keep their last part only."""
    return re.sub(r"(?<![\w.])(?:~|\.\.)?/(?:[^/\s=:]+/)*", "", argument)
