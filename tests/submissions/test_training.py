"""What recipes share: the loss, the batches, the schedule, and a loop that can be cut anywhere without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import SUBMISSIONS, Deadly, Kept, Killed, make_context, tiny_base
from safetensors.torch import load_file, save_file

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import Collection, LoadContext
from submissions.backbones import examples as examples_module
from submissions.backbones import training
from submissions.backbones.examples import Examples, Sampler, split_collection
from submissions.backbones.fitted import load_base, load_base_of
from submissions.backbones.plan import Plan, cosine_rate
from submissions.backbones.retrieval import contrastive, recall_of
from submissions.full import fit as full
from submissions.full.model import load as load_full
from submissions.wise_ft import fit as wise_ft
from submissions.wise_ft.model import load as load_wise

ARGS = {"towers": "both", "batch": "4", "lr": "1e-4", "weight_decay": "0.1"}


def two_images_share_a_caption() -> Collection:
    images = load_scenes("scenes", "train").images[:3]
    pairs = np.array([[0, 0], [1, 0], [1, 1], [2, 2]])
    return Collection("shared", images, ["both", "second", "third"], pairs)


def opened(folder: Path, **args: str) -> LoadContext:
    return LoadContext(folder, "cpu", "float32", args, True)


def test_the_loss_is_the_published_one_without_the_masked_negatives() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 5, 7))
    masked = np.zeros((5, 5), dtype=bool)
    masked[1, 3] = masked[4, 0] = True
    cosines = images / np.linalg.norm(images, axis=1, keepdims=True) @ (texts.T / np.linalg.norm(texts, axis=1))
    odds = np.where(masked, 0, np.exp(12.5 * cosines))
    rows, columns = np.diag(odds) / odds.sum(axis=1), np.diag(odds) / odds.sum(axis=0)
    expected = -(np.log(rows).mean() + np.log(columns).mean()) / 2
    tensors = torch.from_numpy(images), torch.from_numpy(texts)
    found = contrastive(*tensors, torch.tensor(12.5, dtype=torch.float64).log(), torch.from_numpy(masked))
    assert found.item() == pytest.approx(expected, abs=1e-9)
    beyond = [contrastive(*tensors, torch.tensor(s).log().double(), torch.from_numpy(masked)) for s in (100.0, 900.0)]
    assert beyond[0].item() == pytest.approx(beyond[1].item(), abs=1e-9)


def test_a_caption_that_is_true_of_another_image_is_no_negative() -> None:
    examples = Examples(two_images_share_a_caption(), load_base(tiny_base(), "cpu"))
    sampler = Sampler(examples, batch=3, seed=0)
    seen = set()
    for step in range(20):
        batch = sampler.batch(step)
        place = {int(image): row for row, image in enumerate(batch.images)}
        caption_of = {image: int(batch.captions[row]) for image, row in place.items()}
        expected = np.zeros((3, 3), dtype=bool)
        expected[place[1], place[0]] = True
        expected[place[0], place[1]] = caption_of[1] == 0
        np.testing.assert_array_equal(batch.also_true.numpy(), expected)
        seen.add(caption_of[1])
    assert seen == {0, 1}


def test_an_epoch_shows_every_image_once_with_a_caption_of_its_own() -> None:
    collection = load_scenes("scenes", "train").head(10)
    sampler = Sampler(Examples(collection, load_base(tiny_base(), "cpu")), batch=5, seed=3)
    pairs = {tuple(pair) for pair in collection.positives.tolist()}
    epochs = [[sampler.batch(2 * epoch + place) for place in range(2)] for epoch in range(2)]
    for batches in epochs:
        assert sorted(np.concatenate([batch.images for batch in batches])) == list(range(10))
        assert all(pair in pairs for batch in batches for pair in zip(batch.images, batch.captions, strict=True))
    assert list(epochs[0][0].images) != list(epochs[1][0].images)
    again = Sampler(sampler._examples, batch=5, seed=3).batch(3)
    np.testing.assert_array_equal(again.captions, epochs[1][1].captions)


def test_pixels_are_those_of_the_backbone_kept_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    base, collection = load_base(tiny_base(), "cpu"), load_scenes("scenes", "train").head(6)
    expected = base.pixels([image.decode() for image in collection.images])
    examples = Examples(collection, base)
    monkeypatch.setattr(examples_module, "MOST_PIXEL_BYTES", 2 * expected[0].numel())
    for rows in ([4, 0, 5], [0, 1, 4]):
        torch.testing.assert_close(examples.pixels(rows), expected[rows], rtol=0, atol=1e-7)
    assert len(examples._kept) == 2


def test_the_rate_rises_then_falls_along_half_a_cosine() -> None:
    assert cosine_rate(0.05, 0.1) == pytest.approx(0.5)
    assert cosine_rate(0.1, 0.1) == pytest.approx(1)
    assert cosine_rate(0.325, 0.1) == pytest.approx((1 + np.cos(np.pi / 4)) / 2)
    assert cosine_rate(1.0, 0.1) == pytest.approx(0, abs=1e-12)
    assert cosine_rate(0.0, 0.0) == 1


def test_recall_counts_any_true_pair() -> None:
    examples = Examples(two_images_share_a_caption(), load_base(tiny_base(), "cpu"))
    images = torch.eye(3)
    texts = torch.tensor([[0.1, 1, 0], [0, 0.2, 1], [0, 0, 1.0]])  # of image 1 (true), image 2 (false), image 2 (true)
    t2i, i2t = 2 / 3, 2 / 3  # image 0 finds caption 0 (true), 1 finds 0 (true by the shared caption), 2 finds 2
    i2t = 1.0
    assert recall_of(images, texts, examples) == pytest.approx(100 * (t2i + i2t) / 2)


def test_held_out_images_are_not_learnt_from(tmp_path: Path) -> None:
    collection = load_scenes("scenes", "train").head(40)
    context = replace(make_context(tmp_path / "out", train=collection), validation=None)
    learnt, held_out = split_collection(context)
    ids = [{image.id for image in part.images} for part in (learnt, held_out)]
    assert len(ids[1]) == 4
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {image.id for image in collection.images}
    truth = {(collection.images[i].id, collection.captions[c]) for i, c in collection.positives}
    assert {(held_out.images[i].id, held_out.captions[c]) for i, c in held_out.positives} <= truth


@pytest.mark.parametrize("last", [1, 6])
def test_a_fit_that_was_killed_goes_on_to_the_same_weights(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_COST", 0)
    whole = make_context(tmp_path / "whole", ARGS, epochs=2)
    facts = full.fit(whole)
    dies = Deadly(last)
    with pytest.raises(Killed):
        full.fit(make_context(tmp_path / "cut", ARGS, epochs=2, checkpoint=dies))
    left = Kept()
    left.states = [dies.states[-1]]
    resumed = full.fit(make_context(tmp_path / "resumed", ARGS, epochs=2, checkpoint=left))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]
    assert (resumed.steps, resumed.validation_r1) == (facts.steps, facts.validation_r1) == (8, facts.validation_r1)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        full.fit(make_context(tmp_path / str(seed), ARGS, seed=seed))
    assert (tmp_path / "0/weights.safetensors").read_bytes() != (tmp_path / "1/weights.safetensors").read_bytes()


def test_a_budget_ends_the_fit_in_good_order(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    facts = full.fit(make_context(tmp_path, ARGS, epochs=50, budget_s=1e-6, reports=reports))
    assert (facts.steps, facts.epochs) == (1, 0.25)
    assert reports[-1]["validation_r1"] == facts.validation_r1
    load_full(opened(tmp_path))


def test_one_tower_learns_and_the_other_stays(tmp_path: Path) -> None:
    facts = full.fit(make_context(tmp_path, {**ARGS, "towers": "text"}))
    fitted, base = load_full(opened(tmp_path)), load_base_of(opened(tmp_path))
    images, texts = [image.decode() for image in load_scenes("scenes", "val").images[:3]], ["a dog", "red"]
    np.testing.assert_array_equal(fitted.encode_images(images), base.encode_images(images))
    assert np.abs(fitted.encode_texts(texts) - base.encode_texts(texts)).max() > 1e-4
    assert facts.trainable == sum(tensor.numel() for tensor in load_file(tmp_path / "weights.safetensors").values())
    ids = base.tower_ids()
    assert fitted.tower_ids() == {"images": ids["images"]}


def test_wise_ft_is_a_line_from_the_base_to_the_fitted_weights(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    wise_ft.fit(make_context(tmp_path, {**ARGS, "lr": "1e-3"}, epochs=2, reports=reports))
    whole, base = load_full(opened(tmp_path)), load_base_of(opened(tmp_path))
    members = [load_wise(opened(tmp_path, alpha=alpha)) for alpha in ("0", "0.25", "1")]
    weights = [member.module.visual.proj for member in (base, *members, whole)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    torch.testing.assert_close(weights[2], 0.75 * weights[0] + 0.25 * weights[4], rtol=0, atol=1e-6)
    torch.testing.assert_close(weights[3], weights[4], rtol=0, atol=1e-7)
    assert (weights[4] - weights[0]).abs().max() > 1e-3
    logged = {figures["alpha"]: figures["validation_r1"] for figures in reports if "alpha" in figures}
    assert logged[0.0] == reports[0]["validation_r1"]
    assert list(logged) == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(InputError, match=r"alpha is '1\.5'; expected a number from 0"):
        load_wise(opened(tmp_path, alpha="1.5"))


def test_a_folder_that_is_not_whole_or_whose_base_changed_is_refused(tmp_path: Path) -> None:
    base = replace(tiny_base(), folder=tmp_path / "base", shipped=False)
    base.folder.mkdir()
    for name in ("model.py", "merges.txt", "weights.safetensors", "submission.toml"):
        (base.folder / name).write_bytes((SUBMISSIONS / "tiny" / name).read_bytes())
    output = tmp_path / "out"
    full.fit(make_context(output, ARGS, base=base))
    weights = output / "base" / "weights.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "visual.proj": tensors["visual.proj"] * 2}, weights)
    with pytest.raises(InputError, match="other weights than those that it was fitted on"):
        load_full(opened(output))
    save_file(tensors, weights)
    fitted = load_file(output / "weights.safetensors")
    save_file(
        {name: tensor for name, tensor in fitted.items() if name != "visual.proj"}, output / "weights.safetensors"
    )
    with pytest.raises(InputError, match=r"do not fit the recipe's model, first visual\.proj"):
        load_full(opened(output))
    (output / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors is missing; `rove fit RECIPE"):
        load_full(opened(output))


def test_what_the_user_tells_goes_over_the_plan(tmp_path: Path) -> None:
    plan = Plan(epochs=5, batch=8, lr=1e-3, weight_decay=0.1)
    context = make_context(tmp_path, {"lr": "2e-4", "batch": "", "weight_decay": "0"}, epochs=None)
    told = plan.told(context)
    assert (told.epochs, told.batch, told.lr, told.weight_decay) == (5, 8, 2e-4, 0.0)
    for args in ({"lr": "fast"}, {"lr": "nan"}, {"batch": "-1"}, {"batch": "0"}):
        with pytest.raises(UsageError, match="expected a"):
            plan.told(make_context(tmp_path, args))
    with pytest.raises(UsageError, match=r"towers is 'left'; expected both, image, text"):
        full.fit(make_context(tmp_path, {**ARGS, "towers": "left"}))
