"""Pages opened in a browser: what they are, what they complain of, and what axe-core finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest


class OpenPage(Protocol):
    """Opens a page from disk."""

    def __call__(self, path: Path | str, width: int = 1440, scheme: str = "light") -> Any:
        """The Playwright page, loaded.

        Args:
            path: below `made_site` unless absolute; `?...` and `#...` may stand behind it.
            width: of the window, in CSS pixels.
            scheme: `light` or `dark`.
        """


def listen(page: Any, complaints: list[str]) -> None:
    """Collects errors, warnings (violations of the content policy are among them) and requests that leave the disk."""

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{page.url}: console {message.type}: {message.text}")

    def on_request(asked: Any) -> None:
        if not asked.url.startswith(("file:", "data:", "blob:")):
            complaints.append(f"{page.url}: request: {asked.url}")

    page.on("console", on_console)
    page.on("request", on_request)
    page.on("pageerror", lambda error: complaints.append(f"{page.url}: error: {error}"))


def find_violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page's accessibility, each with the element; it fetches no style sheet."""
    api = "axe_playwright_python.sync_playwright"
    axe = pytest.importorskip(api, reason="needs axe: pip install axe-playwright-python")
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    return [f"{rule['id']}: {node['html'][:300]}" for rule in found for node in rule["nodes"]]
