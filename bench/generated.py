"""Generated data sets on disk: what lies in one, and the proof that a copy is whole.

A folder holds `data/<config>/*.parquet`, a card that names the configurations for the `datasets` library, and
`manifest.json`, which is written last: a folder without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import IncompleteError, InputError
from bench.records import Line, Sha256, read_json
from bench.store import sha256_of

MANIFEST = "manifest.json"
PLAN = "plan.json"
CARD = "README.md"
LOCK = ".lock"
_ABOUT_SHIFTED = """Images are PNG on the canonical canvas (shorter side at most 384 px); `clean_canvas` has them
unshifted. Rows of captions go with its rows by `image_id`."""
_ABOUT_ATTACKED = """Made against the submission `{}`. Images are PNG at the size that it looks at; `crops` has them
without an attack. Rows go together by `image_id`; attacked captions stand beside `original_captions`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    """One configuration of a generated data set: a shift at a severity."""

    config: Line = Field(description="the folder below data/, and the configuration's name for `datasets`")
    shift: Line = Field(description="the id, such as gaussian_noise:3, or clean_canvas")
    kind: Literal["images", "captions", "distractor_images", "distractor_captions"]
    version: Annotated[int, Field(ge=0)]
    n_rows: Annotated[int, Field(ge=0)]
    n_unchanged: Annotated[int, Field(ge=0)] = Field(
        default=0, description="captions left as they are, or that gave no distractor"
    )
    content_sha256: Sha256 = Field(description="as in a run's records: over the pixels, or the captions")
    files: dict[Line, Sha256] = Field(description="path within the folder to sha256")


class Plan(_Strict):
    """What a generated data set is made from; the same plan gives the same bytes on the same processor."""

    schema_version: Literal[1] = 1
    collection: Line
    revision: Line
    source_sha256: Sha256
    n_images: Annotated[int, Field(ge=1)]
    n_captions: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    shifts: tuple[Line, ...]
    victim: Line = Field(default="", description="of attacked copies: the submission that they were made against")
    victim_fingerprint: Line = ""
    role: Line = Field(default="", description="of attacked copies: what the items are in the retrieval")
    versions: dict[Line, Line] = Field(description="of Rove and of the packages that decide the bytes")
    processor: Line


class GeneratedManifest(_Strict):
    """The contents of `manifest.json`."""

    plan: Plan
    skipped: dict[Line, Annotated[str, Field(max_length=2000)]] = Field(
        default={}, description="shifts that could not run here, and why"
    )
    parts: tuple[Part, ...]


def config_name(shift_id: str) -> str:
    """`gaussian_noise:3` as a folder and configuration name."""
    return shift_id.replace(":", "-")


def verify_generated(folder: Path) -> GeneratedManifest:
    """The manifest of a generated data set, after every file has been found to be there, unchanged and alone.

    Raises:
        IncompleteError: generation has not ended.
        InputError: a file is missing, changed or too many; the message names the first of each kind.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / PLAN).is_file():
            raise IncompleteError(f"{folder} is unfinished: the command that began it goes on from where it stopped.")
        raise InputError(f"{folder} holds no {MANIFEST}; expected the --output of `rove generate`.")
    manifest = read_json(folder / MANIFEST, GeneratedManifest)
    expected = {name: digest for part in manifest.parts for name, digest in part.files.items()}
    files = (path for path in folder.rglob("*") if not path.is_dir() and path.suffix != ".bad")  # those were set aside
    present = {path.relative_to(folder).as_posix() for path in files}
    present -= {MANIFEST, CARD, LOCK}
    strange = {name for name in present if not (folder / name).is_file()}
    present -= strange
    problems = [
        *_first("is no plain file", sorted(strange)),
        *_first("is missing", sorted(set(expected) - present)),
        *_first("does not belong to it", sorted(present - set(expected))),
        *_first("does not have the sha256 that the manifest states", _changed(folder, expected, present)),
    ]
    if problems:
        raise InputError(f"{folder} is not what was generated: {'; '.join(problems)}. Copy or generate it again.")
    return manifest


def describe_differences(earlier: Plan, now: Plan) -> str:
    """Which inputs of two plans differ, in words; "" if none do."""
    changed = [name for name in type(now).model_fields if getattr(earlier, name) != getattr(now, name)]
    if "versions" in changed:
        changed.remove("versions")
        changed += _changed_versions(earlier.versions, now.versions)
    return ", ".join(changed)


def make_card(manifest: GeneratedManifest) -> str:
    """The folder's README: configurations for `datasets.load_dataset(FOLDER, CONFIG)`, and how it was made."""
    plan = manifest.plan
    configs = [f"- config_name: {part.config}\n  data_files: data/{part.config}/*.parquet" for part in manifest.parts]
    rows = [f"| {part.config} | {part.kind} | {part.n_rows} | {part.n_unchanged} |" for part in manifest.parts]
    skipped = [f"- {name}: {reason}" for name, reason in manifest.skipped.items()]
    lines = [
        *("---", "configs:", *configs, "---", ""),
        *(f"# {plan.collection}, {'attacked' if plan.victim else 'shifted'}", ""),
        f"Made by Rove {plan.versions.get('rove-bench', '')} from {plan.n_images} images, {plan.n_captions} captions,",
        f"seed {plan.seed}. Photos and captions are under the licence of their source.",
        "",
        *(_ABOUT_ATTACKED.format(plan.victim) if plan.victim else _ABOUT_SHIFTED).splitlines(),
        f"`rove verify` proves a copy against `{MANIFEST}`.",
        *("", "| configuration | rows are | rows | captions left as they are |", "| --- | --- | --- | --- |", *rows),
        *(["", "Not made:", "", *skipped] if skipped else []),
    ]
    return "\n".join(lines) + "\n"


def _first(problem: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{names[0]}{more} {problem}"


def _changed(folder: Path, expected: Mapping[str, str], present: set[str]) -> list[str]:
    names = sorted(set(expected) & present)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: sha256_of(folder / name), names)
        return [name for name, digest in zip(names, digests, strict=True) if digest != expected[name]]


def _changed_versions(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {earlier.get(name, 'absent')} then, {now.get(name, 'absent')} now"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]
