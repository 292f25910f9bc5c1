"""Insertion of expected words, by a tiny BERT with random weights, saved in the format of the hub's models."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_bert import SPECIAL, save_bert

from bench.errors import InputError
from shifts.seeding import sample_rng
from shifts.text import hub_models, masked_lm
from shifts.text.hub_models import HubModel

CAPTION = "A man, in blue, rides the brown horse."
WORDS = "a i b in man blue rides the brown horse dog cat tree red big small old green house near two".split()  # noqa: SIM905
PIECES = [*SPECIAL, ",", ".", "##s", "##ing", "7", "犬", *WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), PIECES, max_tokens=64)


@pytest.fixture(autouse=True)
def _tiny_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_lm, "MODEL", HubModel("masked_lm", str(folder), "none"))


def inserted(caption: str, n_words: int, sample_id: str = "a") -> str:
    return masked_lm.insert_words(caption, n_words, sample_rng(0, "word_insert", 1, 1, sample_id))


@pytest.mark.parametrize("n_words", [0, 1, 2, 5])
def test_the_caption_is_what_remains_without_the_new_words(n_words: int) -> None:
    for i in range(20):
        longer = inserted(CAPTION, n_words, str(i))
        words = iter(longer.lower().split())
        assert all(word in words or word == "horse." for word in CAPTION.lower().split())
        assert len(longer.split()) == len(CAPTION.split()) + n_words
        assert longer[0].isupper()
        assert longer.endswith(".")
        assert longer.count(",") == 2
        assert "  " not in longer


def test_new_words_are_whole_words_of_letters() -> None:
    before = CAPTION.lower().replace(",", "").replace(".", "").split()
    for i in range(40):
        after = re.findall(r"[^\s,.]+", inserted(CAPTION, 3, str(i)).lower())
        for word in before:
            after.remove(word)
        assert set(after) <= set(WORDS) - {"b"}


def test_words_are_among_the_ten_most_probable_at_their_place(folder: Path) -> None:
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    net = transformers.BertForMaskedLM.from_pretrained(folder).double().eval()
    drawn = set()
    for i in range(60):
        words = inserted("the brown horse", 1, str(i)).split()
        place = next(k for k in range(4) if words[:k] + words[k + 1 :] == ["the", "brown", "horse"])
        masked = [*words[:place], "[MASK]", *words[place + 1 :]]
        with torch.inference_mode():
            logits = net(**tokenizer(" ".join(masked), return_tensors="pt")).logits[0, place + 1]
        allowed = sorted((-logits[PIECES.index(word)].item(), word) for word in WORDS if word != "b")[:10]
        assert words[place] in {word for _, word in allowed}
        drawn.add((place, words[place]))
    assert {place for place, _ in drawn} == {0, 1, 2, 3}
    assert len(drawn) > 15


def test_the_rng_alone_decides() -> None:
    torch.manual_seed(1)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    results = set()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            results.add(inserted(CAPTION, 3))
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1
    assert len({inserted(CAPTION, 3, str(i)) for i in range(10)}) > 7
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("caption", ["", " ", "7", "?!", "\ud800x", "a [MASK] b", "ab " * 3334])
def test_what_the_model_cannot_read_stays(caption: str) -> None:
    assert inserted(caption, 2) == caption


@pytest.mark.parametrize("caption", ["犬が走る", "a\0b", "🐕 runs", "naïve café"])
def test_other_alphabets_pass(caption: str) -> None:
    assert len(inserted(caption, 2).split()) == len(caption.split()) + 2


def test_without_the_model_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert masked_lm.find_missing() == ""
    name, revision = "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"
    monkeypatch.setattr(masked_lm, "MODEL", HubModel("masked_lm", name, revision))
    reason = masked_lm.find_missing()
    assert f"hf download {name} --revision {revision}" in reason
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        inserted(CAPTION, 1)


def test_a_model_is_loaded_once_and_in_double_precision() -> None:
    [first], [second] = hub_models.load(masked_lm.MODEL), hub_models.load(masked_lm.MODEL)
    assert first.net is second.net
    assert {parameter.dtype for parameter in first.net.parameters()} == {torch.float64}
    assert np.array([not first.net.training]).all()
