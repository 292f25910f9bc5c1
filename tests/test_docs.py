"""Docs name commands, options, files and headings that exist, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from bench.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "submissions/README.md",
        "submissions/*/README.md",
        "leaderboard/results/*.md",
    )
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^(`{3,}|~{3,})")
END_OF_COMMAND = ("|", ">", ">>", "&&", ";", "(", ")")
STANDS_FOR_MORE = re.compile(r"\.{3,4}|[A-Z]+\.*")
"""An ellipsis, or a name in capitals: a place for arguments that the text describes."""


class Command(NamedTuple):
    """A command line, and where it stands."""

    path: Path
    line: int
    words: list[str]


def find_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Every line of fenced and indented code, with its number; lines that end in a backslash are joined."""
    fence, start, joined = "", 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif fence and line.startswith(fence):
            fence = ""
        elif fence or line.startswith("    "):
            start, joined = start or number, joined + line.strip()
            if joined.endswith("\\"):
                joined = joined.removesuffix("\\")
                continue
            yield start, joined
            start, joined = 0, ""


def find_spans(text: str) -> Iterator[tuple[int, str]]:
    """Every piece of code inside a sentence, which may go over a line's end."""
    prose = re.sub(
        r"^(?:(`{3,}).*?^\1|    )[^\n]*$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S
    )
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        yield 1 + prose.count("\n", 0, span.start()), " ".join(span[1].split())


def find_commands(path: Path) -> Iterator[Command]:
    """The `rove` command lines of a text; what stands around them in a shell, and comments, are cut off."""
    text = path.read_text(encoding="utf-8")
    for line, code in (*find_blocks(text), *find_spans(text)):
        for found in re.finditer(r"(?:^|\$ |\$\(|&& |; )(rove [^$].*)", code):
            words = shlex.shlex(found[1], posix=True, punctuation_chars="|&;<>()")
            words.whitespace_split, words.commenters = True, "#"
            kept = []
            for word in words:
                if word in END_OF_COMMAND:
                    break
                kept.append(word)
            yield Command(path, line, kept)


def find_problem(words: list[str]) -> str:
    """What of a command line does not exist; "" if all of it does."""
    command, name, rest = typer.main.get_command(app), "rove", words[1:]
    while getattr(command, "commands", {}):
        if not rest or rest[0].startswith("-") or STANDS_FOR_MORE.fullmatch(rest[0]):
            break
        if rest[0] not in command.commands:  # type: ignore[attr-defined]
            return f"'{name}' has no command '{rest[0]}'"
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]  # type: ignore[attr-defined]
    return _find_wrong_argument(command, name, rest)


def _find_wrong_argument(command: Any, name: str, words: list[str]) -> str:
    options = {flag: param for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    most = 1_000 if any(param.nargs == -1 for param in arguments) else sum(param.nargs for param in arguments)
    n_given, rest = 0, list(words)
    while rest:
        word = rest.pop(0)
        flag, has_value = word.partition("=")[::2] if word.startswith("--") else (word, "")
        if flag == "--help":
            continue
        if word.startswith("-") and word != "-":
            if flag not in options:
                return f"'{name}' has no option '{flag}'"
            n_values = 0 if has_value or options[flag].is_flag else options[flag].nargs
            if len(rest) < n_values and not any(STANDS_FOR_MORE.fullmatch(value) for value in rest):
                return f"'{name} {flag}' lacks its value"
            del rest[:n_values]
        else:
            n_given += not re.fullmatch(r"\.{3,4}", word)
    stands_for_more = any(STANDS_FOR_MORE.fullmatch(word) for word in words)
    return f"'{name}' takes {most} arguments; got {n_given}" if n_given > most and not stands_for_more else ""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_text_exists(path: Path) -> None:
    problems = [
        f"line {c.line}: {found}: {' '.join(c.words)}" for c in find_commands(path) if (found := find_problem(c.words))
    ]
    assert not problems, "\n".join(problems)


def test_commands_are_found_where_they_stand() -> None:
    found = [command.words for command in find_commands(ROOT / "README.md")]
    assert ["rove", "verify", "shifted"] in found
    assert len(found) > 30


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rove run tiny --suite demo-v1", ""),
        ("rove run ...", ""),
        ("rove time --compare a b --gallery 1M", ""),
        ("rove site build a b c -o site", ""),
        ("rove rnu tiny", "no command 'rnu'"),
        ("rove run tiny --siute demo-v1", "no option '--siute'"),
        ("rove site built", "no command 'built'"),
        ("rove run tiny other --suite demo-v1", "takes 1 arguments; got 2"),
        ("rove run tiny --suite", "lacks its value"),
    ],
)
def test_what_does_not_exist_is_named(line: str, expected: str) -> None:
    found = find_problem(shlex.split(line))
    assert expected in found if expected else not found


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def find_broken_links(path: Path) -> list[str]:
    """Links of a text within the repository that lead to no file, or to no heading of it."""
    text = re.sub(r"^(`{3,}).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        headings = (
            re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            if file.suffix == ".md" and file.is_file()
            else []
        )
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(link)
    return broken


def is_written_from_code(path: Path, link: str) -> bool:
    """Whether a link leads to the reference, which only the site has."""
    return (path.parent / link).resolve().is_relative_to(ROOT / "docs" / "reference")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    assert [link for link in find_broken_links(path) if not is_written_from_code(path, link)] == []


def test_citation_and_changelog_are_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert re.search(rf"\b{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text())


def test_pins_of_the_site_are_those_of_rove_where_they_can_be() -> None:
    ours, site = (
        dict(line.split("==") for line in (ROOT / name).read_text().split() if "==" in line)
        for name in ("constraints.txt", "docs/requirements.txt")
    )
    differing = {name for name in ours.keys() & site.keys() if ours[name] != site[name]}
    assert differing <= {"idna", "requests", "urllib3"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    own = ROOT / ".venv-docs" / "bin" / "mkdocs"
    mkdocs = str(own) if own.is_file() else shutil.which("mkdocs")
    if mkdocs is None:
        pytest.skip("mkdocs is not here; `make docs` installs it into .venv-docs")
    built = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "reference/commands.html", "reference/catalogue.html", "reference/interfaces.html"} <= pages
    commands = (tmp_path / "site/reference/commands.html").read_text()
    assert all(f'id="rove-{name}"' in commands for name in typer.main.get_command(app).commands)  # type: ignore[attr-defined]
