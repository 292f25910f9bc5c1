"""`hybrid`: what its parts are by themselves, found where a manifest or a command says, with the manifest's choices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from observers import Silent

from bench.data.registry import load_collection
from bench.errors import InputError, UsageError
from bench.run import RERANK_K, RunSettings, choose_rerank_k, run_suite
from bench.submission import find_submission, resolve_args, shipped_submissions
from bench.suites import Suite
from bench.timing import TimingSettings, factory_of, time_submission
from bench.types import Differentiable, DifferentiableReranker, LoadContext, Reranker
from bench.worker.host import Worker, WorkerSettings
from submissions.backbones.fitted import import_model
from submissions.hybrid.model import Hybrid, load

SUBMISSIONS = shipped_submissions()
N_TINY, N_COCOOP = 4_872_385, 7_472  # as their cards state
OWN_MANIFEST = """
name = "mine"
index = "HNSW16"
rerank_k = 7

[args]
encoder = "./parts/colours"
reranker = "./parts/two_stage"
"""


def context_of(folder: Path, **args: str) -> LoadContext:
    return LoadContext(folder, "cpu", "float32", args, offline=True)


def alone(name: str) -> Any:
    return import_model(SUBMISSIONS[name] / "model.py").load(context_of(SUBMISSIONS[name]))


def hybrid_of(encoder: str, reranker: str = "tiny-cocoop") -> Hybrid:
    return load(context_of(SUBMISSIONS["hybrid"], encoder=encoder, reranker=reranker))


@pytest.fixture(scope="module")
def images() -> list[PIL.Image.Image]:
    return [image.decode() for image in load_collection("scenes/val").head(4).images]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(load_collection("scenes/val").head(4).captions[::5])[:4]


@pytest.fixture
def mine(tmp_path: Path, toys: Path) -> Path:
    """A hybrid of somebody's own, both parts beside its manifest: no model that would take its time."""
    folder, soft = tmp_path / "mine", toys / "soft_colours"
    shutil.copytree(toys / "colours", folder / "parts" / "colours")
    two_stage = folder / "parts" / "two_stage"
    two_stage.mkdir()
    (two_stage / "submission.toml").write_text((soft / "submission.toml").read_text())
    second = (soft / "two_stage.py").read_text().replace("from __future__ import annotations\n", "")
    (two_stage / "model.py").write_text(
        (soft / "model.py").read_text() + second.replace("from model import SoftColours\n", "")
    )
    (folder / "submission.toml").write_text(OWN_MANIFEST)
    (folder / "model.py").write_text("from submissions.hybrid.model import load as load\n")
    return folder


@pytest.mark.parametrize("encoder", ["tiny-adapter", "tiny-cartoon"])
def test_vectors_are_the_encoders_and_scores_the_rerankers(
    encoder: str, images: list[PIL.Image.Image], texts: list[str]
) -> None:
    hybrid, first, second = hybrid_of(encoder), alone(encoder), alone("tiny-cocoop")
    assert np.array_equal(hybrid.encode_images(images), first.encode_images(images))
    assert np.array_equal(hybrid.encode_texts(texts), first.encode_texts(texts))
    tokens = second.image_tokens(images)
    assert np.array_equal(hybrid.image_tokens(images), tokens)
    assert np.array_equal(hybrid.score_pairs(tokens, texts), second.score_pairs(tokens, texts))
    assert np.allclose(
        hybrid.score_pairs(tokens.astype(np.float16), texts), hybrid.score_pairs(tokens, texts), atol=1e-3
    )
    assert hybrid.tower_ids() == first.tower_ids()
    assert bool(hybrid.tower_ids()) == (encoder == "tiny-cartoon")


def test_weights_that_both_parts_have_are_counted_once() -> None:
    with Worker(find_submission("hybrid", {"encoder": "tiny-cartoon"}), WorkerSettings(offline=True)) as worker:
        assert worker.loaded.parameters == N_TINY + N_COCOOP
        assert worker.loaded.reranker
        assert worker.loaded.differentiable_reranker
    itself = hybrid_of("tiny-cocoop").module
    assert itself is not None
    assert sum(parameter.numel() for parameter in itself.parameters()) == N_TINY + N_COCOOP


def test_weights_that_differ_are_counted_twice_and_stay_what_they_are() -> None:
    """`tiny` has the names and shapes of the reranker's base, and other values."""
    hybrid, second = hybrid_of("tiny"), alone("tiny-cocoop")
    assert hybrid.module is not None
    assert sum(parameter.numel() for parameter in hybrid.module.parameters()) == 2 * N_TINY + N_COCOOP
    own = dict(second.module.named_parameters())
    found = dict(hybrid._reranker.module.named_parameters())
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_a_gradient_reaches_the_second_stage_where_both_read_the_same_pixels(
    images: list[PIL.Image.Image], texts: list[str]
) -> None:
    hybrid, second = hybrid_of("tiny-adapter"), alone("tiny-cocoop")
    assert isinstance(hybrid, DifferentiableReranker)
    assert isinstance(hybrid, Differentiable)

    def slope(score: Callable[..., torch.Tensor]) -> torch.Tensor:
        pixels = hybrid.pixels(images).requires_grad_()
        return torch.autograd.grad(score(pixels, texts).sum(), pixels)[0]

    assert torch.equal(slope(hybrid.score_pixels), slope(second.score_pixels))
    assert slope(hybrid.score_pixels).abs().max() > 0


def test_abilities_are_those_that_the_parts_have_together(toys: Path) -> None:
    smaller = hybrid_of(str(toys / "soft_colours"))
    assert isinstance(smaller, Differentiable)
    assert isinstance(smaller, Reranker)
    assert not isinstance(smaller, DifferentiableReranker), "it reads 32 pixels, the reranker 96"
    opaque = hybrid_of(str(toys / "colours"))
    assert isinstance(opaque, Reranker)
    assert not isinstance(opaque, Differentiable)
    assert opaque.tower_ids() == {}


@pytest.mark.parametrize(
    ("reranker", "words"),
    [
        ("tiny", "reranker got tiny, .* expected one with image_tokens and score_pairs"),
        ("no-such", "reranker got 'no-such'; expected the name of a shipped submission, or the path of a folder"),
        ("./no/such", "reranker got './no/such'; expected"),
        ("hybrid", "reranker got 'hybrid', which is the hybrid itself"),
    ],
)
def test_what_cannot_be_a_part_is_refused(reranker: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hybrid_of("tiny", reranker)


def test_parts_are_found_from_the_manifest_and_from_the_command(
    mine: Path, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (mine / "parts").resolve()
    inside = {"encoder": str(parts / "colours"), "reranker": str(parts / "two_stage")}
    assert resolve_args(find_submission(str(mine))) == inside
    monkeypatch.chdir(toys)
    given = find_submission(str(mine), {"encoder": "./soft_colours", "reranker": "controls"})
    assert resolve_args(given) == {"encoder": str(toys / "soft_colours"), "reranker": "controls"}
    assert given.label == "mine-soft_colours-controls"


def test_a_changed_part_is_another_submission(mine: Path, toys: Path, tmp_path: Path) -> None:
    shutil.copytree(toys / "colours", tmp_path / "elsewhere")
    args = {"encoder": str(tmp_path / "elsewhere")}
    before = find_submission(str(mine), args).fingerprint
    assert find_submission(str(mine), args).fingerprint == before
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(b"x")
    assert find_submission(str(mine), args).fingerprint != before
    named = {"reranker": "tiny-lora"}, {"reranker": "tiny-vpt"}
    assert len({find_submission(str(mine), part).fingerprint for part in named}) == 2


def test_the_manifest_chooses_pool_and_index_and_flags_override(mine: Path, suite: Suite, tmp_path: Path) -> None:
    submission = find_submission(str(mine))
    settings = RunSettings(output=tmp_path / "run", batch_size=24)
    result = run_suite(submission, replace(suite, cells=suite.cells[1:2]), settings, Silent())
    assert not result.failed, result.failed
    assert result.manifest.rerank_k == 7
    assert [choose_rerank_k(submission, asked) for asked in (None, 3)] == [7, 3]
    assert choose_rerank_k(find_submission("tiny-cocoop"), None) == RERANK_K
    assert factory_of(submission, TimingSettings()) == "HNSW16"
    assert factory_of(submission, TimingSettings(factory="Flat")) == "Flat"
    assert factory_of(find_submission("tiny"), TimingSettings()) is None


def test_an_index_that_there_is_not_is_refused_before_anything_is_encoded(mine: Path) -> None:
    manifest = mine / "submission.toml"
    manifest.write_text(manifest.read_text().replace("HNSW16", "HNSW-of-mine"))
    with pytest.raises(UsageError, match="faiss knows no index 'HNSW-of-mine'"):
        time_submission(find_submission(str(mine)), TimingSettings(), lambda line: pytest.fail(line))


@pytest.mark.slow
def test_a_timing_uses_the_manifests_choices(mine: Path) -> None:
    settings = TimingSettings(limit=24, n_calls=30, batch_size=2, threads=1, k=5)
    record = time_submission(find_submission(str(mine)), settings, lambda line: None)
    assert (record.index.factory, record.rerank_k) == ("HNSW16", 7)
    assert "rerank" in record.served[0].stages
