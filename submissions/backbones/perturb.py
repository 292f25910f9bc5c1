"""Worst cases of images and texts, found within a small budget, for recipes that train on them.

They are searched for on the model as it learns, at every step anew, and are no part of how submissions are attacked
when they are scored. The backbone stays in eval mode; gradients are asked of pixels alone, never kept on parameters.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from submissions.backbones.plan import parse_count, parse_number

PIXEL_ARGS = {"eps": "2", "steps": "10", "step_size": "1"}
TEXT_ARGS = {"rho": "50", "k": "1"}
MOMENTUM = 0.9
# What may stand at a place of a text; nothing at all deletes what stands there.
CHARACTERS = ("", *string.ascii_lowercase, " ", *string.ascii_uppercase, *string.digits, *string.punctuation)
PROBE = " "
CANDIDATES_AT_ONCE = 512

PixelLoss = Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, ""]]
EmbedTexts = Callable[[Sequence[str]], Float[Tensor, "n dim"]]
Harm = Callable[[Float[Tensor, "n dim"], Int[Tensor, " n"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class PixelSearch:
    """How far pixels may move, and in how many steps.

    Args:
        eps: largest change of a value in [0, 1].
        steps: of gradient ascent; with none, the change is drawn uniformly.
        step_size: of one step, for values in [0, 1].
    """

    eps: float
    steps: int
    step_size: float

    @classmethod
    def told(cls, args: Mapping[str, str]) -> PixelSearch:
        """As the arguments of `PIXEL_ARGS` say, which count in 1/255.

        Raises:
            UsageError: one is no number of at least 0.
        """
        eps, step_size = (parse_number(name, args[name], float) / 255 for name in ("eps", "step_size"))
        return cls(eps, parse_number("steps", args["steps"], int), step_size)


@dataclass(frozen=True)
class TextSearch:
    """How many characters of a text may change, and how many candidates are tried for each.

    Args:
        k: largest Levenshtein distance.
        rho: places, and then characters, that are tried for each change.
    """

    k: int
    rho: int

    @classmethod
    def told(cls, args: Mapping[str, str]) -> TextSearch:
        """As the arguments of `TEXT_ARGS` say.

        Raises:
            UsageError: `k` is no whole number of at least 0, or `rho` of at least 1.
        """
        return cls(parse_number("k", args["k"], int), parse_count("rho", args["rho"]))


def perturb_pixels(
    loss: PixelLoss, pixels: Float[Tensor, "n 3 height width"], search: PixelSearch, rng: np.random.Generator
) -> Float[Tensor, "n 3 height width"]:
    """Pixels in [0, 1], at most `search.eps` from the given ones, for which `loss` is large.

    Projected gradient ascent under the maximum norm from a uniform start: each step follows the sign of a velocity,
    itself kept as signs, to which the gradient's signs are added; the last point is taken, not the best. Where the
    source feeds the start as drawn, it is cut to [0, 1] here, as `Backbone.embed_pixels` asks.

    Source: checked against `train/pgd_train.py` of github.com/chs20/RobustVLM (arXiv:2402.12336, arXiv:2212.07016).
    """
    lowest, highest = (pixels - search.eps).clamp(min=0), (pixels + search.eps).clamp(max=1)
    drawn = torch.from_numpy(2 * rng.random(tuple(pixels.shape), dtype=np.float32) - 1)
    moved = (pixels + search.eps * drawn.to(pixels.device)).clamp(lowest, highest)
    velocity = torch.zeros_like(moved)
    for _ in range(search.steps):
        velocity = (MOMENTUM * velocity + _gradient(loss, moved).sign()).sign()
        moved = (moved + search.step_size * velocity).clamp(lowest, highest)
    return moved


def _gradient(loss: PixelLoss, pixels: Tensor) -> Tensor:
    pixels = pixels.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(pixels), pixels)[0]


@torch.no_grad()
def perturb_texts(
    embed: EmbedTexts, harm: Harm, texts: Sequence[str], search: TextSearch, rng: np.random.Generator
) -> list[str]:
    """Texts at most `search.k` single-character changes from the given ones, for whose vectors `harm` is large.

    For each change: at `rho` random places of a text a space is tried, and where it does most harm, `rho` random
    characters. Where there are fewer places or characters than `rho`, each is tried once, while the source then draws
    with repetition. Unlike its constrained form, changes that make another English word are allowed: that form needs
    a word list.

    Args:
        embed: texts to vectors.
        harm: how bad vectors are, each for the text whose index stands beside it.
        texts: one result each.
        search: the budget.
        rng: draws places and characters.

    Source: arXiv:2506.03355, algorithm 1; checked against `utils_attacks.py` of github.com/LIONS-EPFL/LEAF.
    """
    found = list(texts)
    for _ in range(search.k):
        slots = [_draw(n_slots(text), search.rho, rng) for text in found]
        probed = [[edit(text, int(slot), PROBE) for slot in drawn] for text, drawn in zip(found, slots, strict=True)]
        worst = [int(drawn[place]) for drawn, place in zip(slots, _worst(embed, harm, probed), strict=True)]
        drawn = [_draw(len(CHARACTERS), search.rho, rng) for _ in found]
        changed = [
            [edit(text, slot, CHARACTERS[int(i)]) for i in characters]
            for text, slot, characters in zip(found, worst, drawn, strict=True)
        ]
        found = [row[place] for row, place in zip(changed, _worst(embed, harm, changed), strict=True)]
    return found


def n_slots(text: str) -> int:
    """In how many places a text can be changed: at each character, and before, between and behind them."""
    return 2 * len(text) + 1


def edit(text: str, slot: int, character: str) -> str:
    """The text with `character` in place of what stands in a slot.

    Args:
        text: of any length.
        slot: even ones lie between characters, so the character is inserted; odd ones hold one, which is replaced,
            or deleted if it is the same.
        character: one, or the empty string, which deletes (and inserts nothing).
    """
    place, holds = divmod(slot, 2)
    if holds and text[place] == character:
        character = ""
    return text[:place] + character + text[place + holds :]


def _draw(n: int, wanted: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    return rng.choice(n, size=min(n, wanted), replace=False)


def _worst(embed: EmbedTexts, harm: Harm, candidates: Sequence[Sequence[str]]) -> list[int]:
    """For each text, which of its candidates does most harm."""
    sizes = [len(row) for row in candidates]
    harms = _score(embed, harm, [text for row in candidates for text in row], np.repeat(np.arange(len(sizes)), sizes))
    return [int(part.argmax()) for part in np.split(harms, np.cumsum(sizes)[:-1])]


def _score(
    embed: EmbedTexts, harm: Harm, texts: Sequence[str], owners: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Harm of each text, a bounded number at once, those of like length together because they are padded alike."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    harms = np.empty(len(texts), dtype=np.float32)
    for start in range(0, len(texts), CANDIDATES_AT_ONCE):
        part = order[start : start + CANDIDATES_AT_ONCE]
        vectors = embed([texts[i] for i in part])
        harms[part] = harm(vectors, torch.from_numpy(owners[part]).to(vectors.device)).cpu().numpy()
    return harms


def squared_distance(vectors: Float[Tensor, "n dim"], targets: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Squared Euclidean distance of each vector from its target, summed over dimensions."""
    return (vectors - targets).square().sum(dim=1)
