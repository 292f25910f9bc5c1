"""Names, paths and local copies: what a DATASET argument means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_data import Photo, make_photos, write_folder, write_karpathy, write_wds

from bench.data import registry
from bench.data.registry import DATASETS, FORMATS, DatasetSpec, describe, load_collection, parse_dataset
from bench.errors import InputError, UsageError


def full_photos() -> list[Photo]:
    """As many photos and captions as Flickr8k's test split."""
    photo = make_photos(1)[0]
    return [photo._replace(stem=f"p{i}", captions=[f"{i} {k}" for k in range(5)]) for i in range(1000)]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("flickr30k", DatasetSpec("flickr30k")),
        ("coco/val", DatasetSpec("coco", split="val")),
        ("scenes/train", DatasetSpec("scenes", split="train")),
    ],
)
def test_names(text: str, spec: DatasetSpec) -> None:
    assert parse_dataset(text) == spec


def test_what_exists_decides_whether_a_path_ends_in_a_split(tmp_path: Path, photos: list[Photo]) -> None:
    write_karpathy(tmp_path / "made", photos)
    assert parse_dataset(f"karpathy:{tmp_path}/made") == DatasetSpec("karpathy", tmp_path / "made")
    assert parse_dataset(f"karpathy:{tmp_path}/made/odd") == DatasetSpec("karpathy", tmp_path / "made", "odd")
    write_wds(tmp_path / "tars", photos)
    assert parse_dataset(f"wds:{tmp_path}/tars/test") == DatasetSpec("wds", tmp_path / "tars", "test")


def test_a_relative_path_still_works_after_the_folder_changed(
    tmp_path: Path, photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "made", photos)
    monkeypatch.chdir(tmp_path / "made")
    collection = load_collection("folder:.")
    monkeypatch.chdir("/")
    assert collection.name == "made"
    assert collection.images[0].decode().size == (12, 8)
    assert str(tmp_path) not in collection.images[0].id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flickr3k", "unknown data set 'flickr3k'. Did you mean 'flickr30k'"),
        ("karpaty:x", "unknown format 'karpaty'. Did you mean 'karpathy'"),
        ("flickr8k/tets", "'tets'. Did you mean 'test'"),
    ],
)
def test_an_unknown_name_gets_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_collection(text)


@pytest.mark.parametrize("form", FORMATS)
def test_a_path_with_nothing_of_that_form_is_named(form: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds nothing of that form; expected a"):
        load_collection(f"{form}:{tmp_path}/empty")
    with pytest.raises(InputError, match=r"nowhere does not exist; expected a"):
        load_collection(f"{form}:{tmp_path}/empty/nowhere")


def test_a_local_copy_keeps_the_name_and_is_counted(tmp_path: Path) -> None:
    local = write_wds(tmp_path / "mine", full_photos())
    collection = load_collection("flickr8k", data_dirs={"flickr8k": local})
    assert collection.name == "flickr8k/test"
    assert (len(collection.images), len(collection.captions)) == (1000, 5000)
    short = write_wds(tmp_path / "short", full_photos()[1:])
    counts = r"has 999 images and 4,995 captions; expected 1,000 images and 5,000 captions\."
    with pytest.raises(InputError, match=f"flickr8k/test {counts} .*rove describe flickr8k"):
        load_collection("flickr8k/test", data_dirs={"flickr8k": short})


def test_a_local_copy_never_stands_in_for_another_split(tmp_path: Path, photos: list[Photo]) -> None:
    local = write_wds(tmp_path / "mine", photos, split="train")
    assert load_collection("flickr8k/train", data_dirs={"flickr8k": f"{local}/train"}).name == "flickr8k/train"
    with pytest.raises(UsageError, match="gives split 'train' where 'val' is asked for"):
        load_collection("flickr8k/val", data_dirs={"flickr8k": f"{local}/train"})
    with pytest.raises(UsageError, match=r"unknown split of .* 'val'"):
        load_collection("flickr8k/val", data_dirs={"flickr8k": local})
    assert len(load_collection("flickr8k/val", data_dirs={"flickr8k/val": f"{local}/train"}).images) == 5


def test_data_dirs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown data set 'flickr9k'"):
        load_collection("flickr8k", data_dirs={"flickr9k": "wds:x"})
    with pytest.raises(UsageError, match="names no local data"):
        load_collection("flickr8k", data_dirs={"flickr8k": "flickr8k"})


def test_scenes_are_delegated_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    collection = load_collection("scenes-objects/val", offline=True)
    assert collection.name == "scenes-objects/val"
    assert describe("scenes-objects")["splits"]["val"]["images"] == len(collection.images)  # type: ignore[index]
    monkeypatch.setattr(registry, "load_scenes", lambda name, split: collection.head(7))
    with pytest.raises(InputError, match=r"has 7 images and .* captions; expected 720 images"):
        load_collection("scenes-objects/val")


@pytest.mark.parametrize("name", DATASETS)
def test_describe_gives_plain_values(name: str) -> None:
    described = describe(name)
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == name


def test_describe_states_the_published_counts() -> None:
    assert describe("coco")["splits"]["test"] == {"images": 5000, "captions": 25010}  # type: ignore[index]
    for name in ("flickr8k", "flickr30k"):
        assert describe(name)["splits"]["test"] == {"images": 1000, "captions": 5000}  # type: ignore[index]
    with pytest.raises(UsageError, match="Did you mean 'coco'"):
        describe("cocoo")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, bench.data.registry as r; r.describe('coco'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "datasets", "huggingface_hub", "pandas", "pyarrow"} & set(done.stdout.split())
