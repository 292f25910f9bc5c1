"""Does an attack fail because the model is robust, or because the model hides the way to its mistakes?

A model that is examined once says so before its numbers are believed. Each check looks for one fault that is known to
make attacks fail for the wrong reason. The gradient is compared with what it claims to describe, the deployed model
at whole levels; the attack with weaker and stronger versions of itself; the model with itself a while later.

Comparisons are paired, image by image, and need Z standard errors, so that an honest model passes with few images;
about 32 are meant, two are needed. Damage is measured by the lead of the wrong answers over the right ones, the log
odds against being found: it rises and falls with the cross-entropy that attacks raise, but is not flat near 0.

With ten steps a white box costs 74 forward and backward passes an image, all but three of them in `craft`, and about 85
forward passes, half of them the black box's; a black-box attack costs five of itself and 10 forward passes.

Sources: Athalye et al. 2018 (arXiv 1802.00420), section 3.1; Carlini et al. 2019 (arXiv 1902.06705), section 3;
Pintor et al. 2022 (arXiv 2106.09947); Croce et al. 2022 (arXiv 2202.13711).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from bench.embed import MIN_COSINE
from bench.metrics import asr_hits
from bench.records import Check
from shifts.attacks.budget import to_pixels
from shifts.attacks.catalogue import EPS, STEPS, find_attack
from shifts.attacks.goal import Goal, log_odds_of_failing

Levels = UInt8[np.ndarray, "n height width 3"]
Pixels = Float[Tensor, "n 3 height width"]
Measure = Callable[[Goal, Tensor], Tensor]
Item = TypeVar("Item")
Craft = Callable[[str, int, int], Levels]
"""The examined images under an attack: (its name, eps in levels of 255, steps) -> images within that budget."""

LARGE_EPS = 64
"""Levels of 255 at which nothing is left to recognise: a quarter of the range, eight times what is published."""

BLACK_BOX, NOISE = "square", "random_noise"
BLACK_BOX_STEPS = 2
"""Of `square`, about 40 tries: far too few to pass a white box that works, enough to pass one that is led astray."""

Z = 2.5
"""Standard errors that make a difference: in a dozen comparisons an honest model is wronged once in fourteen."""

MAX_REPEAT_DISTANCE = 1e-3
"""Between unit vectors of the same batch, computed twice: float32 on a GPU differs by 1e-6, one level of noise makes
1e-2 to 1e-1, and a defence needs noise that drowns several levels."""

MAX_DEAD_SHARE = 0.1
"""Of images without any gradient. Honest models have none: a softmax at this temperature does not underflow."""

MIN_AGREEMENT = 0.7
"""Mean cosine of predicted and measured slopes. Honest models reach 0.9 and more; a gradient without any relation
to the model is at 0, give or take 0.07 for 32 images, one that is right for half of the images at 0.5."""

N_DIRECTIONS, DENSITY = 6, 1 / 16
"""Of random directions, and the share of values that each changes: if one level everywhere changes all that a fragile
model sees, its differences say little of its slope (cosine 0.71 at 224 pixels); a few of them do (0.9)."""

MIN_CLIMB = 0.05
"""Of the predicted rise over one level along the gradient's sign. Curvature costs fragile honest models two thirds, a
gradient without any relation to the model reaches 0.01."""

SMOOTH = (0.01, 0.4)
"""How far noise of up to a quarter level moves a vector, relative to noise of one whole level: 0.144 for whatever is
smooth at that scale, less where one level is more than smooth (0.08 for a fragile model at 224 pixels), 0 between the
steps of a quantiser, 0.4 or more where it stands on one."""

MAX_UNCHANGED_SHARE = 0.5
"""Of an embedding's entries, under one level of noise. Eight-bit embeddings keep a third or less, four-bit most."""

MAX_LEFT = 0.1
"""R@1 above chance that a white box may leave at `LARGE_EPS`: three of 32 images."""

_GRADIENT_BATCH = 16


class Attackable(Protocol):
    """What is examined: a submission's gradient, and the path on which it is deployed."""

    @property
    def differentiable(self) -> bool:
        """Whether there is `embed_pixels`."""

    @property
    def autograd_calls(self) -> int:
        """How many backward passes the submission ran by itself so far."""

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings of pixels in [0, 1], differentiable."""

    def encode_images(self, images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "n dim"]:
        """Embeddings as they are deployed, without gradient."""


class CurvePoint(NamedTuple):
    """What an attack leaves at one budget: eps in levels of 255, attacked R@1 as a fraction, and `asr_hits`."""

    eps: int
    recall: float
    asr: float


@dataclass(frozen=True)
class Examination:
    """What was found.

    Args:
        checks: those that apply to the model and the attack, each named after the fault that it looks for.
        curve: of the main attack, from the smallest eps to the largest; where nothing was hit, `asr` is NaN.
    """

    checks: tuple[Check, ...]
    curve: tuple[CurvePoint, ...]

    @property
    def verdict(self) -> str:
        """ "reliable", or "unreliable: " and the names of the faults."""
        faults = [check.name for check in self.checks if not check.passed]
        return f"unreliable: {', '.join(faults)}" if faults else "reliable"


def examine(
    victim: Attackable,
    images: Levels,
    goal: Goal,
    craft: Craft,
    main: tuple[str, int],
    rng: np.random.Generator,
    steps: int = STEPS,
) -> Examination:
    """Whether what `main` does to `victim` can be believed.

    Checks of the gradient and of convergence are left out where the attack uses no gradient or the model has none.

    Args:
        victim: the model.
        images: clean ones at the model's size, about 32.
        goal: of these images as queries, with the whole gallery of captions.
        craft: makes attacked images; it batches, seeds and keeps to the budget by itself.
        main: the attack whose numbers are to be believed, and its eps.
        rng: draws the perturbations that probe the model.
        steps: of `main`.
    """
    name, eps = main
    model = _Model(victim, goal)
    calls_before = victim.autograd_calls
    clean = model.score(images)
    crafted = {size: craft(name, size, steps) for size in sorted({*EPS, eps, LARGE_EPS})}
    attacked = {size: model.score(found) for size, found in crafted.items()}
    checks = [_check_repeats(model, images, clean), _check_growth(clean, attacked)]
    if victim.differentiable and find_attack(name).access == "white":
        checks += _check_gradient(model, images, crafted[eps], clean, rng)
        checks += _check_ascent(model, craft, main, steps, clean, attacked)
    if name != NOISE:
        checks.append(_check_noise(clean, attacked[eps], model.score(craft(NOISE, eps, 1))))
    checks.append(_check_drift(clean, model.score(images)))
    checks.append(_check_inner_optimiser(victim.autograd_calls - calls_before))
    return Examination(tuple(checks), tuple(_curve_point(size, clean, scored) for size, scored in attacked.items()))


def examine_texts(encode: Callable[[Sequence[str]], Float[Tensor, "n dim"]], texts: Sequence[str]) -> Examination:
    """Whether what searches do to captions can be believed: they only need an answer that stays the same.

    Args:
        encode: the model, which must compute each time it is called.
        texts: about 32, all different.
    """

    def unit(part: Sequence[str]) -> Tensor:
        return functional.normalize(encode(part).double())

    first, again = unit(texts), unit(texts)
    backwards = [unit(part) for part in _halves(list(texts)[::-1])]
    return Examination((_check_same(first, again, torch.cat(backwards).flip(0)),), ())


@dataclass(frozen=True, eq=False)
class _Scored:
    """How one batch of images fares on the deployed path.

    Args:
        raw: vectors as encoded.
        unit: the same with length 1.
        leads: of the wrong answers over the right ones, log odds.
        hits: whether the best own caption beats all others.
    """

    raw: Float[Tensor, "n dim"]
    unit: Float[Tensor, "n dim"]
    leads: Float[np.ndarray, " n"]
    hits: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class _Model:
    """A victim with the goal that it is attacked for."""

    victim: Attackable
    goal: Goal

    def encode(self, images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "n dim"]:
        """Vectors of the deployed path, float64."""
        return self.victim.encode_images(images).to(self.goal.others.device, torch.float64)

    def score(self, images: Levels) -> _Scored:
        """Vectors, leads and hits of the deployed path, in float64: differences between them are small."""
        raw = self.encode(list(images))
        exact = replace(self.goal, others=self.goal.others.double())
        unit = functional.normalize(raw)
        scores = unit @ exact.others.T
        best_own = scores.masked_fill(~self.goal.own, -math.inf).amax(dim=1)
        hits = best_own > scores.masked_fill(self.goal.own, -math.inf).amax(dim=1)
        return _Scored(raw, unit, _leads(exact, raw).cpu().numpy(), hits.cpu().numpy())

    def embed(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Vectors of length 1 of the differentiable path, float64."""
        with torch.no_grad():
            return functional.normalize(self.victim.embed_pixels(pixels).to(self.goal.others.device, torch.float64))

    def gradient(self, pixels: Pixels, measure: Measure) -> Pixels:
        """Of `measure` summed over the images, per level of 255, float64."""
        parts = []
        for start in range(0, len(pixels), _GRADIENT_BATCH):
            leaf = pixels[start : start + _GRADIENT_BATCH].clone().requires_grad_()
            rows = torch.arange(start, start + len(leaf), device=self.goal.own.device)
            vectors = self.victim.embed_pixels(leaf).to(self.goal.others)
            values = measure(self.goal.take(rows), vectors)
            parts.append(torch.autograd.grad(values.sum(), leaf)[0].double() / 255)
        return torch.cat(parts)


def _leads(goal: Goal, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    return log_odds_of_failing(goal.logits(vectors))


def _off_grid(images: Levels, rng: np.random.Generator) -> Pixels:
    """Points that are rounded to `images`, each value up to a quarter of a level away, where attacks pass by."""
    noise = rng.uniform(-0.25, 0.25, images.shape)
    levels = torch.from_numpy(images + noise).permute(0, 3, 1, 2)
    return (levels / 255).clamp(0, 1).float()


def _coin_tosses(images: Levels, rng: np.random.Generator) -> Int[np.ndarray, "n height width 3"]:
    """One level up or down at random, 0 where there is none left on one side, int16."""
    tosses = rng.integers(0, 2, images.shape, dtype=np.int16) * 2 - 1
    return np.where((images == 0) | (images == 255), np.int16(0), tosses)


def _moved(images: Levels, by: Int[np.ndarray, "n height width 3"]) -> Levels:
    return np.clip(images.astype(np.int16) + by, 0, 255).astype(np.uint8)


def _check_repeats(model: _Model, images: Levels, clean: _Scored) -> Check:
    backwards = [functional.normalize(model.encode(part)) for part in _halves(list(images)[::-1])]
    return _check_same(clean.unit, model.score(images).unit, torch.cat(backwards).flip(0))


def _check_same(
    first: Float[Tensor, "n dim"], again: Float[Tensor, "n dim"], in_other_company: Float[Tensor, "n dim"]
) -> Check:
    """The same batch gives the same vectors, and so does every item in other company.

    Noise that depends on nothing is seen in the first, noise that depends on the place in the batch in the second.
    """
    distance, cosine = _largest_distance(first, again), _lowest_cosine(first, in_other_company)
    return Check(
        name="randomised",
        passed=distance <= MAX_REPEAT_DISTANCE and cosine >= MIN_COSINE,
        detail=f"encoded again, vectors lie up to {distance:.1e} apart (at most {MAX_REPEAT_DISTANCE:.0e}); "
        f"in other company the lowest cosine is {cosine:.6f} (at least {MIN_COSINE})",
    )


def _halves(items: list[Item]) -> list[list[Item]]:
    middle = (len(items) + 1) // 2
    return [part for part in (items[:middle], items[middle:]) if part]


def _check_gradient(
    model: _Model, images: Levels, attacked: Levels, clean: _Scored, rng: np.random.Generator
) -> list[Check]:
    """Everything about the gradient itself, where the attack starts and where it ended."""
    near_clean, near_attacked = _off_grid(images, rng), _off_grid(attacked, rng)
    of_losses = model.gradient(to_pixels(images), Goal.losses)
    of_leads = [model.gradient(pixels, _leads) for pixels in (near_clean, near_attacked)]
    one_level = _coin_tosses(images, rng)
    neighbours = model.score(_moved(images, one_level))
    on_grid, off_grid = model.embed(to_pixels(images)), model.embed(near_clean)
    return [
        _check_paths(clean, on_grid, off_grid),
        _check_finite([of_losses, *of_leads]),
        _check_nonzero([of_losses, *of_leads]),
        _check_agreement(
            _agreement(model, images, of_leads[0].nan_to_num(), rng),
            _agreement(model, attacked, of_leads[1].nan_to_num(), rng),
        ),
        _check_climb(model, images, of_leads[0].nan_to_num(), clean),
        _check_quantised(clean, neighbours, _distances(on_grid, off_grid)),
    ]


def _check_ascent(
    model: _Model, craft: Craft, main: tuple[str, int], steps: int, clean: _Scored, attacked: dict[int, _Scored]
) -> list[Check]:
    """Everything about what the attack makes of the gradient."""
    name, eps = main
    first, doubled = (model.score(craft(name, eps, count)) for count in (1, 2 * steps))
    return [
        _check_large_eps(model.goal, attacked[LARGE_EPS]),
        _check_rise(clean, first, attacked[eps]),
        _check_convergence(clean, attacked[eps], doubled),
        _check_black_box(clean, attacked[eps], model.score(craft(BLACK_BOX, eps, BLACK_BOX_STEPS))),
    ]


def _check_paths(clean: _Scored, on_grid: Float[Tensor, "n dim"], off_grid: Float[Tensor, "n dim"]) -> Check:
    """`embed_pixels` computes the deployed vectors, also at pixels that are rounded to the same image."""
    cosines = [_lowest_cosine(clean.unit, unit) for unit in (on_grid, off_grid)]
    return Check(
        name="other paths for gradient and deployment",
        passed=min(cosines) >= MIN_COSINE,
        detail=f"lowest cosine of embed_pixels and encode_images {cosines[0]:.6f}, a quarter of a level away "
        f"{cosines[1]:.6f} (at least {MIN_COSINE})",
    )


def _check_finite(gradients: Sequence[Pixels]) -> Check:
    bad = [float((~gradient.isfinite()).flatten(1).any(dim=1).double().mean()) for gradient in gradients]
    return Check(
        name="gradient not finite",
        passed=not any(bad),
        detail=f"{max(bad):.0%} of the images have a NaN or inf (expected none)",
    )


def _check_nonzero(gradients: Sequence[Pixels]) -> Check:
    dead = max(float((gradient == 0).flatten(1).all(dim=1).double().mean()) for gradient in gradients)
    detail = f"{dead:.0%} of the images have a gradient of zeros (at most {MAX_DEAD_SHARE:.0%})"
    return Check(name="zero gradient", passed=dead <= MAX_DEAD_SHARE, detail=detail)


def _check_agreement(at_clean: float, at_attacked: float) -> Check:
    """The gradient describes what the deployed model does one level away, at both ends of the attack.

    Central differences in random directions, since they also see the part of a gradient that is missing; along the
    gradient itself a mere part of it predicts as well as the whole.
    """
    return Check(
        name="wrong gradient",
        passed=min(at_clean, at_attacked) >= MIN_AGREEMENT,
        detail=f"mean cosine with finite differences of one level {at_clean:.2f} at clean and {at_attacked:.2f} at "
        f"attacked images (at least {MIN_AGREEMENT})",
    )


def _agreement(model: _Model, images: Levels, gradient: Pixels, rng: np.random.Generator) -> float:
    """Mean over images of the cosine between predicted and measured slopes in `N_DIRECTIONS` random directions."""
    predicted, measured = [], []
    for _ in range(N_DIRECTIONS):
        direction = _coin_tosses(images, rng) * (rng.random(images.shape) < DENSITY)
        predicted.append(_rise(gradient, direction))
        ends = [model.score(_moved(images, sign * direction)).leads for sign in (1, -1)]
        measured.append((ends[0] - ends[1]) / 2)
    products = np.sum(np.multiply(predicted, measured), axis=0)
    norms = np.linalg.norm(predicted, axis=0) * np.linalg.norm(measured, axis=0)
    return float(np.mean(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)))


def _check_climb(model: _Model, images: Levels, gradient: Pixels, clean: _Scored) -> Check:
    """One level along the gradient's sign makes the deployed model worse, about as predicted."""
    signs = gradient.sign().permute(0, 2, 3, 1).cpu().numpy().astype(np.int16)
    steps = [_moved(images, size * signs) for size in (1, 2)]
    rises = [float(np.sum(model.score(step).leads - clean.leads)) for step in steps]
    predicted = [float(np.sum(_rise(gradient, step.astype(np.int16) - images))) for step in steps]
    shares = [rise / expected if expected else 0.0 for rise, expected in zip(rises, predicted, strict=True)]
    return Check(
        name="gradient leads nowhere",
        passed=shares[0] >= MIN_CLIMB,
        detail=f"along its sign the damage rises by {shares[0]:.2f} of what it predicts over one level (at least "
        f"{MIN_CLIMB}), {shares[1]:.2f} over two",
    )


def _check_quantised(clean: _Scored, neighbours: _Scored, off_grid: Float[Tensor, " n"]) -> Check:
    """Small changes of the input make small changes of the vector, in nearly all entries."""
    steps = _distances(clean.unit, neighbours.unit)
    ratio = float(torch.where(steps > 0, off_grid / steps, 0.0).median())
    scaled = [raw / raw.abs().amax(dim=1, keepdim=True) for raw in (clean.raw, neighbours.raw)]
    unchanged = float(((scaled[0] - scaled[1]).abs() <= 1e-6)[clean.raw != 0].double().mean())
    return Check(
        name="quantised",
        passed=SMOOTH[0] <= ratio <= SMOOTH[1] and unchanged <= MAX_UNCHANGED_SHARE,
        detail=f"noise of a quarter level moves vectors {ratio:.2f} times as far as noise of one level ({SMOOTH[0]} to "
        f"{SMOOTH[1]}), which leaves {unchanged:.0%} of the entries as they are (at most {MAX_UNCHANGED_SHARE:.0%})",
    )


def _check_growth(clean: _Scored, attacked: dict[int, _Scored]) -> Check:
    """No step up in eps loses more images than it wins, by a sign test."""
    falls = {
        f"{low} to {high}": _excess(~attacked[low].hits & clean.hits, ~attacked[high].hits & clean.hits)
        for low, high in pairwise(attacked)
    }
    shares = ", ".join(f"{_asr(clean, scored):.2f} at {eps}" for eps, scored in attacked.items())
    return Check(name="ASR falls with eps", passed=max(falls.values()) <= Z, detail=f"ASR {shares}")


def _check_large_eps(goal: Goal, attacked: _Scored) -> Check:
    """Nothing withstands a quarter of the range."""
    chance, recall = float(goal.own.double().mean()), float(attacked.hits.mean())
    return Check(
        name="survives a large eps",
        passed=recall <= chance + MAX_LEFT,
        detail=f"R@1 {recall:.2f} at eps {LARGE_EPS} (at most {MAX_LEFT} above chance, {chance:.2f})",
    )


def _check_rise(clean: _Scored, first: _Scored, last: _Scored) -> Check:
    """The attack does damage, and not less than one step of it."""
    means = [float(scored.leads.mean()) for scored in (clean, first, last)]
    return Check(
        name="loss does not rise",
        passed=_standard_errors(last, clean) > Z and _standard_errors(first, last) <= Z,
        detail=f"mean lead of the wrong answers {means[0]:.2f} clean, {means[1]:.2f} after one step, "
        f"{means[2]:.2f} after all",
    )


def _check_convergence(clean: _Scored, attacked: _Scored, doubled: _Scored) -> Check:
    """Twice the steps leave ASR inside its 95 % interval."""
    once, twice = _asr(clean, attacked), _asr(clean, doubled)
    low, high = _wilson(once, int(clean.hits.sum()))
    return Check(
        name="not converged",
        passed=math.isnan(once) or low - 1e-9 <= twice <= high + 1e-9,
        detail=f"ASR {once:.2f} ({low:.2f} to {high:.2f}), with twice the steps {twice:.2f}",
    )


def _check_black_box(clean: _Scored, white: _Scored, black: _Scored) -> Check:
    """Trying at random finds no more than the gradient does."""
    lead = _standard_errors(black, white)
    return Check(
        name="black box stronger than white box",
        passed=lead <= Z,
        detail=f"ASR {_asr(clean, white):.2f}, of {BLACK_BOX} {_asr(clean, black):.2f}; {BLACK_BOX} does {lead:+.1f} "
        f"standard errors more damage (at most {Z})",
    )


def _check_noise(clean: _Scored, attacked: _Scored, noise: _Scored) -> Check:
    """The attack does more damage than noise of the same size."""
    lead = _standard_errors(attacked, noise)
    return Check(
        name="noise as strong as the attack",
        passed=lead > Z,
        detail=f"ASR {_asr(clean, attacked):.2f}, of noise {_asr(clean, noise):.2f}; the attack does {lead:+.1f} "
        f"standard errors more damage (above {Z})",
    )


def _check_drift(before: _Scored, after: _Scored) -> Check:
    """The examination leaves the model as it was."""
    distance = _largest_distance(before.unit, after.unit)
    detail = f"vectors lie up to {distance:.1e} from those at the start (at most {MAX_REPEAT_DISTANCE:.0e})"
    return Check(name="state drifts", passed=distance <= MAX_REPEAT_DISTANCE, detail=detail)


def _check_inner_optimiser(calls: int) -> Check:
    """The model's forward pass has no backward pass inside."""
    return Check(
        name="optimises while it encodes",
        passed=calls == 0,
        detail=f"{calls} backward passes by the submission (expected none)",
    )


def _curve_point(eps: int, clean: _Scored, attacked: _Scored) -> CurvePoint:
    return CurvePoint(eps, float(attacked.hits.mean()), _asr(clean, attacked))


def _asr(clean: _Scored, attacked: _Scored) -> float:
    return asr_hits(clean.hits, attacked.hits)


def _excess(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float:
    """By how many standard errors of a sign test the first is true more often than the second."""
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return (only_first - only_second) / math.sqrt(max(1, only_first + only_second))


def _standard_errors(first: _Scored, second: _Scored) -> float:
    """By how many standard errors of the paired mean the first is more damaged than the second."""
    differences = first.leads - second.leads
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n`. Source: Wilson 1927, doi 10.1080/01621459.1927.10502953."""
    if n == 0:
        return math.nan, math.nan
    z = 1.96
    middle, shrink = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / shrink, (middle + half) / shrink


def _rise(gradient: Pixels, change: Int[np.ndarray, "n height width 3"]) -> Float[np.ndarray, " n"]:
    """What the gradient predicts for a change in levels."""
    moved = torch.from_numpy(change).permute(0, 3, 1, 2).to(gradient)
    return (gradient * moved).flatten(1).sum(dim=1).cpu().numpy()


def _distances(first: Float[Tensor, "n dim"], second: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    return (first - second).norm(dim=1)


def _largest_distance(first: Float[Tensor, "n dim"], second: Float[Tensor, "n dim"]) -> float:
    return float(_distances(first, second).max())


def _lowest_cosine(first: Float[Tensor, "n dim"], second: Float[Tensor, "n dim"]) -> float:
    return float((first * second).sum(dim=1).min())
