"""One contract for every shipped submission: shapes, order, batches, odd input, and the same weights each time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor

from bench.check import check_submission
from bench.data.registry import load_collection
from bench.errors import InputError, SubmissionError
from bench.evaluate import rank_direction, to_unit
from bench.fit import choose_recipe, run_fit
from bench.fit_data import FitData
from bench.metrics import hit
from bench.submission import Submission, find_recipe, find_submission, list_recipes, scaffold, shipped_submissions
from bench.worker.host import Worker, WorkerSettings
from submissions.backbones.backbone import map_images
from submissions.backbones.open_clip_encoder import OpenClipEncoder

SHIPPED = sorted(shipped_submissions())
# One of each kind of code; the others differ in their weights, or in a recipe that has tests of its own.
KINDS = ("hybrid", "openclip", "pocket", "tiny", "tiny-lora")
EVERY = [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in SHIPPED]


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
    ready = {name: find_submission(name) for name in SHIPPED if name not in ("openclip", "pocket")}
    return ready | {
        "openclip": find_submission("openclip", {"model": "ViT-S-32-alt", "pretrained": str(checkpoint)}),
        "pocket": find_submission(str(pocket)),
    }


@pytest.mark.parametrize("name", EVERY)
def test_contract(name: str, loadable: dict[str, Submission]) -> None:
    report = check_submission(loadable[name], WorkerSettings(offline=True), batch_size=8)
    assert report.passed, [step for step in report.steps if not step.passed]
    assert {"pixels", "gradient"} <= {step.name for step in report.steps}
    with Worker(loadable[name], WorkerSettings(offline=True)) as again:
        assert again.loaded.weights_sha256 == report.weights_sha256 != ""
        assert (again.loaded.parameters or 0) > 1_000_000


CHEAP = {"batch": "4", "steps": "1", "rho": "2"}
ON_A_BASE = [name for name, recipe in list_recipes().items() if recipe.needs_base]
# What pocket's convolutional image tower has no place for.
NOT_ON_POCKET = {"maple", "vpt"}


def fit_quickly(recipe: str, base: str, output: Path, args: dict[str, str]) -> Submission:
    """What the recipe makes of a base and eight scenes; of images of classes where the scenes are the generic ones."""
    known = find_recipe(recipe).args
    settings = choose_recipe(recipe, base, {}, {key: value for key, value in (CHEAP | args).items() if key in known})
    data = FitData(load_collection("scenes/train").head(8), load_collection("scenes/val").head(4))
    if find_recipe(recipe).takes_generic:
        classes = (load_collection(f"scenes-objects/{split}").head(80) for split in ("train", "val"))
        data = FitData(*classes, generic=data)
    run_fit(replace(settings, epochs=1), data, output, lambda line: None)
    return find_submission(str(output))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_BASE)
def test_what_a_recipe_writes_is_a_submission_of_the_size_that_it_states(name: str, tmp_path: Path) -> None:
    fitted = fit_quickly(name, "tiny", tmp_path / "fitted", {})
    learnt = load_file(tmp_path / "fitted" / "weights.safetensors")
    assert fitted.manifest.parameters.trainable == sum(tensor.numel() for tensor in learnt.values())
    with Worker(fitted, WorkerSettings(offline=True)) as worker:
        assert worker.loaded.parameters == fitted.manifest.parameters.total
    report = check_submission(fitted, WorkerSettings(offline=True), batch_size=8)
    assert report.passed, [step for step in report.steps if not step.passed]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ON_A_BASE) - NOT_ON_POCKET))
def test_recipes_work_on_pocket_too(name: str, loadable: dict[str, Submission], tmp_path: Path) -> None:
    fitted = fit_quickly(name, str(loadable["pocket"].folder), tmp_path / "fitted", {"towers": "text"})
    with Worker(fitted, WorkerSettings(offline=True)) as worker:
        assert worker.encode_texts(["a dog", "two cats"]).shape == (2, 1536)


@pytest.mark.parametrize("name", sorted(NOT_ON_POCKET))
def test_what_cannot_be_done_to_pocket_is_said(name: str, loadable: dict[str, Submission], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image tower"):
        fit_quickly(name, str(loadable["pocket"].folder), tmp_path / "fitted", {})


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


@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_pixels_and_normalisation_make_up_what_open_clip_does(resize_mode: str, size: tuple[int, int]) -> None:
    encoder = small_open_clip(image_transform_v2(PreprocessCfg(size=size, resize_mode=resize_mode), False), size)
    rng = np.random.Generator(np.random.Philox(0))
    levels = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((70, 40, 3), (33, 90, 3), (*size, 3))]
    images = [PIL.Image.fromarray(array) for array in levels]
    pixels = encoder.pixels(images)
    torch.testing.assert_close(pixels[2], torch.from_numpy(levels[2]).permute(2, 0, 1) / 255, rtol=0, atol=0)
    again = [PIL.Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy()) for image in pixels]
    torch.testing.assert_close(encoder.pixels(again), pixels, rtol=0, atol=0)
    found = encoder.embed_pixels(pixels)
    torch.testing.assert_close(found, torch.from_numpy(encoder.encode_images(images)), rtol=1e-5, atol=1e-6)


def test_an_open_clip_transform_without_normalisation_is_all_of_it() -> None:
    encoder = small_open_clip(to_tensor, (32, 32))
    image = PIL.Image.new("RGB", (32, 32), (10, 20, 30))
    found = encoder.embed_pixels(encoder.pixels([image]))
    torch.testing.assert_close(found, torch.from_numpy(encoder.encode_images([image])), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_images_are_prepared_in_order_on_as_many_threads_as_torch_has(n_threads: int) -> None:
    images = [PIL.Image.new("RGB", (size, size)) for size in (4, 6, 8, 10)]
    together = threading.Barrier(n_threads)

    def width(image: PIL.Image.Image) -> int:
        together.wait(timeout=60)  # nobody passes alone
        return image.width

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert map_images(width, images) == [4, 6, 8, 10]
    finally:
        torch.set_num_threads(before)


def small_open_clip(preprocess: Callable[[PIL.Image.Image], torch.Tensor], size: tuple[int, int]) -> OpenClipEncoder:
    torch.manual_seed(0)
    vision = {"image_size": size, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    return OpenClipEncoder(open_clip.CLIP(16, vision, text), preprocess, torch.tensor, "cpu", "float32")


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
