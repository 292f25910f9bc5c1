"""Every kind of page: it complains of nothing, fits a phone, is accessible, and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from opened_pages import OpenPage, find_violations

KINDS = (
    "index.html",
    "about.html",
    "*/index.html",
    "*/plots.html",
    "*/shifts.html",
    "*/shifts/*.html",
    "*/attacks.html",
    "*/compare.html",
    "*/weights.html",
    "*/submissions/*.html",
)
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
}
_NO_URL = ("data:", "https://")


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and what stands inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem and data.strip():
            self.inline.append(data)

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}

    @property
    def links(self) -> Iterator[str]:
        for _, attributes in self.found:
            yield from (attributes[name] for name in ("href", "src") if name in attributes)


@pytest.fixture(scope="module")
def pages(made_site: Path) -> dict[Path, Tags]:
    return {path: Tags(path.read_text(encoding="utf-8")) for path in sorted(made_site.rglob("*.html"))}


def test_every_page_is_of_a_kind_that_is_looked_at(made_site: Path, pages: dict[Path, Tags]) -> None:
    strange = [path for path in pages if not any(path.relative_to(made_site).match(kind) for kind in KINDS)]
    assert strange == []


def test_links_lead_to_files_and_anchors_that_exist(made_site: Path, pages: dict[Path, Tags]) -> None:
    broken = [
        f"{path.relative_to(made_site)}: {link}"
        for path, tags in pages.items()
        for link in tags.links
        if not link.startswith(_NO_URL) and not leads_somewhere(path, link, pages, made_site)
    ]
    assert broken == []


def leads_somewhere(path: Path, link: str, pages: dict[Path, Tags], site: Path) -> bool:
    parts = urlsplit(link)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if parts.scheme or parts.netloc or not target.is_file() or not target.is_relative_to(site):
        return False
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids


def test_pages_have_the_policy_and_nothing_inline(made_site: Path, pages: dict[Path, Tags]) -> None:
    for path, tags in pages.items():
        where = str(path.relative_to(made_site))
        assert stated_policy(tags) >= POLICY.items(), where
        assert tags.inline == [], where
        for tag, attributes in tags.found:
            assert tag not in ("style", "iframe", "object", "embed", "base"), where
            assert tag != "script" or "src" in attributes, where
            assert not [name for name in attributes if name == "style" or name.startswith("on")], (where, tag)


def stated_policy(tags: Tags) -> set[tuple[str, str]]:
    """The directives of the policy, which must come before anything that it is to rule."""
    first = next(i for i, (tag, _) in enumerate(tags.found) if tag in ("script", "link", "img"))
    metas = [attributes for tag, attributes in tags.found[:first] if tag == "meta"]
    (policy,) = [meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy"]
    assert not re.search("unsafe|\\*|http", policy)
    return {tuple(directive.strip().split(" ", 1)) for directive in policy.split(";")}


@pytest.mark.parametrize("kind", KINDS)
def test_page_opens_without_complaint_on_any_screen(open_page: OpenPage, made_site: Path, kind: str) -> None:
    path = min(made_site.glob(kind))
    for width, scheme in ((360, "light"), (1440, "dark"), (360, "dark"), (1440, "light")):
        page = open_page(path, width=width, scheme=scheme)
        if kind.endswith("compare.html"):
            page.get_by_text("Compared over").wait_for()
        if width == 360:
            assert page.evaluate("document.documentElement.scrollWidth") == width
        if (width, scheme) in ((360, "dark"), (1440, "light")):
            assert find_violations(page) == []
        page.context.close()
