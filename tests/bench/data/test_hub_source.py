"""The hub source on a faithful local cache: the hub's own library finds it, `datasets` reads it, no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_data import Photo, make_photos, write_tar, write_wds

from bench.data import hub, wds
from bench.data.registry import DATASETS, load_collection
from bench.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and an empty `datasets` cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    return tmp_path / "hub"


def snapshot(cache: Path, repository: str, commit: str = COMMIT) -> Path:
    """The folder in which the hub's library keeps `repository` at `commit`."""
    root = cache / f"datasets--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def test_rows_equal_those_of_our_own_reader(cache: Path) -> None:
    photos = make_photos(12)
    folder = snapshot(cache, "owner/made")
    write_wds(folder, photos, shards=11)
    collection = hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)
    own = wds.load(folder)
    assert collection.name == "made/test"
    assert collection.revision == f"owner/made@{COMMIT}"
    assert list(collection.captions) == list(own.captions)
    assert [image.id for image in collection.images] == [image.id for image in own.images]
    assert [image.sha256 for image in collection.images] == [image.sha256 for image in own.images]
    np.testing.assert_array_equal(collection.positives, own.positives)
    np.testing.assert_array_equal(np.asarray(collection.images[11].decode()), np.asarray(own.images[11].decode()))


def test_images_are_not_decoded_by_the_library(cache: Path, photos: list[Photo]) -> None:
    photos[1] = photos[1]._replace(data=b"no image")
    write_wds(snapshot(cache, "owner/made"), photos)
    collection = hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)
    collection.images[0].decode()
    with pytest.raises(InputError, match="image photo_0001 is corrupt or of another format"):
        collection.images[1].decode()


def test_a_pinned_commit_is_the_one_that_is_read(cache: Path, photos: list[Photo]) -> None:
    write_wds(snapshot(cache, "owner/made", "f" * 40), photos)
    write_wds(snapshot(cache, "owner/made", "e" * 40), photos[:2])
    collection = hub.load(hub.HubSource("owner/made", "f" * 40), "made", "test", offline=True)
    assert len(collection.images) == 5
    assert collection.revision.endswith("@" + "f" * 40)


@pytest.mark.parametrize("name", [name for name, known in DATASETS.items() if known.hub])
def test_offline_says_what_to_fetch_and_how_to_use_a_copy(name: str, cache: Path) -> None:
    source = DATASETS[name].hub
    assert source is not None
    with pytest.raises(InputError, match="--offline forbids") as caught:
        load_collection(name, offline=True)
    message = str(caught.value)
    assert f"hf download --repo-type dataset {source.repository}" in message
    assert (source.commit or "") in message
    assert f"--data-dir {name}=FORMAT:PATH" in message


def test_a_split_that_was_not_fetched_is_missing(cache: Path, photos: list[Photo]) -> None:
    write_wds(snapshot(cache, "owner/made"), photos, split="train")
    with pytest.raises(InputError, match="made/test is not in the hub's cache"):
        hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)


def test_counts_of_a_known_data_set_are_asserted(cache: Path, photos: list[Photo]) -> None:
    source = DATASETS["flickr30k"].hub
    assert source is not None
    write_wds(snapshot(cache, source.repository, source.commit or COMMIT), photos)
    with pytest.raises(
        InputError, match=r"flickr30k/test has 5 images and 13 captions; expected 1,000 images and 5,000 captions"
    ):
        load_collection("flickr30k", offline=True)


@pytest.mark.parametrize("files", [[("a.jpg", b"x"), ("a.json", b"{}")], [("a.txt", b"x")]])
def test_other_columns_are_named(files: list[tuple[str, bytes]], cache: Path) -> None:
    write_tar(snapshot(cache, "owner/made") / "test" / "0.tar", files)
    with pytest.raises(InputError, match=r"owner/made has columns .*; expected 'txt' and one of jpg"):
        hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)


@pytest.mark.parametrize("data", [b"", b"no tar" * 500])
def test_a_damaged_shard_is_named(data: bytes, cache: Path) -> None:
    folder = snapshot(cache, "owner/made") / "test"
    folder.mkdir(parents=True)
    (folder / "0.tar").write_bytes(data)
    with pytest.raises(InputError, match="cannot read the shards"):
        hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)


def test_a_row_without_captions_is_named(cache: Path, photos: list[Photo]) -> None:
    photos[1] = photos[1]._replace(captions=[])
    write_wds(snapshot(cache, "owner/made"), photos)
    with pytest.raises(InputError, match="image photo_0001 has no caption"):
        hub.load(hub.HubSource("owner/made"), "made", "test", offline=True)


def test_online_only_the_split_is_fetched_and_a_failure_gives_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def fail(repository: str, **options: object) -> str:
        asked.update(options)
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"made/test cannot be fetched: no route to host. Run `hf download"):
        hub.load(hub.HubSource("owner/made", COMMIT), "made", "test")
    assert asked["local_files_only"] is False
    assert asked["allow_patterns"] == ["test/*.tar", "test/nshards.txt"]
