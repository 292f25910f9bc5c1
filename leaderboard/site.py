"""The static site: pages and scripts from boards, in a folder that opens from disk and asks nobody for anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.store import new_folder
from leaderboard.boards import Board, Boards, read_boards
from leaderboard.pages import about, attacks, compare, downloads, plots, shifts, submission, table, weights
from leaderboard.rendering import File, Page, Part, Script, make_environment

MARKER = "index.html"
_STATIC = Path(__file__).parent / "static"
_PARTS: tuple[Callable[[Board], Iterator[Part]], ...] = (
    table.parts,
    downloads.parts,
    plots.parts,
    shifts.parts,
    attacks.parts,
    compare.parts,
    weights.parts,
    submission.parts,
)


class Built(NamedTuple):
    """The site's first page, and the bundles that were left out with the reason."""

    page: Path
    rejected: tuple[tuple[str, str], ...]


def build_site(places: Sequence[Path], output: Path) -> Built:
    """Writes the site of all bundles in `places`; `output` is replaced as a whole, or stays as it was.

    Args:
        places: bundles, folders of bundles, or results trees.
        output: the site's folder; if it is not empty, it must be a site.

    Raises:
        InputError: there is no bundle at all, or a results tree contradicts itself.
        UsageError: `output` holds something else than a site.
    """
    found = read_boards(places)
    with new_folder(output, MARKER, overwrite=True) as unfinished:
        write_site(found, unfinished)
    return Built(output / MARKER, found.rejected)


def write_site(found: Boards, folder: Path) -> None:
    """Writes all pages, scripts and static files into an empty folder.

    The first page is the table of the board that stands first.
    """
    shutil.copytree(_STATIC, folder / "static")
    write = _Writer(found, folder)
    for board in found.boards:
        for make in _PARTS:
            for part in make(board):
                write(board, part)
    first = found.boards[0] if found.boards else None
    for part in (*about.parts(found), *table.first_page(first)):
        write(first, part)


class _Writer:
    """Writes pages, scripts and files."""

    def __init__(self, found: Boards, folder: Path) -> None:
        self._found, self._folder = found, folder
        self._environment = make_environment()

    def __call__(self, board: Board | None, part: Part) -> None:
        path = self._folder / part.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._text(board, part), encoding="utf-8")

    def _text(self, board: Board | None, part: Part) -> str:
        match part:
            case Script():
                return part.text()
            case File():
                return part.content
            case Page():
                template = self._environment.get_template(part.template)
                return template.render(part.context, site=self._found, board=board, page=part)
