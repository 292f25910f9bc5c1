"""`rove recommend`: which submissions to use under limits of latency, size and what a shift may cost."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import Json, print_data, print_json, print_note, print_table
from bench.cli.timing import parse_count
from bench.errors import InputError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.records import Estimate
    from leaderboard.boards import Board
    from leaderboard.recommend import Advice, Terms

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def recommend(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Bundles, or folders of them; default: the results that ship with Rove.", exists=True),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Whose rows are compared; needed if there are several.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option("--max-latency-ms", help="Median end to end of one query, as `rove time` measured.")
    ] = None,
    max_params: Annotated[str | None, typer.Option("--max-params", help="Such as 100M, 1.5B or 250k.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Share of R@1 lost under shift, %; the value decides.")
    ] = None,
    min_r1: Annotated[
        float | None, typer.Option("--min-r1", help="Mean R@1 under shift, %; the value decides.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="The whole 95 % interval must keep to --max-drop and --min-r1.")
    ] = False,
    hardware: Annotated[
        str | None, typer.Option(help="Class that was timed on, or a part of its name; default: that of most rows.")
    ] = None,
    gallery: Annotated[
        str | None, typer.Option(help="Items that were searched, such as 100k; default: what most rows were timed at.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Write guidelines, Markdown, from all comparisons; takes no limits.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for --explain; default: standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recommend submissions that keep to limits and that no other beats in all of quality, latency and size.

    Nobody passing is an answer, not an error: the note names the row that misses its worst limit by least.
    """
    from leaderboard.boards import RESULTS, read_boards

    asked = (max_latency_ms, max_params, max_drop, min_r1, hardware, gallery)
    if explain and (strict or as_json or any(limit is not None for limit in asked)):
        raise UsageError("--explain writes Markdown on all rows; expected no limits and no --json beside it.")
    if output is not None and not explain:
        raise UsageError("--output is the file of --explain; expected both, or neither.")
    if explain:
        write_guidelines(places or [RESULTS], suite, output)
        return
    from leaderboard.recommend import Limits, find_nearest, find_terms
    from leaderboard.recommend import recommend as recommend_entries

    limits = Limits(
        max_latency_ms=max_latency_ms,
        max_parameters=None if max_params is None else parse_parameters(max_params),
        max_lost=None if max_drop is None else max_drop / 100,
        min_r1=None if min_r1 is None else min_r1 / 100,
        strict=strict,
        hardware=hardware,
        n_items=None if gallery is None else parse_count(gallery),
    )
    boards, rejected = read_boards(places or [RESULTS])
    for name, reason in rejected:
        print_note(f"left out {name}: {reason}")
    board = choose_board(boards, suite)
    for label, reason in board.unranked:
        print_note(f"not ranked: {label}: {reason}")
    entries = [row.entry for row in board.rows]
    terms, advice = find_terms(entries, limits), recommend_entries(entries, limits)
    nearest = find_nearest(advice)
    if as_json:
        facts = {"suite": board.label, **terms._asdict(), "nearest": nearest.label if nearest else None}
        print_json({**facts, "rows": [one.as_dict() for one in advice]})
    else:
        _print_advice(board.label, advice, terms)
    if nearest:
        print_note(f"no submission passes; the nearest is {nearest.label}: {'; '.join(nearest.reasons)}.")


def write_guidelines(places: Sequence[Path], suite: str | None, output: Path | None) -> None:
    """Writes the guidelines of the boards in `places`, or of one suite's, to a file or to standard output."""
    from bench.store import write_atomic
    from leaderboard.boards import read_boards
    from leaderboard.guidelines import explain

    boards, rejected = read_boards(places)
    for name, reason in rejected:
        print_note(f"left out {name}: {reason}")
    text = explain(boards if suite is None else [choose_board(boards, suite)])
    if output is None:
        print_data(text.removesuffix("\n"))
    else:
        write_atomic(output, text.encode())
        print_data(str(output))


def parse_parameters(text: str) -> int:
    """A number of parameters: 25000000, 25_000_000, 250k, 100M or 1.5B.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"([0-9][0-9_]{0,17})(\.[0-9]{1,9})?([kKmMbB]?)", text)
    if match is None or (match[2] and not match[3]):
        raise UsageError(f"--max-params got '{text}'; expected a number of parameters, such as 250k, 100M or 1.5B.")
    whole = match[1].replace("_", "")
    return round(Fraction(whole + (match[2] or "")) * _SUFFIXES[match[3].lower()])


def choose_board(boards: Sequence[Board], suite: str | None) -> Board:
    """The board of the suite that is asked for, by any of its names; the only one if none is asked for.

    Raises:
        InputError: there is no board.
        UsageError: there is no such suite, or there are several and none was asked for.
    """
    if not boards:
        raise InputError("no bundle here is valid; expected at least one. The lines above say what is wrong.")
    known = ", ".join(board.slug for board in boards)
    if suite is None:
        if len(boards) > 1:
            raise UsageError(f"there are several suites here: {known}; expected one of them as --suite.")
        return boards[0]
    named = [board for board in boards if suite in suite_names(board.label)]
    found = [board for board in boards if suite == board.slug] or named
    if not found:
        raise unknown_name("suite", suite, [board.label for board in boards], "rove list suites")
    if len(found) > 1:
        several = ", ".join(board.slug for board in found)
        raise UsageError(f"--suite {suite} may be one of several here: {several}; expected one of them.")
    return found[0]


def suite_names(label: str) -> set[str]:
    """What a suite may be called by: `demo-core-v1`, `demo-core`, `demo-v1` and `demo` are the same."""
    name = re.sub(r"-v[0-9]+(-draft)?$", "", label)
    version = label[len(name) :]
    return {f"{start}{end}" for start in (name, name.removesuffix("-core")) for end in (version, "")}


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command()(recommend)


def _print_advice(suite: str, advice: Sequence[Advice], terms: Terms) -> None:
    """What is recommended, with its figures, and what is not, with its reasons."""
    kept = [one for one in advice if one.kept]
    if kept:
        columns = ["submission", "R@1 %", "95 % interval", "lost %", "95 % interval", "p50 ms", "p95", "parameters"]
        title = f"{suite}: recommended {len(kept)} of {len(advice)} (R@1 under shift, mean over families)"
        print_table(title, columns, [_row(one) for one in kept])
    if any(one.speed for one in kept):
        print_note(f"latency: one query at a time, end to end, over {terms.n_items:,} items on {terms.hardware_class}.")
    if not advice:
        print_note(f"{suite} has no ranked submission yet.")
    left_out = [(one.label, "; ".join(one.reasons)) for one in advice if not one.kept]
    if left_out:
        print_table("not recommended", ["submission", "why"], left_out)


def _row(one: Advice) -> tuple[str, ...]:
    estimates = (one.held.r1, one.held.lost) if one.held else ()
    speed = (None, None) if one.speed is None else (one.speed.p50_ms, one.speed.p95_ms)
    return (
        one.label,
        *(part for value in estimates for part in _figures(value)),
        *("" if value is None else f"{value:.3g}" for value in speed),
        "" if one.parameters is None else f"{one.parameters:,}",
    )


def _figures(value: Estimate) -> tuple[str, str]:
    return f"{100 * value.value:.1f}", f"{100 * value.low:.1f} to {100 * value.high:.1f}"
