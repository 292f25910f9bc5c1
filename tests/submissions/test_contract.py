"""One contract for every shipped submission: shapes, order, batches, odd input, and the same weights each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from bench.check import check_submission
from bench.data.registry import load_collection
from bench.errors import SubmissionError
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.submission import Submission, find_submission, scaffold, shipped_submissions
from bench.worker.host import Worker, WorkerSettings

SHIPPED = sorted(shipped_submissions())


@pytest.fixture(scope="module")
def loadable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submission]:
    """Every shipped submission, those without shipped weights with random ones of the true shapes."""
    folder = tmp_path_factory.mktemp("submissions")
    torch.manual_seed(0)
    checkpoint = folder / "random.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), checkpoint)
    pocket = scaffold("pocket", folder / "pocket")
    for source in shipped_submissions()["pocket"].glob("*.*"):
        (pocket / source.name).write_bytes(source.read_bytes())
    from submissions.pocket.model import HEAD_FILE, build_heads

    save_file(build_heads().state_dict(), pocket / HEAD_FILE)
    return {
        "tiny": find_submission("tiny"),
        "openclip": find_submission("openclip", {"model": "ViT-S-32-alt", "pretrained": str(checkpoint)}),
        "pocket": find_submission(str(pocket)),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_contract(name: str, loadable: dict[str, Submission]) -> None:
    report = check_submission(loadable[name], WorkerSettings(offline=True), batch_size=8)
    assert report.passed, [step for step in report.steps if not step.passed]


@pytest.mark.parametrize("name", SHIPPED)
def test_loading_twice_gives_the_same_weights(name: str, loadable: dict[str, Submission]) -> None:
    settings = WorkerSettings(offline=True)
    with Worker(loadable[name], settings) as first, Worker(loadable[name], settings) as second:
        assert first.loaded.weights_sha256 == second.loaded.weights_sha256
        assert (first.loaded.parameters or 0) > 1_000_000


def test_openclip_agrees_with_open_clip_itself(loadable: dict[str, Submission]) -> None:
    submission = loadable["openclip"]
    collection = load_collection("scenes/test").head(3)
    images = [image.decode() for image in collection.images]
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-S-32-alt", pretrained=submission.args["pretrained"]
    )
    tokenize = open_clip.get_tokenizer("ViT-S-32-alt")
    with torch.inference_mode():
        expected_images = model.eval().encode_image(torch.stack([preprocess(image) for image in images])).numpy()
        expected_texts = model.encode_text(tokenize(list(collection.captions))).numpy()
    with Worker(submission, WorkerSettings(offline=True)) as worker:
        found_images = worker.encode_images([np.asarray(image) for image in images])
        found_texts = worker.encode_texts(collection.captions)
    np.testing.assert_allclose(found_images, expected_images, atol=1e-5)
    np.testing.assert_allclose(found_texts, expected_texts, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "ViT-B-99"}, "no architecture 'ViT-B-99'"),
        ({"pretrained": "laion9b"}, "its tags are: openai"),
        ({}, "copy the Hugging Face cache here"),
    ],
)
def test_openclip_says_what_is_missing(
    arguments: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SubmissionError, match=words):
        Worker(find_submission("openclip", arguments), WorkerSettings(offline=True))


def test_pocket_without_a_head_says_how_to_fit_one() -> None:
    with pytest.raises(SubmissionError, match="rove fit pocket --train"):
        Worker(find_submission("pocket"), WorkerSettings())


def test_tiny_finds_at_least_60_percent_in_both_directions() -> None:
    collection = load_collection("scenes/test")
    with Worker(find_submission("tiny"), WorkerSettings()) as worker:
        images = [np.asarray(image.decode()) for image in collection.images]
        image_vectors = np.concatenate([worker.encode_images(images[i : i + 50]) for i in range(0, 500, 50)])
        texts = collection.captions
        text_vectors = np.concatenate([worker.encode_texts(texts[i : i + 250]) for i in range(0, len(texts), 250)])
    for direction in ("t2i", "i2t"):
        evidence = rank_direction(direction, collection, to_unit(image_vectors), to_unit(text_vectors))
        assert hit(evidence.ranks, 1).mean() >= 0.6
