"""Collections of the Hugging Face hub, read through the `datasets` library.

The tars of one split are fetched at a commit (or found in the hub's cache), and `datasets` makes an Arrow file of them,
from which captions are read at once and encoded images one by one. The commit is recorded in the collection's revision.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.images import EncodedImage
from bench.data.rows import Row, collect
from bench.data.wds import IMAGE_FIELDS, list_shards, split_captions
from bench.errors import InputError
from bench.types import Collection

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub: its repository and the commit to read (None: the newest one)."""

    repository: str
    commit: str | None = None


def load(source: HubSource, name: str, split: str, *, offline: bool = False) -> Collection:
    """One split of `source`, called `name`/`split`; image ids are the rows' keys.

    Args:
        source: a data set whose rows have an image, `txt` with one caption per line, and `__key__`.
        offline: use only what the hub's cache holds.

    Raises:
        InputError: it cannot be fetched, or is not what was expected; the message says how to get it.
    """
    import datasets

    snapshot = _fetch(source, name, split, offline=offline)
    table = _read_table(list_shards(snapshot / split), split)
    column = _image_column(table, source)
    table = table.cast_column(column, datasets.Image(decode=False))
    keys, texts = table["__key__"][:], table["txt"][:]
    rows = [
        Row(EncodedImage(key, partial(_read_image, table, column, index)), split_captions(text or ""))
        for index, (key, text) in enumerate(zip(keys, texts, strict=True))
    ]
    return collect(f"{name}/{split}", rows, f"{source.repository}@{snapshot.name}")


def _fetch(source: HubSource, name: str, split: str, *, offline: bool) -> Path:
    """The cached snapshot of the repository, which is called after its commit, with the split's tars in it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = huggingface_hub.snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=source.commit,
            allow_patterns=[f"{split}/*.tar", f"{split}/nshards.txt"],
            local_files_only=offline,
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _unavailable(source, name, split, str(error), offline=offline) from error
    if not any(Path(folder, split).glob("*.tar")):
        raise _unavailable(source, name, split, f"{source.repository} has no {split}/*.tar", offline=offline)
    return Path(folder)


def _unavailable(source: HubSource, name: str, split: str, cause: str, *, offline: bool) -> InputError:
    offline_cause = "is not in the hub's cache, and --offline forbids fetching it"
    reason = offline_cause if offline else f"cannot be fetched: {' '.join(cause.split())[:200]}"
    commit = f" --revision {source.commit}" if source.commit else ""
    fetch = f"hf download --repo-type dataset {source.repository}{commit} --include '{split}/*'"
    local = f"--data-dir {name}=FORMAT:PATH"
    return InputError(
        f"{name}/{split} {reason}. Run `{fetch}` where there is a network, or name a local copy: {local}."
    )


def _read_table(shards: list[Path], split: str) -> datasets.Dataset:
    import datasets

    files = {split: [str(shard) for shard in shards]}
    try:
        return datasets.load_dataset("webdataset", data_files=files, split=split)
    except (datasets.exceptions.DatasetsError, tarfile.TarError, ValueError, OSError) as error:
        reason = error.__cause__ or error
        raise InputError(
            f"{shards[0].parent}: `datasets` cannot read the shards: {reason}. Fetch them again."
        ) from error


def _image_column(table: datasets.Dataset, source: HubSource) -> str:
    found = [column for column in IMAGE_FIELDS if column in table.column_names]
    if len(found) != 1 or "txt" not in table.column_names:
        expected = f"'txt' and one of {', '.join(IMAGE_FIELDS)}"
        raise InputError(f"{source.repository} has columns {', '.join(table.column_names)}; expected {expected}.")
    return found[0]


def _read_image(table: datasets.Dataset, column: str, index: int) -> bytes:
    image = table[index][column]
    if image is None:
        raise OSError("its row has no image")
    return bytes(image["bytes"])
