"""The protocol in the reader's words, and the bundles that were left out."""

from __future__ import annotations

from collections.abc import Iterator

from leaderboard.boards import Boards
from leaderboard.rendering import Page, Script


def parts(found: Boards) -> Iterator[Page | Script]:
    """One page."""
    yield Page("about.html", "about.html", {"rejected": found.rejected})
