"""What MkDocs calls while it builds the site: the reference, written from the code, and the pages outside docs/.

The catalogues are those that `rove list` shows, the commands those that the command line has; nothing of it is kept as
text. None of it imports torch, a model or a data set, so the site is built without Rove's heavy dependencies.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "submissions/README.md": "submissions.md",
    "leaderboard/results/README.md": "results.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie outside docs/, because GitHub or a reader of the code looks for them there, and their place here."""

_KINDS = {
    "shifts": ("Shifts", "`rove list shifts`; [what they are](../shifts.md)"),
    "attacks": ("Attacks", "`rove list attacks`; [how they are made](../attacks.md)"),
    "suites": ("Suites", "`rove list suites`; `rove describe NAME` names every cell."),
    "datasets": ("Data sets", "`rove list datasets`; `--data-dir` takes local copies."),
    "recipes": ("Recipes", "`rove list recipes`; [what came of them](../recipes.md)"),
    "submissions": ("Submissions", "`rove list submissions`; [how to write one](../../submissions/README.md)"),
}
_CONVENTIONS = (
    "Data goes to standard output; tables, progress and errors to standard error. Exit codes: 0 done, 2 wrong usage, "
    "3 an input is not valid, 4 the submission failed, 5 the run is incomplete, 130 interrupted."
)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)")
_PLAIN = re.compile(r"[|<*_\[]")
_INTERFACES = """# Interfaces

The types that a submission, a recipe and the harness share. A [submission](../../submissions/README.md) implements
`Encoder`, and whichever of the others it can; a [recipe](../recipes.md) takes a `FitContext` and returns `FitFacts`.

::: bench.types
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files with the pages that lie elsewhere and those that are written from the code."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    for uri, text in write_reference().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text; links that are right in the repository are made right in the site."""
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, uri: str) -> str:
    """The text of the site's page `uri`; a link that leads to nothing in the site stays as it is, and is reported."""
    path = next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        page = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        return match[1] if page is None else posixpath.relpath(page, posixpath.dirname(uri) or ".")

    return _LINK.sub(rewritten, markdown)


def write_reference() -> dict[str, str]:
    """The pages of the reference as Markdown, by their place in the site."""
    return {
        "reference/commands.md": _write_commands(),
        "reference/catalogue.md": _write_catalogue(),
        "reference/interfaces.md": _INTERFACES,
    }


def _write_commands() -> str:
    import typer

    from bench.cli import app

    root = typer.main.get_command(app)
    parts = [
        "# Commands",
        _CONVENTIONS,
        *_describe_command(root, "rove", level=2),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_command(command: Any, name: str, level: int) -> Iterator[str]:
    """A command's section, and those of its own commands; `command` is whichever of Click's classes Typer has made."""
    import typer

    context = typer.Context(command, info_name=name)
    yield f"{'#' * level} {name}"
    yield re.sub(r"\s*\n\s*(?!\n)", " ", command.help or "")
    yield "```text\n" + " ".join([name, *command.collect_usage_pieces(context)]) + "\n```"
    records = (param.get_help_record(context) for param in command.get_params(context) if param.name != "help")
    rows = [(f"`{left}`", right) for left, right in filter(None, records)]
    if rows:
        yield _table(["argument or option", ""], rows)
    for sub in getattr(command, "commands", {}).values():
        yield from _describe_command(sub, f"{name} {sub.name}", level if level > 2 else level + 1)


def _write_catalogue() -> str:
    from bench.cli.catalogue import LISTS

    parts = ["# Catalogue", "What there is in this version, as the program itself lists it."]
    for kind, (title, note) in _KINDS.items():
        rows = LISTS[kind]()
        parts += [f"## {title}", f"{len(rows)} of them: {note}", _table(list(rows[0]), map(_cells, rows))]
    parts += ["## Metrics", "Values of each query, and how they become one; [how they are computed](../numbers.md)."]
    parts.append(_table(["id", "shown as", "unit", "over queries", "what"], _metric_rows()))
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [f"`{value}`" if column == "name" else _text(value) for column, value in row.items()]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (list, tuple)):
        return str(value)
    is_range = len(value) > 2 and list(value) == list(range(1, len(value) + 1))
    return f"1 to {len(value)}" if is_range else ", ".join(map(str, value))


def _metric_rows() -> Iterator[list[str]]:
    from bench.metrics import METRICS

    for metric in METRICS:
        function = metric.per_query.func if isinstance(metric.per_query, partial) else metric.per_query
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        yield [f"`{metric.id}`", metric.name, metric.unit, metric.summary, summary]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    """Text that ends no cell, opens no tag and sets nothing in italics; names in code stay as they are."""
    parts = re.split(r"(`[^`]*`)", " ".join(cell.split()))
    return "".join(
        part if part.startswith("`") else _PLAIN.sub(lambda sign: f"&#{ord(sign[0])};", part) for part in parts
    )
