"""The real photos beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data.registry import load_collection

pytestmark = pytest.mark.data


@pytest.mark.parametrize(("split", "images"), [("test", 1000), ("train", 4000)])
def test_flickr8k(split: str, images: int, shared_data: Path) -> None:
    local = {"flickr8k": f"karpathy:{shared_data / 'flickr8k'}"}
    collection = load_collection(f"flickr8k/{split}", data_dirs=local)
    assert (len(collection.images), len(collection.captions)) == (images, 5 * images)
    assert collection.images[-1].decode().size == (224, 224)
    assert collection.name == f"flickr8k/{split}"


def test_coco_sample(shared_data: Path) -> None:
    collection = load_collection(f"coco_json:{shared_data / 'coco_sample'}")
    assert (len(collection.images), len(collection.captions)) == (123, 615)
    assert {image.decode().mode for image in collection.images} == {"RGB"}
    assert collection.captions[0] == "a family is sitting down at a table to have cake"


@pytest.mark.parametrize("domain", ["photo", "art_painting", "cartoon", "sketch"])
def test_pacs_sample(domain: str, shared_data: Path) -> None:
    collection = load_collection(f"classes:{shared_data / 'pacs_sample' / domain}")
    assert (len(collection.images), len(collection.captions)) == (280, 7)
    assert collection.label_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert collection.images[0].decode().size == (227, 227)
