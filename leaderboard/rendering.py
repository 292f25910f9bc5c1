"""How pages are written: templates that escape, figures with their intervals, data as scripts, one content policy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.records import Estimate
from leaderboard.sizes import name_size

if TYPE_CHECKING:
    pass

_TEMPLATES = Path(__file__).parent / "templates"


class Page(NamedTuple):
    """A page to be written.

    Args:
        path: from the site's folder, such as `demo-core-v1/index.html`.
        template: its file's name.
        context: what the template is given besides the site and the board.
    """

    path: str
    template: str
    context: Mapping[str, Any]

    @property
    def root(self) -> str:
        """The way back to the site's folder: empty, `../` or `../../`."""
        return "../" * self.path.count("/")


class Script(NamedTuple):
    """Data for the browser: `rove.NAME = VALUE`, loaded as a script, because a page opened from disk may fetch nothing.

    Args:
        path: from the site's folder, ending in `.js`.
        name: an identifier of ours, such as `rows`; names of a stranger's stand in `value`.
        value: plain data; no number is NaN or infinite.
    """

    path: str
    name: str
    value: Any

    def text(self) -> str:
        """The script; what a stranger wrote can end neither it nor a string in it."""
        text = json.dumps(self.value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        return f"(window.rove ||= {{}}).{self.name} = {safe};\n"


class File(NamedTuple):
    """A text file to be written as it is; its path is from the site's folder."""

    path: str
    content: str


Part = Page | Script | File


class Figure(NamedTuple):
    """A value and its 95 % interval, as text; both empty where there is none."""

    value: str
    interval: str


def percent(estimate: Estimate | None) -> Figure:
    """A fraction as percent, to a tenth."""
    return figure(estimate, 100)


def percent_cell(estimate: Estimate | None) -> Markup:
    """`percent` as markup, with its interval below."""
    value, interval = percent(estimate)
    return Markup(f'{value}<span class="ci">{interval}</span>')


def percent_cells(estimates: Iterable[Estimate | None]) -> Markup:
    """Table cells of `percent_cell`, in one piece: a page may have thousands of them."""
    return Markup("".join(f"<td>{percent_cell(estimate)}</td>" for estimate in estimates))


def figure(estimate: Estimate | None, scale: float = 1, digits: int = 1) -> Figure:
    """An estimate times `scale`."""
    if estimate is None:
        return Figure("", "")
    interval = f"{scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f}"
    return Figure(f"{scale * estimate.value:.{digits}f}", interval)


def millions(count: int | None) -> str:
    """Parameters as people say them: `4.9 M`, `24.6 k`."""
    if count is None:
        return ""
    return f"{count / 1e6:,.1f} M" if count >= 100_000 else f"{count / 1e3:.1f} k"


def short(number: float | None) -> str:
    """Three digits, and no exponent however large; empty where there is none."""
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def make_environment() -> Environment:
    """Templates that escape everything and know the functions of this module."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "percent_cell": percent_cell,
        "percent_cells": percent_cells,
        "figure": figure,
        "millions": millions,
        "short": short,
        "name_size": name_size,
    }
    return environment
