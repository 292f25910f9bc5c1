"""`rove results` and `rove export`: the bundles that the leaderboard is built from, and their scores for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import Json, print_data, print_json, print_note
from bench.errors import InputError, RoveError

if TYPE_CHECKING:
    from bench.bundle import Results

results = typer.Typer(help="Add a bundle to the leaderboard's results, or check them.", no_args_is_help=True)

Bundle = Annotated[Path, typer.Argument(help="A bundle, as `rove bundle` makes it.", exists=True, file_okay=False)]


@results.command()
def add(
    bundle: Bundle,
    reason: Annotated[str, typer.Option(help="Why it is added, for the row's history: `first result`, ...")],
    into: Annotated[Path, typer.Option(file_okay=False, help="The tree of results.")] = Path("leaderboard/results"),
) -> None:
    """Validate a bundle and copy it into the results as its submission's next revision."""
    import datetime

    from leaderboard.history import add_bundle

    _validate(bundle)
    folder = add_bundle(bundle, into, reason, datetime.datetime.now(datetime.UTC).date())
    print_note(f"Next: commit {folder.parent}, and open a pull request that holds nothing else below {into}.")
    print_data(str(folder))


@results.command()
def check(
    root: Annotated[Path, typer.Argument(help="A tree of results.", exists=True, file_okay=False)],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The tree as it was: only one new revision may differ, and only that is validated.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the results: the history of each submission, and every current bundle against its evidence."""
    from leaderboard.history import check_addition, read_history

    revisions = read_history(root) if base is None else [check_addition(base, root)]
    current = [revision for revision in revisions if revision.is_current]
    rows = []
    for revision in current:
        name = f"{revision.suite}/{revision.label}/r{revision.number}"
        error = _find_error(revision.folder)
        rows.append({"bundle": name, "valid": not error, "error": error})
        print_note(f"{name}: {error or 'valid'}")
    if as_json:
        print_json(rows)
    wrong = [row["bundle"] for row in rows if row["error"]]
    if wrong:
        raise InputError(f"{len(wrong)} of {len(rows)} bundles do not hold, first {wrong[0]}; see the lines above.")
    print_note(f"{root}: {len(rows)} of {len(revisions)} revisions are current, and valid.")


def export(
    bundle: Bundle,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; default: stdout.")] = None,
) -> None:
    """Write a bundle's scores as JSON in the schema of Every Eval Ever."""
    import json
    import time

    from bench.store import write_atomic
    from leaderboard.entries import read_entry
    from leaderboard.every_eval_ever import export_entry

    exported = export_entry(read_entry(bundle).entry, int(time.time()))
    if output is None:
        print_json(exported)
        return
    write_atomic(output, (json.dumps(exported, indent=2, ensure_ascii=False) + "\n").encode())
    print_data(str(output))


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.add_typer(results, name="results")
    app.command()(export)


def _validate(bundle: Path) -> Results:
    """The bundle's results, if they follow from its evidence and are of a frozen suite's own items.

    Raises:
        InputError: they do not, or are not.
    """
    from bench.bundle import validate_bundle
    from bench.locks import check_claims, check_data, check_suite, find_lock

    found = validate_bundle(bundle)
    suite = found.manifest.suite
    lock = find_lock(suite)
    if lock is None:
        raise InputError(f"{bundle} is of {suite}, which is no frozen suite; `rove list suites` shows which are.")
    check_suite(suite, found.manifest.suite_id)
    check_claims(lock, found.records)
    difference = check_data(lock, found.records)
    if difference:
        raise InputError(f"{bundle}: {difference}")
    return found


def _find_error(bundle: Path) -> str:
    """What is wrong with a bundle; "" if nothing is."""
    try:
        _validate(bundle)
    except RoveError as error:
        return str(error)
    return ""
