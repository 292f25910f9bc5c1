"""`rove doctor`: what is wrong with a run, a bundle or this machine's cache, and its repair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import Json, print_json, print_note, print_table
from bench.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from bench.doctor import Diagnosis, Finding


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run's folder or a bundle; default: the cache folder.", exists=True, file_okay=False),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged files aside as .bad, and remove left-over temporary files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find what is damaged, missing or left over in a run, a bundle or the cache."""
    from bench.doctor import INCOMPLETE, SERIOUS, diagnose_cache, diagnose_run
    from bench.store import cache_folder

    diagnosis = diagnose_cache(repair) if run is None else diagnose_run(run, repair)
    place = str(run or cache_folder())
    if as_json:
        print_json({"place": place, "command": diagnosis.command, **_as_dict(diagnosis)})
    elif diagnosis.found:
        rows = [
            (finding.kind, finding.problem.replace(f"{place}/", ""), "" if finding in diagnosis.left else "repaired")
            for finding in diagnosis.found
        ]
        print_table(place, ["", "what is not as it should be", ""], rows)
    else:
        print_note(f"{place} is well.")
    if serious := diagnosis.left_of(SERIOUS):
        command = " ".join(["rove doctor", *([] if run is None else [str(run)]), "--repair"])
        is_repairable = serious[0].kind == "damaged"
        raise InputError(_sum_up(serious, f"`{command}` sets aside what is damaged." if is_repairable else ""))
    if unfinished := diagnosis.left_of(INCOMPLETE):
        raise IncompleteError(_sum_up(unfinished, f"`{diagnosis.command or 'rove run ...'}`, as before, goes on."))


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(doctor)


def _as_dict(diagnosis: Diagnosis) -> dict[str, object]:
    findings = {"found": diagnosis.found, "left": diagnosis.left}
    return {name: [_describe(finding) for finding in part] for name, part in findings.items()}


def _describe(finding: Finding) -> dict[str, object]:
    return {"kind": finding.kind, "problem": finding.problem, "files": [str(path) for path in finding.files]}


def _sum_up(findings: list[Finding], remedy: str) -> str:
    more = f"(and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return " ".join(part for part in (findings[0].problem, more, remedy) if part)
