"""Character attacks against toy victims that naive searches can try out completely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest

from shifts.attacks import characters
from shifts.attacks.characters import ALPHABET, charmer, typo_greedy

CAPTIONS = (
    "a dog runs on the beach",
    "two men play chess",
    "a red car by a tree",
    "Children jump into a lake",
    "a cat sleeps",
    "birds over the sea at dusk",
    "the old man reads",
    "a brown horse eats grass",
)
ODD = ("", "a", " ", "aa", "Zoë läuft", "犬が走る", "e\u0301te\u0301", "dog 🐕!", "2 X 4")
ATTACKS = (charmer, typo_greedy)
Attack = Callable[..., list[str]]
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Gallery:
    """Loses captions as a retrieval model of hashed character trigrams does; keeps what it was asked."""

    def __init__(self, owners: Sequence[str] = CAPTIONS) -> None:
        self.items = np.stack([embed(owner) for owner in CAPTIONS])
        self.own = [CAPTIONS.index(owner) for owner in owners]
        self.calls: list[list[tuple[int, str]]] = []

    def __call__(self, texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
        self.calls.append([(int(row), text) for row, text in zip(rows, texts, strict=True)])
        return np.array([self.loss(text, row) for row, text in self.calls[-1]])

    def loss(self, text: str, row: int) -> float:
        scores = self.items @ embed(text) / 0.1
        return float(np.log(np.exp(scores).sum()) - scores[self.own[row]])

    @property
    def asked(self) -> list[tuple[int, str]]:
        return [pair for call in self.calls for pair in call]


def embed(text: str) -> np.ndarray:
    vector = np.zeros(32)
    for i in range(len(text) + 1):
        code = crc32(f"#{text}#"[i : i + 3].encode())
        vector[code % 32] += 1 if code & 64 else -1
    return vector / max(1e-9, np.linalg.norm(vector))


def distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, swap)
    return int(table[-1, -1])


def one_edit(text: str) -> set[str]:
    found = {text}
    for i in range(len(text) + 1):
        found |= {text[:i] + letter + text[i:] for letter in ALPHABET}
    for i in range(len(text)):
        found |= {text[:i] + letter + text[i + 1 :] for letter in ["", *ALPHABET]}
    return found


def run(attack: Attack, losses: Callable, texts: Sequence[str], budget: int) -> list[str]:
    return attack(losses, texts, budget, np.random.default_rng(0))


def test_alphabet_has_letters_and_what_captions_have_between_them() -> None:
    assert sorted(ALPHABET) == sorted("abcdefghijklmnopqrstuvwxyz ,.'-")


@pytest.mark.parametrize("text", [*ODD, CAPTIONS[3], ALPHABET[0] * 3])
def test_places_and_symbols_make_exactly_all_one_edit_strings(text: str) -> None:
    places = range(2 * len(text) + 1)
    assert set(characters._edits(text, places, characters._SYMBOLS)) == one_edit(text)
    assert text not in set(characters._edits(text, places, ALPHABET)), (
        "a test that leaves the text as it is tells nothing"
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_more_budget_hurts_more_and_is_kept(attack: Attack) -> None:
    gallery = Gallery()
    attacked = [list(CAPTIONS), *(run(attack, gallery, CAPTIONS, budget) for budget in (1, 2, 3))]
    for budget, (before, after) in enumerate(pairwise(attacked), start=1):
        for row, (weaker, stronger) in enumerate(zip(before, after, strict=True)):
            assert gallery.loss(stronger, row) > gallery.loss(weaker, row)
            assert distance(stronger, CAPTIONS[row]) <= budget


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("text", ODD)
def test_odd_strings_stay_within_budget_and_never_get_easier(attack: Attack, text: str) -> None:
    gallery = Gallery(CAPTIONS[:1])
    for budget in (1, 2):
        [attacked] = run(attack, gallery, [text], budget)
        assert distance(attacked, text) <= budget
        assert gallery.loss(attacked, 0) >= gallery.loss(text, 0)


def test_only_strings_within_one_edit_are_tried_in_a_round() -> None:
    gallery = Gallery()
    first = run(charmer, gallery, CAPTIONS, 1)
    near = [one_edit(text) for text in CAPTIONS]
    assert all(text in near[row] for row, text in gallery.asked)
    gallery.calls.clear()
    run(charmer, gallery, CAPTIONS, 2)
    nearer = [some | one_edit(text) for some, text in zip(near, first, strict=True)]
    assert all(text in nearer[row] for row, text in gallery.asked)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_string_is_encoded_twice_and_calls_are_bounded(attack: Attack) -> None:
    gallery = Gallery(CAPTIONS * 4)
    run(attack, gallery, CAPTIONS * 4, 2)
    assert len(gallery.asked) == len(set(gallery.asked))
    assert max(map(len, gallery.calls)) <= 4096
    assert len(gallery.calls) <= 3 + len(gallery.asked) / 1000


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_do_not_influence_each_other(attack: Attack) -> None:
    texts = [CAPTIONS[0], CAPTIONS[0], "", *CAPTIONS[1:3]]
    owners = [CAPTIONS[0], CAPTIONS[4], *CAPTIONS[5:8]]
    together = run(attack, Gallery(owners), texts, 2)
    alone = [run(attack, Gallery([owner]), [text], 2)[0] for text, owner in zip(texts, owners, strict=True)]
    assert together == alone
    assert together[0] != together[1]


def test_charmer_against_every_edit() -> None:
    gallery = Gallery()
    best = np.array([max(gallery.loss(t, row) for t in one_edit(text)) for row, text in enumerate(CAPTIONS)])
    found = np.array([gallery.loss(t, row) for row, t in enumerate(run(charmer, gallery, CAPTIONS, 1))])
    assert len(gallery.asked) < sum(len(one_edit(text)) for text in CAPTIONS) / 5
    assert np.isclose(found, best).sum() >= 4, "a sixth of the strings, drawn at random, would have 1 or 2 of 8 optima"


@pytest.mark.parametrize("seed", range(6))
def test_charmer_finds_the_optimum_where_place_and_symbol_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, symbols = "0123456789" * 2, ["", *ALPHABET]
    at, by = rng.permutation(2 * len(text) + 1), dict(zip(symbols, rng.random(len(symbols)), strict=True))
    table = {text: 0.0}
    for place, weight in enumerate(at):
        i, replaces = divmod(place, 2)
        for symbol in symbols if replaces else ALPHABET:
            table[text[:i] + symbol + text[i + replaces :]] = weight + by[symbol]
    [attacked] = run(charmer, lambda texts, rows: np.array([table[t] for t in texts]), [text], 1)
    assert attacked == max(table, key=table.__getitem__)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_nothing_changes_where_nothing_hurts_more(attack: Attack, value: float) -> None:
    assert run(attack, lambda texts, rows: np.full(len(texts), value), list(CAPTIONS), 2) == list(CAPTIONS)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nan_is_never_the_worst(attack: Attack) -> None:
    scores: dict[str, float] = {}

    def losses(texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
        codes = [crc32(text.encode()) for text in texts]
        scores.update((text, np.nan if code % 2 else float(code)) for text, code in zip(texts, codes, strict=True))
        return np.array([scores[text] for text in texts])

    [attacked] = run(attack, losses, CAPTIONS[:1], 1)
    assert scores[attacked] == np.nanmax(list(scores.values()))


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_drawn_at_random_and_texts_are_left_alone(attack: Attack) -> None:
    rng, texts = np.random.Generator(np.random.Philox(1)), list(CAPTIONS)
    before = rng.bit_generator.state["state"]["counter"].copy()
    attack(Gallery(), texts, 1, rng)
    assert np.array_equal(rng.bit_generator.state["state"]["counter"], before)
    assert texts == list(CAPTIONS)
    assert attack(Gallery(()), [], 2, rng) == []


def touches(a: str, b: str) -> bool:
    spots = {key: (y, x + y / 2) for y, row in enumerate(KEYS) for x, key in enumerate(row)}
    (ya, xa), (yb, xb) = spots[a.lower()], spots[b.lower()]
    return abs(ya - yb) <= 1 and abs(xa - xb) <= 1.5


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_slips_go_to_keys_that_touch_the_right_one_in_the_same_case(budget: int) -> None:
    texts = [*CAPTIONS, *ODD]
    gallery = Gallery([*CAPTIONS, *[CAPTIONS[0]] * len(ODD)])
    run(typo_greedy, gallery, texts, budget)
    for row, text in gallery.asked:
        changed = [(a, b) for a, b in zip(texts[row], text, strict=True) if a != b]
        assert len(changed) <= budget
        assert all(touches(a, b) and a.isupper() == b.isupper() for a, b in changed)


def test_typo_greedy_tries_every_slip() -> None:
    gallery = Gallery()
    attacked = run(typo_greedy, gallery, CAPTIONS, 1)
    tried = {row: [text for r, text in gallery.asked if r == row] for row in range(len(CAPTIONS))}
    assert {t for t in tried[4] if t[2:] == CAPTIONS[4][2:]} == {f"{key} cat sleeps"[:12] for key in "aqwsxz"}
    assert all(text == max(tried[row], key=lambda t: gallery.loss(t, row)) for row, text in enumerate(attacked))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_edit_breaks_a_caption_of_scenes_that_charmer_does_not_break() -> None:
    from tests.benchmarks.charmer_search import load_game, one_edit_strings

    game = load_game("tiny", "scenes/test", 50)
    found = game.attack(charmer, 1)
    assert len(found.missed) == 50
    assert not any(game.search_exhaustively(row).missed[0] for row in np.flatnonzero(~found.missed))
    assert found.n_strings * 5 <= sum(len(one_edit_strings(caption)) for caption in game.captions)
    best = game.search_exhaustively(0)
    assert found.losses[0] == pytest.approx(best.losses[0], rel=0.2)
