"""Does Charmer's search find what trying every edit finds, and at what price? Also the price of the other attacks.

    python tests/benchmarks/charmer_search.py [SUBMISSION DATASET [N_CAPTIONS]]

Attacks the shortest captions that are found at rank 1 among all images; an attack succeeds where its string is not. The
exhaustive search takes the edit with the highest loss of all that insert, replace or delete one character.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.submission import find_submission
from bench.types import Collection, Encoder, LoadContext
from shifts.attacks.characters import ALPHABET, charmer, typo_greedy
from shifts.attacks.goal import Goal

torchvision_fix.install()

N_CAPTIONS, BATCH = 50, 64
Attack = Callable[[Any, Sequence[str], int, np.random.Generator], list[str]]


class Outcome(NamedTuple):
    """What a search came to, one entry a caption but for the count of all strings that it had encoded."""

    losses: np.ndarray
    missed: np.ndarray
    n_strings: int


class Game:
    """Captions that are found at rank 1 among all images, and what becomes of strings in their place."""

    def __init__(self, encoder: Encoder, collection: Collection, n_captions: int) -> None:
        self._encoder = encoder
        images = [
            encoder.encode_images([image.decode() for image in collection.images[start : start + BATCH]])
            for start in range(0, len(collection.images), BATCH)
        ]
        own = np.zeros((len(collection.captions), len(collection.images)), bool)
        own[collection.positives[:, 1], collection.positives[:, 0]] = True
        self._goal = Goal(
            torch.nn.functional.normalize(torch.from_numpy(np.concatenate(images))), torch.from_numpy(own)
        )
        shortest = np.argsort([len(caption) for caption in collection.captions], kind="stable")
        self._rows = np.array(list(self._found(collection.captions, shortest, n_captions)))
        self.captions = [collection.captions[row] for row in self._rows]

    def _found(self, captions: Sequence[str], order: np.ndarray, n_captions: int) -> Iterator[int]:
        left = n_captions
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            _, missed = self._judge([captions[row] for row in part], part)
            yield from part[~missed][:left]
            left -= min(left, int((~missed).sum()))
            if not left:
                return

    def judge(self, texts: Sequence[str], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each text in the place of a caption, and whether another image comes first then."""
        parts = [slice(start, start + BATCH) for start in range(0, len(texts), BATCH)]
        judged = [self._judge(texts[part], self._rows[rows[part]]) for part in parts]
        losses, missed = zip(*judged, strict=True)
        return np.concatenate(losses), np.concatenate(missed)

    def _judge(self, texts: Sequence[str], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        goal = self._goal.take(torch.from_numpy(rows))
        vectors = torch.nn.functional.normalize(torch.from_numpy(self._encoder.encode_texts(texts)))
        first = (vectors @ goal.others.T).argmax(dim=1, keepdim=True)
        return goal.losses(vectors).numpy(), ~goal.own.gather(1, first)[:, 0].numpy()

    def attack(self, attack: Attack, budget: int) -> Outcome:
        n_strings = 0

        def losses(texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
            nonlocal n_strings
            n_strings += len(texts)
            return self.judge(texts, rows)[0]

        attacked = attack(losses, self.captions, budget, np.random.default_rng(0))
        return Outcome(*self.judge(attacked, np.arange(len(attacked))), n_strings)

    def search_exhaustively(self, row: int) -> Outcome:
        candidates = one_edit_strings(self.captions[row])
        losses, missed = self.judge(candidates, np.full(len(candidates), row))
        worst = [losses.argmax()]
        return Outcome(losses[worst], missed[worst], len(candidates))


def one_edit_strings(text: str) -> list[str]:
    """The text, and every string that one insertion, replacement or deletion of a character makes of it."""
    cuts = [(text[:i], text[i:]) for i in range(len(text) + 1)]
    inserted = {left + letter + right for left, right in cuts for letter in ALPHABET}
    replaced = {left + letter + right[1:] for left, right in cuts if right for letter in ALPHABET}
    deleted = {left + right[1:] for left, right in cuts if right}
    return sorted(inserted | replaced | deleted | {text})


def load_game(submission: str, dataset: str, n_captions: int) -> Game:
    found = find_submission(submission)
    if found.import_name:
        module = importlib.import_module(found.import_name)
    else:
        spec = importlib.util.spec_from_file_location("attacked_submission", found.module)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    context = LoadContext(found.folder, "cpu", "float32", found.args, offline=True)
    return Game(getattr(module, found.function)(context), load_collection(dataset), n_captions)


def show(name: str, outcome: Outcome) -> None:
    n = len(outcome.losses)
    share = f"{outcome.missed.sum():>6} of {n}"
    print(f"{name:<18}{share}{outcome.losses.mean():>12.2f}{outcome.n_strings / n:>20.0f}")


def main() -> None:
    submission, dataset, n_captions = [*sys.argv[1:], *("tiny", "scenes/test", N_CAPTIONS)[len(sys.argv) - 1 :]]
    game = load_game(submission, dataset, int(n_captions))
    lengths = [len(caption) for caption in game.captions]
    clean = game.judge(game.captions, np.arange(len(game.captions)))[0]
    print(f"{submission}, {dataset}: {len(lengths)} captions of {min(lengths)} to {max(lengths)} characters")
    print(f"{'':<18}{'missed':>11}{'mean loss':>11}{'strings per caption':>21}")
    show("unchanged", Outcome(clean, np.zeros(len(clean), bool), len(clean)))
    for attack, budget in ((typo_greedy, 1), (typo_greedy, 2), (charmer, 2)):
        show(f"{attack.__name__}:{budget}", game.attack(attack, budget))
    found = game.attack(charmer, 1)
    losses, missed, counts = zip(*map(game.search_exhaustively, range(len(game.captions))), strict=True)
    best = Outcome(np.concatenate(losses), np.concatenate(missed), sum(counts))
    show("charmer:1", found)
    show("exhaustive", best)
    given_away = best.losses - found.losses
    print(
        f"charmer:1 encodes {best.n_strings / found.n_strings:.1f} x fewer strings; it gives away "
        f"{given_away.mean():.3f} of {(best.losses - clean).mean():.2f} in loss, at most {given_away.max():.2f}, "
        f"nothing on {(given_away <= 1e-4).sum()} captions"
    )


if __name__ == "__main__":
    main()
