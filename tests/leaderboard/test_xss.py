"""Nothing that a submitter wrote runs, loads anything or leads anywhere but https, whatever is opened and touched.

The content policy is switched off in the browser here, so that escaping alone has to hold; that no page violates the
policy is tested beside it.
"""

from __future__ import annotations

import csv
import html
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opened_pages import listen
from strange_boards import PAYLOADS, Tally, strange_boards
from test_browser_site import KINDS, Tags

from leaderboard.entries import read_entry
from leaderboard.site import write_site

HOOK = """
window.__executed = [];
for (const name of ["alert", "confirm", "prompt", "open"]) window[name] = (...args) => window.__executed.push(name);
addEventListener("submit", (event) => { window.__executed.push("submit"); event.preventDefault(); }, true);
"""
# Elements that a page of ours never has, addresses that leave it, and handlers in the markup.
FIND_STRANGE = """() => {
  const banned = "iframe, object, embed, base, marquee, math, foreignObject, animate, video, source, mglyph, " +
    "body form form, meta[http-equiv=refresh], script:not([src]), style:not([class])";
  const found = [...document.querySelectorAll(banned)].map((one) => one.outerHTML.slice(0, 200));
  const local = (url) => /^(https|file|data|blob):/.test(url);
  for (const one of document.querySelectorAll("*")) {
    const handlers = [...one.attributes].filter(({ name }) => name.startsWith("on"));
    const addresses = ["href", "src", "action", "xlink:href"].map((name) => one.getAttribute(name)).filter(Boolean);
    const isStray = (text) => !local(new URL(text, document.baseURI).href) || /^(data|file|\\/\\/)/i.test(text);
    const leading = addresses.filter(isStray);
    if (handlers.length || leading.some((text) => text !== "data:,")) found.push(one.outerHTML.slice(0, 200));
  }
  return found;
}"""
# What a reader does: everything is clicked, chosen, typed into and pointed at. Links are not followed.
TOUCH = """async ([limit, payload]) => {
  let touched = 0;
  const pause = () => new Promise((resume) => setTimeout(resume));
  const some = (selector) => [...document.querySelectorAll(selector)].slice(0, limit);
  const isLink = (one) => one.closest?.("a[href]:not([download])");
  addEventListener("click", (event) => isLink(event.target) && event.preventDefault(), true);
  const tell = (one, ...names) => names.forEach((name) => one.dispatchEvent(new Event(name, { bubbles: true })));
  const each = async (selector, touch) => {
    for (const one of some(selector)) {
      if (!one.isConnected) continue; // drawn anew meanwhile
      touch(one);
      touched++;
      await pause();
    }
  };
  await each("summary, button:not(#reset), thead th, [role=button], [role=switch], a[href]", (one) => one.click());
  await each("select", (one) => { one.selectedIndex = one.options.length - 1; tell(one, "input", "change"); });
  await each("input[type=checkbox], input[type=radio]", (one) => one.click());
  await each("input:not([type=checkbox], [type=radio])", (one) => {
    one.focus();
    one.value = ["range", "number"].includes(one.type) ? one.max || 3 : payload;
    tell(one, "input", "change");
  });
  for (const one of some("svg path, svg circle, svg rect, svg text, td, [data-tip], [title]")) {
    const box = one.getBoundingClientRect();
    const place = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
    const names = ["pointerover", "pointermove", "mouseover", "mousemove"];
    names.forEach((name) => one.dispatchEvent(new MouseEvent(name, place)));
    touched++;
  }
  await pause();
  return touched;
}"""
FORMULA = re.compile(r"[\s\x00-\x1f]*[=+\-@|%]")


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@pytest.fixture(scope="module")
def strange_site(real_bundle: Path, tmp_path_factory: pytest.TempPathFactory, attacked: Any, tally: Tally) -> Path:
    folder = tmp_path_factory.mktemp("strange")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        boards = strange_boards(attacked(read_entry(real_bundle)), real_bundle, tally)
        write_site(boards, folder / "site")
    return folder / "site"


@pytest.fixture
def unprotected_page(browser: Any) -> Iterator[Any]:
    """A page without the content policy; its complaints are in `complaints`, what it saved is in `saved`."""
    context = browser.new_context(bypass_csp=True, accept_downloads=True)
    context.add_init_script(HOOK)
    page = context.new_page()
    page.complaints, page.saved = [], []
    listen(page, page.complaints)
    page.on("download", lambda file: page.saved.append(file))
    page.on("dialog", lambda dialog: page.complaints.append(f"dialog: {dialog.message}") or dialog.dismiss())
    context.on("page", lambda other: page.complaints.append(f"another page: {other.url}"))
    yield page
    context.close()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Writes a line of figures past pytest's capture."""

    def write(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return write


def test_corpus_is_planted_in_every_text_that_takes_it(
    strange_site: Path, tally: Tally, tell: Callable[[str], None]
) -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) >= 60
    free = (
        "Manifest.title",
        "Manifest.summary",
        "Manifest.method",
        "Manifest.base",
        "Manifest.license",
        "Change.reason",
    )
    free += ("Manifest.authors", "Manifest.trained_on", "Manifest.requires", "RunManifest.label", "RunManifest.device")
    free += ("RunManifest.command", "Environment.processor", "Attacked.verdict", "Check.detail", "TimingRecord.flags")
    free += ("Probe.detail",)
    assert {name: tally.planted[name] for name in free if tally.planted[name] < 60} == {}
    assert tally.planted["Manifest.url"] > 0
    closed = ("Manifest.name", "RunManifest.fingerprint", "Cell.shift", "Entry.bundle_sha256", "Attacked.direction")
    words = 3  # `constructor` is a name like any other, here and in both directions of the attack
    assert {name: tally.planted[name] for name in closed if tally.planted[name] > words} == {}
    n_fields = len(tally.planted | tally.refused)
    tell(
        f"{len(PAYLOADS)} payloads, {n_fields} fields:"
        f" planted {tally.planted.total()} times, refused by the schema {tally.refused.total()} times"
    )


def test_payloads_reach_the_pages_as_text(strange_site: Path) -> None:
    """Otherwise the other tests would pass for want of anything to escape."""
    texts = "".join(
        html.unescape(path.read_text(encoding="utf-8")) for path in strange_site.rglob("submissions/*.html")
    )
    absent = [
        payload for payload in PAYLOADS if not re.search(r"[\x00-\x1f\u202e\u2028]", payload) and payload not in texts
    ]
    assert absent == []


def test_no_markup_of_a_payload_stands_in_any_page(strange_site: Path) -> None:
    ours = {"script", "link", "meta", "img"}
    for path in sorted(strange_site.rglob("*.html")):
        tags = Tags(path.read_text(encoding="utf-8"))
        assert tags.inline == [], path.name
        for tag, attributes in tags.found:
            assert not [name for name in attributes if name == "style" or name.startswith("on")], (path.name, tag)
            links = [attributes[name] for name in ("href", "src") if name in attributes]
            assert all(
                re.match(r"https://example\.org/|https://evil\.example/|(?![a-z]*:|//)|data:,$", link) for link in links
            )
            assert tag not in ours or not any("evil" in link for link in links), (path.name, tag)


def test_scripts_of_data_hold_no_markup(strange_site: Path) -> None:
    for path in strange_site.rglob("*.js"):
        if "static" not in path.relative_to(strange_site).parts:
            text = path.read_text(encoding="utf-8")
            assert text.isascii(), path.name
            assert not re.search("[<>&]", text), path.name


def test_nothing_runs_when_every_kind_of_page_is_opened_and_touched(
    strange_site: Path, unprotected_page: Any, tell: Callable[[str], None]
) -> None:
    page, touched = unprotected_page, 0
    paths = [path for kind in KINDS for path in sorted(strange_site.glob(kind))[:1]]
    for path in paths:
        for query in ("", f"?a={PAYLOADS[0]}&b={PAYLOADS[2]}&q={PAYLOADS[2]}&sort={PAYLOADS[3]}#{PAYLOADS[2]}"):
            page.goto(path.as_uri() + query)
            title = page.title()
            if not query:
                if path.name == "compare.html":
                    page.get_by_text("Compared over").wait_for(timeout=60_000)
                touched += page.evaluate(TOUCH, [20, PAYLOADS[2]])
            assert page.evaluate("window.__executed") == [], path
            assert page.evaluate(FIND_STRANGE) == [], path
            assert page.title() == title
    assert page.complaints == []
    tell(f"{len(paths)} kinds of page, {touched} elements touched, {len(page.saved)} files saved: 0 runs, 0 requests")


def test_nothing_runs_on_any_submissions_page(strange_site: Path, unprotected_page: Any) -> None:
    page, paths = unprotected_page, sorted(strange_site.rglob("submissions/*.html"))
    assert len(paths) == len(PAYLOADS)
    for path in paths:
        page.goto(path.as_uri())
        assert page.evaluate("window.__executed") == [], path.name
        assert page.evaluate(FIND_STRANGE) == [], path.name
    assert page.complaints == []


def test_files_of_comparisons_hold_no_formula(strange_site: Path, unprotected_page: Any) -> None:
    page = unprotected_page
    (place,) = strange_site.glob("*/compare.html")
    page.goto(place.as_uri())
    rows = page.evaluate("rove.compare.rows")
    formulas = [row["id"] for row in rows if FORMULA.match(row["name"])]
    assert len(formulas) >= 5
    for first, second in zip(formulas[::2], formulas[1::2], strict=False):
        page.goto(f"{place.as_uri()}?a={first}&b={second}")
        page.get_by_text("Compared over").wait_for(timeout=60_000)
        with page.expect_download() as caught:
            page.get_by_role("button", name="Download CSV").click()
        lines = list(csv.reader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8"))))
        assert len({len(line) for line in lines}) == 1
        fields = [field for line in lines for field in line]
        assert [field for field in fields if FORMULA.match(field) and not is_number(field)] == []


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
