"""The embedding cache: nothing is encoded twice, damage is noticed, and order and duplicates do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.data.registry import load_collection
from bench.embed import Embedder
from bench.submission import Submission
from bench.worker.host import WorkerSettings


def embedder(colours: Submission, cache: Path, batch_size: int = 8, surroundings: object = None) -> Embedder:
    return Embedder(colours, WorkerSettings(), cache, batch_size, surroundings)


def encode(source: Embedder, texts: list[str]):
    return source.texts(texts, lambda count: None)


def test_rows_are_in_the_order_of_the_items(colours: Submission, tmp_path: Path) -> None:
    images = load_collection("scenes/test").head(11).images
    with embedder(colours, tmp_path) as source:
        found = source.images(images, lambda i: np.asarray(i.decode()), "native", lambda count: None)
        single = [
            source.images([image], lambda i: np.asarray(i.decode()), "native", lambda count: None).vectors[0]
            for image in images
        ]
    np.testing.assert_array_equal(found.vectors, np.stack(single))


def test_equal_texts_are_encoded_once(colours: Submission, tmp_path: Path) -> None:
    counted: list[int] = []
    with embedder(colours, tmp_path) as source:
        found = source.texts(["red", "blue", "red", "red"], counted.append)
    assert sum(counted) == 2
    assert (found.vectors[[2, 3]] == found.vectors[0]).all()
    assert (found.vectors[1] != found.vectors[0]).any()


def test_the_cache_is_used_by_the_next_run_and_only_for_the_same_inputs(colours: Submission, tmp_path: Path) -> None:
    with embedder(colours, tmp_path) as source:
        first = encode(source, ["a red ball", "a blue cube"])
    with embedder(colours, tmp_path) as source:
        again = encode(source, ["a red ball", "a blue cube"])
        assert again.cached
        np.testing.assert_array_equal(again.vectors, first.vectors)
        assert again.fed_sha256 == first.fed_sha256
        assert not encode(source, ["a red ball", "a teal cube"]).cached
    with embedder(colours, tmp_path, batch_size=4) as source:
        assert not encode(source, ["a red ball", "a blue cube"]).cached
    with embedder(colours, tmp_path, surroundings={"opencv": "9"}) as source:
        assert not encode(source, ["a red ball", "a blue cube"]).cached


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"!" + data[41:], lambda data: b""]
)
def test_damage_is_noticed_and_repaired(
    damage, colours: Submission, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedder(colours, tmp_path) as source:
        first = encode(source, ["a red ball"])
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(damage(path.read_bytes()))
    with embedder(colours, tmp_path) as source:
        again = encode(source, ["a red ball"])
    assert not again.cached
    assert "set aside" in caplog.text
    assert path.with_suffix(".bad").exists()
    np.testing.assert_array_equal(again.vectors, first.vectors)
