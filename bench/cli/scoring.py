"""`rove score`, `rove compare`, `rove bundle` and `rove validate`: what came out, and whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import Json, print_data, print_json, print_note, print_table

if TYPE_CHECKING:
    from bench.records import Estimate
    from bench.summary import Candidates, Difference, Summary

Folder = Annotated[Path, typer.Argument(help="A run's folder or a bundle.", exists=True, file_okay=False)]


def score(run: Folder, as_json: Json = False) -> None:
    """Recompute every figure of a run from its per-query evidence, and sum it up."""
    from bench.bundle import read_verified
    from bench.summary import summarise

    summary = summarise(read_verified(run))
    if as_json:
        print_json(summary.as_dict())
        return
    for direction, metrics in summary.clean.items():
        rows = [(_name(metric), *_figures(metric, value)) for metric, value in metrics.items()]
        print_table(f"{summary.label}: clean canvas, {direction}", ["metric", "value", "95 % interval"], rows)
    overall = {} if summary.overall is None else {"overall": summary.overall}
    held = {**summary.shifts, **overall}
    if held:
        title = "under shift, %: R@1 (mean over severities and directions), and the share of the clean canvas's lost"
        columns = ["shift", "R@1", "95 % interval", "lost", "95 % interval"]
        print_table(title, columns, [(name, *_figures("", it.r1), *_figures("", it.lost)) for name, it in held.items()])
    if summary.candidates:
        print_candidates(summary.candidates)
    print_attacks(summary)


def compare(
    a: Folder,
    b: Folder,
    margin: Annotated[float, typer.Option(help="What counts as equal, in percentage points of R@1.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Compare two runs by family and by cell: paired differences of R@1 with intervals and Holm's correction."""
    from dataclasses import asdict

    from bench.bundle import read_results
    from bench.summary import compare as compare_results

    first, second = read_results(a), read_results(b)
    differences = compare_results(first, second, margin / 100)
    if as_json:
        print_json([{**asdict(row), "difference": row.difference.model_dump()} for row in differences])
        return
    columns = ["", "A", "B", "A - B", "95 % interval", "p (Holm)", "", f"within {margin:g} pp"]
    for kinds, of in ((("overall", "family"), "by family of shifts"), (("cell",), "by cell")):
        rows = [_compared(row) for row in differences if row.kind in kinds]
        if rows:
            title = f"R@1, %, {of}: A {first.manifest.label}, B {second.manifest.label}"
            print_table(title, columns, rows)


def bundle(
    run: Folder,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: RUN.bundle beside it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle.")] = False,
) -> None:
    """Pack a complete run for the leaderboard."""
    from bench.bundle import find_timings, make_bundle, read_results

    manifest = read_results(run).manifest
    if manifest.obstacle:
        print_note(f"this run will be shown, but never ranked: {manifest.obstacle}.")
    for path in find_timings(run, manifest).others:
        print_note(f"left out {path}: it is a timing of another submission, or of other weights.")
    target = output or run.with_name(f"{run.name}.bundle")
    print_data(str(make_bundle(run, target, overwrite)))


def validate(bundle: Folder, as_json: Json = False) -> None:
    """Check a bundle: schema, hashes, and every metric against its evidence."""
    from bench.bundle import validate_bundle

    results = validate_bundle(bundle)
    facts = {"bundle": str(bundle), "label": results.manifest.label, "cells": len(results.records), "valid": True}
    if as_json:
        print_json(facts)
    else:
        print_note(
            f"{bundle} is valid: {facts['label']}, {facts['cells']} cells, every metric follows from its evidence."
        )


def transfer(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, and runs made with --from: each is one victim, or one cell of the matrix."),
    ],
    as_json: Json = False,
) -> None:
    """Show how far attacks made against one submission reach others: ASR by victim and scored submission."""
    from bench.bundle import read_results
    from bench.summary import transfer_matrix

    rows = transfer_matrix([read_results(folder) for folder in runs])
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    table = [
        (row.attack, row.direction, row.victim, row.label, *_figures("", row.asr), row.verdict.partition(":")[0])
        for row in rows
    ]
    columns = ["attack", "direction", "made against", "scored on", "ASR %", "95 % interval", "verdict"]
    print_table("share of the clean hits at 1 that are lost", columns, table)


def print_attacks(summary: Summary) -> None:
    """The attacked cells as a table, and why others were skipped."""
    rows = [
        (
            attack.cell,
            direction,
            f"{100 * attack.clean[direction].value:.1f}",
            f"{100 * attack.attacked[direction].value:.1f}",
            *(_figures("", attack.asr[direction]) if direction in attack.asr else ("", "")),
            attack.verdict.partition(":")[0],
        )
        for attack in summary.attacks
        for direction in attack.attacked
    ]
    if rows:
        columns = ["attack", "direction", "clean R@1", "attacked", "ASR %", "95 % interval", "verdict"]
        print_table("attacks: R@1 in %, and the share of the clean hits that is lost", columns, rows)
    for attack in summary.attacks:
        if attack.verdict.startswith("unreliable"):
            print_note(f"{attack.cell} is {attack.verdict}")
    for cell, reason in summary.skipped.items():
        print_note(f"{cell} was skipped: {reason}")


def print_candidates(candidates: Candidates) -> None:
    """Candidate recall as two tables: the means, and every cell by direction."""
    print_note(f"candidate recall: queries with a right item among the {candidates.k} that the second stage orders.")
    named = {"clean canvas": candidates.clean, "under shift": candidates.shifted, "lost": candidates.lost}
    rows = [(name, *_figures("", value)) for name, value in named.items() if value]
    if rows:
        print_table("candidate recall, %", ["mean of directions", "", "95 % interval"], rows)
    cells = [
        (cell, direction, *_figures("", value))
        for cell, by_direction in candidates.cells.items()
        for direction, value in by_direction.items()
    ]
    print_table("candidate recall by cell, %", ["cell", "direction", "", "95 % interval"], cells)


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (score, compare, transfer, bundle, validate):
        app.command()(command)


def _compared(row: Difference) -> tuple[str, ...]:
    better = "A better" if row.difference.low > 0 else "B better" if row.difference.high < 0 else ""
    figures = (f"{100 * row.a:.1f}", f"{100 * row.b:.1f}", *_figures("", row.difference), f"{row.p_holm:.4f}")
    return row.name, *figures, better, "equal" if row.equivalent else ""


def _name(metric: str) -> str:
    from bench.metrics import METRICS

    return {known.id: known.name for known in METRICS}.get(metric, metric)


def _figures(metric: str, value: Estimate) -> tuple[str, str]:
    scale = 1 if metric in ("med_r", "rsum") else 100
    return f"{scale * value.value:.1f}", f"{scale * value.low:.1f} to {scale * value.high:.1f}"
