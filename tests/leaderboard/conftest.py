"""What the tests of the site share: a built site, one browser, and pages that fail their test for any complaint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_boards import attacked_and_timed, made_board
from opened_pages import OpenPage, find_violations, listen

from bench.bundle import make_bundle
from bench.run import RunResult
from leaderboard.boards import RESULTS, Board, Boards, Unranked, read_boards
from leaderboard.entries import Summarised, read_entry, read_reference
from leaderboard.site import write_site

N_ROWS = 12


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; the test is skipped where it, or Playwright, is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def real_bundle(finished_run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the toy `colours` over the small suite; to be read only."""
    return make_bundle(finished_run.folder, tmp_path_factory.mktemp("real") / "bundle", overwrite=False)


@pytest.fixture(scope="session")
def shipped_boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    """The boards of the rows that ship, validated anew once for all tests that look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(tmp_path_factory.mktemp("shipped")))
        return read_boards([RESULTS])


@pytest.fixture(scope="session")
def made_site(real_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a site of 12 made rows, with attacks, timings, an unranked and a rejected bundle; read only."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        board = made_board(
            attacked_and_timed(read_entry(real_bundle, read_reference(real_bundle))), N_ROWS, real_bundle
        )
        write_site(
            Boards((with_asides(board),), (("bad-bundle", "cells/a.json: status: Field required."),)), folder / "site"
        )
    return folder / "site"


@pytest.fixture
def open_page(request: pytest.FixtureRequest, browser: Any) -> Iterator[OpenPage]:
    """Opens pages; at its end the test fails for what any of them complained of or asked the network for."""
    complaints: list[str] = []
    contexts = []

    def open_one(path: Path | str, width: int = 1440, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        listen(page, complaints)
        page.goto(_url_of(path, request), wait_until="load")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def attacked() -> Callable[[Summarised], Summarised]:
    """`attacked_and_timed`, for the tests that make boards of their own."""
    return attacked_and_timed


@pytest.fixture
def axe() -> Callable[[Any], list[str]]:
    """`find_violations`, for the tests of the pages."""
    return find_violations


def _url_of(path: Path | str, request: pytest.FixtureRequest) -> str:
    if str(path).startswith("file:"):
        return str(path)
    place, rest = re.fullmatch(r"([^?#]*)(.*)", str(path), re.DOTALL).groups()
    folder = Path("/") if place.startswith("/") else request.getfixturevalue("made_site")
    return (folder / place).as_uri() + rest


def with_asides(board: Board) -> Board:
    """With a submission that is not ranked."""
    return replace(board, unranked=(Unranked("half-done", "lacks 3 of 9 cells"),))
