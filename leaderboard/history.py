"""The results tree: which bundles the leaderboard is built from, which of them count, and why each is there.

`ROOT/<suite label>/<submission label>/r<N>/` holds the bundles of a submission, r1, r2, ... in the order in which they
came; `changes.jsonl` beside them has a line for every bundle that was added, run again or withdrawn. Nothing is ever
changed or taken away: a newer revision supersedes the older ones, which stay to be read.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.bundle import INDEX, MAX_BUNDLE_BYTES, MAX_FILES
from bench.errors import InputError, describe_validation
from bench.records import MAX_JSON_BYTES, Line, Sha256, Strict, Text, read_json
from bench.store import cache_folder, locked, new_folder, sha256_of, write_atomic

CHANGES = "changes.jsonl"
MIN_REASON = 10
_README = "README.md"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_REVISION = re.compile(r"r([1-9][0-9]{0,5})")
_UNFINISHED = re.compile(rf"\.(r[0-9]+|{re.escape(CHANGES)})\..+")


class Change(Strict):
    """One line of `changes.jsonl`."""

    model_config = ConfigDict(strict=True)

    revision: Annotated[int, Field(ge=1)]
    event: Literal["added", "reproduced", "withdrawn"]
    bundle_sha256: Sha256 = Field(description="of that revision's bundle.json, which names the hashes of all its files")
    date: datetime.date
    reason: Text
    cells: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of what was reproduced: how many cells were run again"
    )
    machine: Line | None = Field(default=None, description="of what was reproduced: what it was run again on")

    @model_validator(mode="after")
    def _is_complete(self) -> Change:
        least = 1 if self.event == "added" and self.revision == 1 else MIN_REASON
        if len(self.reason.strip()) < least:
            raise ValueError(f"reason has fewer than {least} characters; say why this line is there")
        expected = self.event == "reproduced"
        if (self.cells is not None, bool(self.machine)) != (expected, expected):
            raise ValueError("cells and machine belong to `reproduced`, which has both, and to no other event")
        return self


@dataclass(frozen=True)
class Revision:
    """One bundle of the tree.

    Args:
        folder: the bundle.
        suite: label of the suite, as the tree and `run.json` have it.
        label: the submission's label, likewise.
        number: of the revision, from 1.
        change: the line that added it.
        reproduced: the latest line that says it was run again; None if it never was.
        is_current: whether it is the newest that is not withdrawn; the others are never ranked.
        withdrawn: the line that withdrew it; None if it stands.
    """

    folder: Path
    suite: str
    label: str
    number: int
    change: Change
    reproduced: Change | None = None
    is_current: bool = False
    withdrawn: Change | None = None


class _Origin(BaseModel):
    """What `run.json` says of where a bundle belongs."""

    suite: Line
    label: Line


def read_history(root: Path) -> list[Revision]:
    """Every revision of the tree, by suite, submission and number.

    What a bundle holds is not looked at: `bench.bundle.validate_bundle` does that.

    Raises:
        InputError: the tree is not as it must be; the message names the file, and the line.
    """
    _list_files(root, _README)
    places = [place for suite in _folders_in(root, _README) for place in _folders_in(suite)]
    return [revision for place in places for revision in _read_place(place)]


def add_bundle(bundle: Path, root: Path, reason: str, today: datetime.date) -> Path:
    """Copies a valid bundle into the tree as its submission's next revision, and returns the new folder.

    The folder appears whole, then its line; what an interruption left is finished by the same call.

    Raises:
        InputError: it is the current revision again, it is too large, its labels are no folder's name, the reason is
            too short, or the tree is not as it must be.
        UsageError: another process adds to a tree at this moment.
    """
    files = _list_files(bundle)
    _check_size(bundle, files)
    place = root.joinpath(*_stated_place(bundle))
    with locked(cache_folder() / "results"):
        _clear_unfinished(place)
        target = place / f"r{_count_added(_read_changes(place / CHANGES)) + 1}"
        revisions = _read_place(place, unfinished=target.name) if place.is_dir() else []
        change = _next_change(bundle, revisions, reason, today)
        if target.exists() and not _are_equal(bundle, target):
            raise InputError(f"{target} has no line in {CHANGES} and is not {bundle}; delete it, or add it first.")
        with new_folder(target, INDEX, overwrite=True) as unfinished:
            for name in files:
                write_atomic(unfinished / name, (bundle / name).read_bytes())
        _append(place / CHANGES, change)
    return target


def describe_reproduction(bundle: Path, cells: int, machine: str, reason: str, today: datetime.date) -> Change | None:
    """The line for a revision of the tree that was run again, for a maintainer to append; None of another bundle."""
    folder = bundle.resolve()
    found = _REVISION.fullmatch(folder.name)
    if found is None or not (folder.parent / CHANGES).is_file():
        return None
    return Change(
        revision=int(found[1]),
        event="reproduced",
        bundle_sha256=sha256_of(folder / INDEX),
        date=today,
        reason=reason,
        cells=cells,
        machine=machine,
    )


def to_line(change: Change) -> str:
    """A change as it stands in `changes.jsonl`, without the line break."""
    return json.dumps(change.model_dump(mode="json", exclude_none=True))


def check_addition(base: Path, proposed: Path) -> Revision:
    """The one revision that a proposed tree has and `base` has not, if nothing else differs between them.

    Files are compared by their bytes and links are never followed, so that a stranger's tree can be looked at. What
    the new bundle holds is not: `bench.bundle.validate_bundle` does that.

    Raises:
        InputError: something else differs, or the addition is not as it must be; the message names the file.
    """
    old, new = _list_files(base, _README), _list_files(proposed, _README)
    _check_kept(base, proposed, old, new)
    touched = sorted(name for name, size in new.items() if old.get(name) != size)
    folder = _new_folder(old, touched)
    changes = f"{folder.rpartition('/')[0]}/{CHANGES}"
    stray = next((name for name in touched if name != changes and not name.startswith(f"{folder}/")), None)
    if stray:
        raise InputError(f"{stray} is new; beside {folder} only its line in {changes} may be added.")
    _check_size(proposed / folder, {name: new[name] for name in touched if name != changes})
    _check_appended(base / changes, proposed / changes)
    return _read_place(proposed / changes.rpartition("/")[0])[-1]


def _list_files(folder: Path, extra: str = "") -> dict[str, int]:
    """Every file below a folder, as a path with slashes, with its size in bytes; links are not followed.

    Args:
        folder: where to look.
        extra: a name that may stand in the folder itself though it is none of the tree's.

    Raises:
        InputError: there is no such folder, or something in it has a strange name or is no plain file or folder.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one that holds results.")
    files, waiting = {}, [""]
    while waiting:
        place = waiting.pop()
        with os.scandir(folder / place) as found:
            for item in found:
                name = f"{place}{item.name}"
                if not _NAME.fullmatch(item.name) and name != extra:
                    raise InputError(f"{folder} holds {name!a}, which is no part of it; delete or rename it.")
                status = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    files[name] = status.st_size
                else:
                    raise InputError(f"{folder / name} is a link or a device; expected plain files and folders.")
    return files


def _folders_in(folder: Path, extra: str = "") -> list[Path]:
    """The folders in a folder, by name; `extra` may be a file.

    Raises:
        InputError: another file lies there.
    """
    paths = sorted(path for path in folder.iterdir() if path.name != extra)
    stray = next((path for path in paths if not path.is_dir()), None)
    if stray:
        raise InputError(f"{stray} is a file; expected ROOT/<suite label>/<submission label>/r<N>/ alone.")
    return paths


def _read_place(place: Path, unfinished: str = "") -> list[Revision]:
    """The revisions of one submission on one suite, oldest first.

    Args:
        place: its folder.
        unfinished: name of a revision's folder whose line may be missing; it is left out.

    Raises:
        InputError: folders and lines do not belong together, or a bundle is of another place.
    """
    changes = _read_changes(place / CHANGES)
    _check_order(place / CHANGES, changes)
    names = {path.name for path in place.iterdir()} - {CHANGES, unfinished}
    expected = {f"r{number}" for number in range(1, _count_added(changes) + 1)}
    for name in sorted(names ^ expected):
        lacks = f"its `added` line in {CHANGES}" if name in names else "its folder"
        raise InputError(f"{place / name} lacks {lacks}; revisions are r1, r2, ..., each with its line.")
    revisions = [_read_revision(place, number, changes) for number in range(1, len(expected) + 1)]
    current = max((one.number for one in revisions if not one.withdrawn), default=0)
    return [replace(one, is_current=one.number == current) for one in revisions]


def _read_revision(place: Path, number: int, changes: Sequence[Change]) -> Revision:
    folder = place / f"r{number}"
    stated = _stated_place(folder)
    if stated != (place.parent.name, place.name):
        raise InputError(f"{folder}/run.json is of {'/'.join(stated)}; expected {place.parent.name}/{place.name}.")
    digest = sha256_of(folder / INDEX) if (folder / INDEX).is_file() else "none"
    own: dict[str, Change] = {}
    for line, change in enumerate(changes, start=1):
        if change.revision != number:
            continue
        if change.bundle_sha256 != digest:
            found = f"the bundle_sha256 {change.bundle_sha256}; {folder}/{INDEX} has {digest}"
            raise InputError(f"{place / CHANGES}, line {line}, states {found}.")
        own[change.event] = change
    return Revision(
        folder=folder,
        suite=stated[0],
        label=stated[1],
        number=number,
        change=own["added"],
        reproduced=own.get("reproduced"),
        withdrawn=own.get("withdrawn"),
    )


def _stated_place(bundle: Path) -> tuple[str, str]:
    """The suite's and the submission's label, as a bundle's run.json has them.

    Raises:
        InputError: there is no run.json, or a label is no folder's name.
    """
    origin = read_json(bundle / "run.json", _Origin)
    for label in (origin.suite, origin.label):
        if not _NAME.fullmatch(label):
            raise InputError(f"{bundle}/run.json has the label {label!a}; expected {_NAME.pattern} as a folder.")
    return origin.suite, origin.label


def _read_changes(path: Path) -> list[Change]:
    """The lines of a `changes.jsonl`; none if it does not exist.

    Raises:
        InputError: it is too large, or a line is not as it must be; the message names it.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES or not raw.endswith(b"\n"):
        raise InputError(f"{path} has {len(raw)} bytes; expected up to {MAX_JSON_BYTES}, and a line break at the end.")
    return [_parse_change(path, number, line) for number, line in enumerate(raw[:-1].split(b"\n"), start=1)]


def _parse_change(path: Path, number: int, line: bytes) -> Change:
    try:
        keys = [key for key, _ in json.loads(line, object_pairs_hook=list)]
        change = Change.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{path}, line {number}: {describe_validation(error)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}, line {number}, is no JSON object: {error}.") from None
    if len(set(keys)) != len(keys):
        raise InputError(f"{path}, line {number}, has a key twice.")
    return change


def _check_order(path: Path, changes: Sequence[Change]) -> None:
    """Revisions are added one after the other; what else is said of one follows, and nothing follows a withdrawal."""
    n_added, withdrawn = 0, set()
    for line, change in enumerate(changes, start=1):
        if change.event == "added":
            n_added += 1
        if change.revision > n_added or (change.event == "added" and change.revision != n_added):
            raise InputError(f"{path}, line {line}, is of revision {change.revision}; {n_added} is the newest there.")
        if change.revision in withdrawn:
            raise InputError(f"{path}, line {line}: revision {change.revision} was withdrawn before.")
        if change.event == "withdrawn":
            withdrawn.add(change.revision)


def _count_added(changes: Sequence[Change]) -> int:
    return sum(change.event == "added" for change in changes)


def _next_change(bundle: Path, revisions: Sequence[Revision], reason: str, today: datetime.date) -> Change:
    """The line of a bundle that is to be added behind `revisions`.

    Raises:
        InputError: the current revision is the same bundle, or the reason is too short or too long.
    """
    digest = sha256_of(bundle / INDEX)
    current = next((one for one in revisions if one.is_current), None)
    if current and current.change.bundle_sha256 == digest:
        raise InputError(f"{bundle} is {current.folder} again, byte for byte; there is nothing to add.")
    try:
        return Change(
            revision=len(revisions) + 1, event="added", bundle_sha256=digest, date=today, reason=reason.strip()
        )
    except ValidationError as error:
        raise InputError(f"--reason: {describe_validation(error)}") from None


def _append(path: Path, change: Change) -> None:
    write_atomic(path, (path.read_bytes() if path.exists() else b"") + f"{to_line(change)}\n".encode())


def _clear_unfinished(place: Path) -> None:
    """Removes the temporary files and folders of an addition that was killed."""
    for path in place.iterdir() if place.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _are_equal(first: Path, second: Path) -> bool:
    files = _list_files(first)
    return files == _list_files(second) and all(
        _same_bytes(first / name, second / name, size) for name, size in files.items()
    )


def _same_bytes(first: Path, second: Path, size: int) -> bool:
    """Whether two files are the same in their first `size` bytes."""
    with first.open("rb") as one, second.open("rb") as other:
        return one.read(size) == other.read(size)


def _check_size(bundle: Path, files: Mapping[str, int]) -> None:
    n_bytes = sum(files.values())
    if n_bytes > MAX_BUNDLE_BYTES or len(files) > MAX_FILES:
        found = f"{len(files)} files of {n_bytes} bytes, the largest {max(files, key=lambda name: files[name])}"
        raise InputError(f"{bundle} has {found}; expected up to {MAX_FILES} and {MAX_BUNDLE_BYTES} bytes.")


def _check_kept(base: Path, proposed: Path, old: Mapping[str, int], new: Mapping[str, int]) -> None:
    """Nothing, if every file of `base` is in `proposed` with the same bytes; a `changes.jsonl` may have more lines."""
    for name, size in sorted(old.items()):
        if name not in new:
            raise InputError(f"{name} is missing; results stay, and what was wrong is withdrawn by a maintainer.")
        grows = name.endswith(f"/{CHANGES}") and new[name] <= MAX_JSON_BYTES
        if (size != new[name] and not grows) or not _same_bytes(base / name, proposed / name, size):
            raise InputError(f"{name} differs; results are never changed: a new bundle is a new revision.")


def _new_folder(old: Iterable[str], touched: Sequence[str]) -> str:
    """`<suite label>/<submission label>/r<N>` of the one revision that has files among `touched` and had none before.

    Raises:
        InputError: there is none, or more than one.
    """
    before, after = ({_revision_of(name) for name in names} - {""} for names in (old, touched))
    added = sorted(after - before)
    if len(added) != 1:
        found = " and ".join(added[:2]) or (touched[0] if touched else "nothing")
        raise InputError(f"{found} is new; expected one new folder <suite label>/<submission label>/r<N>.")
    return added[0]


def _revision_of(name: str) -> str:
    """The revision's folder that a file lies in; empty if it lies in none."""
    parts = name.split("/")
    return "/".join(parts[:3]) if len(parts) > 3 and _REVISION.fullmatch(parts[2]) else ""


def _check_appended(base: Path, proposed: Path) -> None:
    """Nothing, if `proposed` has the lines of `base` and one more, `added`."""
    events = [change.event for change in _read_changes(proposed)[len(_read_changes(base)) :]]
    if events != ["added"]:
        found = ", ".join(events) or "none"
        raise InputError(f"{proposed} has new lines: {found}; expected one, `added`; others are a maintainer's.")
