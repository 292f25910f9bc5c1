"""The embedding cache: nothing is encoded twice, damage is noticed, and order and duplicates do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.data.registry import load_collection
from bench.embed import Embedder
from bench.submission import Submission, find_submission
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


def test_texts_of_like_length_share_a_batch(tmp_path: Path) -> None:
    """A submission that answers with the longest text of its batch is never far from a text's own length."""
    (tmp_path / "longest.py").write_text("""
import numpy as np

class Longest:
    def encode_images(self, images):
        return np.ones((len(images), 1), np.float32)

    def encode_texts(self, texts):
        return np.full((len(texts), 1), max(map(len, texts)), np.float32)

def load(context):
    return Longest()
""")
    texts = ["a" * int(length) for length in np.random.default_rng(0).permutation(np.arange(1, 41))]
    submission = find_submission(f"{tmp_path / 'longest.py'}:load")
    with embedder(submission, tmp_path / "cache") as source:
        found = encode(source, texts).vectors[:, 0]
    lengths = np.array([len(text) for text in texts])
    np.testing.assert_array_equal(found, -(-lengths // 8) * 8)


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


def test_a_tower_of_the_same_hash_is_encoded_by_one_submission_for_all(toys: Path, tmp_path: Path) -> None:
    """The second states that its texts are the first's and its images its own, though it doubles both."""
    code = (toys / "colours" / "model.py").read_text()
    found = []
    for factor in (1, 2):
        twin = f"""
class Twin(Colours):
    def tower_ids(self):
        return {{"texts": "the same", "images": "of {factor}"}}


def load_twin(context):
    return Twin({factor})
"""
        source = tmp_path / f"twin{factor}.py"
        source.write_text(code + twin)
        images = load_collection("scenes/test").head(3).images
        with embedder(find_submission(f"{source}:load_twin"), tmp_path / "cache") as twin_embedder:
            texts = encode(twin_embedder, ["a red ball", "a blue cube"])
            pictures = twin_embedder.images(images, lambda i: np.asarray(i.decode()), "native", lambda count: None)
        found.append((texts, pictures))
    assert [texts.cached for texts, _ in found] == [False, True]
    np.testing.assert_array_equal(found[0][0].vectors, found[1][0].vectors)
    assert [pictures.cached for _, pictures in found] == [False, False]
    np.testing.assert_allclose(found[1][1].vectors, 2 * found[0][1].vectors, rtol=1e-6)


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
