"""`rove reproduce`: random cells of a bundle run again, and whether they come out as it states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import (
    DataDirs,
    Json,
    command_line,
    keep_offline,
    parse_pairs,
    print_data,
    print_error,
    print_json,
    print_note,
    print_table,
    run_progress,
)
from bench.cli.scoring import Folder
from bench.cli.submitting import IsolationMode, Memory, ModelArgs, Offline, Timeout, worker_settings
from bench.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from bench.reproducing import Reproduction


def reproduce(
    bundle: Folder,
    submission: Annotated[
        str | None,
        typer.Argument(help="What was run: a name, a folder, or path.py:load; default: the shipped one of its name."),
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="How many to run again, a clean canvas among them.")] = 5,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the draw; default: one that nobody can foresee, and that is printed.")
    ] = None,
    model_arg: ModelArgs = None,
    data_dir: DataDirs = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder that keeps what is run; with it the same command goes on."),
    ] = None,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Go on if files or weights are not those that were run.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="torch's name of the device; default: that of the bundle.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items a batch; default: that of the bundle.")] = None,
    offline: Offline = False,
    timeout: Timeout = 600.0,
    isolation: IsolationMode = "auto",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Run random cells of a bundle again, and say whether they come out as it states.

    Exit code 0: all agree; 3: one differs, or the bundle does not hold; 5: one could not be run. Where the bundle is a
    revision of the leaderboard's results and all agree, stdout is the line for its changes.jsonl.
    """
    keep_offline(offline)
    from bench.bundle import read_verified
    from bench.cells import RunSettings
    from bench.reproducing import choose_draw, choose_submission, find_other_version
    from bench.reproducing import reproduce as run_again

    results = read_verified(bundle)
    manifest = results.manifest
    found = choose_submission(manifest, submission, parse_pairs(model_arg or [], "--model-arg"))
    settings = RunSettings(
        worker=worker_settings(device or manifest.device, manifest.dtype, offline, timeout, isolation, memory),
        batch_size=batch_size or manifest.batch_size,
        limit=manifest.limit,
        data_dirs=parse_pairs(data_dir or [], "--data-dir"),
        command=command_line(),
        rerank_k=manifest.rerank_k,
    )
    other = find_other_version(manifest, found, settings.worker)
    if other and not any_version:
        raise InputError(
            f"{found.folder} has {other}. Give the folder that was run, with the Rove that ran it (its shared code "
            "counts among the files), or --any-version to see whether the scores agree all the same."
        )
    try:
        with _kept(output) as folder:
            draw = choose_draw(manifest, cells, seed, folder)
            print_note(f"cells are drawn with seed {draw.seed}.")
            with run_progress(cells) as progress:
                reproduction = run_again(results, found, draw, settings, folder, progress)
    except KeyboardInterrupt:
        kept = "the same command goes on from there" if output else "--output would have kept what was finished"
        print_error(f"interrupted; {kept}.")
        raise typer.Exit(130) from None
    _print(reproduction, bundle, other, as_json)


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(reproduce)


@contextmanager
def _kept(output: Path | None) -> Iterator[Path]:
    """The output folder, or one that is taken away at the end."""
    from bench.store import Scratch

    if output is not None:
        yield output
        return
    with Scratch("reproduce") as folder:
        yield folder


def _print(reproduction: Reproduction, bundle: Path, other: str, as_json: bool) -> None:
    """What came of it, and the line for the leaderboard if all agree.

    Raises:
        InputError: a cell differs.
        IncompleteError: a cell could not be run.
    """
    import datetime

    from leaderboard.history import describe_reproduction, to_line

    told = f"{reproduction.summary}; {other}" if other else reproduction.summary
    change = None
    if reproduction.verdict in ("identical", "agrees"):
        today = datetime.datetime.now(datetime.UTC).date()
        change = describe_reproduction(bundle, len(reproduction.repeats), reproduction.machine, told, today)
    if as_json:
        line = change and change.model_dump(mode="json", exclude_none=True)
        print_json({"bundle": str(bundle), **reproduction.as_dict(), "other_version": other, "change": line})
    else:
        _print_cells(reproduction)
        print_note(f"{bundle}: {told}.")
        if change:
            print_data(to_line(change))
    for verdict, error in (("differs", InputError), ("not run", IncompleteError)):
        cells = [repeat for repeat in reproduction.repeats if repeat.verdict == verdict]
        if cells:
            count = f"{len(cells)} of {len(reproduction.repeats)} cells: {verdict}"
            raise error(f"{count}, first {cells[0].cell}: {cells[0].reason}")


def _print_cells(reproduction: Reproduction) -> None:
    if reproduction.changes:
        print_note(f"other than when it was run: {', '.join(reproduction.changes)}.")
    rows: list[tuple[str, ...]] = []
    for repeat in reproduction.repeats:
        if not repeat.outcomes:
            rows.append((repeat.cell, "", "", "", "", "", repeat.verdict))
        for outcome in repeat.outcomes:
            r1 = (f"{100 * part['hit@1']:.2f}" for part in (outcome.stated, outcome.found))
            figures = f"{outcome.largest_pp:.2f} of {outcome.tolerance_pp:.2g}", f"{100 * outcome.moved:.1f}"
            rows.append((repeat.cell, outcome.name, *r1, *figures, repeat.verdict))
    columns = ["cell", "", "R@1", "again", "off", "moved", ""]
    print_table(
        "run again: R@1 and ranks that moved, %; what the metric that differs most is off, of what it may be, pp",
        columns,
        rows,
    )
    for repeat in reproduction.repeats:
        if repeat.reason:
            print_note(f"{repeat.cell}: {repeat.verdict}: {repeat.reason}")
