"""One attacked cell: items attacked in one worker, scored in another that was never attacked, beside the same items as
they were; with the checks that tell whether the result may be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from bench.aim import Aim
from bench.bundle import Results
from bench.crafting import Crafter, Plan, Sides, candidate_source, make_aim, make_goal
from bench.embed import Embedded, Embedder
from bench.errors import InputError, RoveError
from bench.evaluate import Distractors, StandIns, rank, to_unit
from bench.evidence import Evidence, Variant, in_variant, pack_evidence
from bench.examples import (
    EXAMPLES,
    N_EXAMINED,
    Examples,
    find_report,
    folder_name,
    join,
    n_attacked,
    name_examination,
    pixels_of,
    read_examples,
    role_of,
)
from bench.records import (
    AttackReport,
    Cell,
    Check,
    CurvePoint,
    Estimate,
    Objective,
    digest_of,
    to_json,
)
from bench.reliability import NOISE, Examination, examine, examine_texts
from bench.retrieval.rerank import PairScores, SecondStage
from bench.scoring import Metrics, find_flags, score_attack, score_evidence
from bench.second import NotApplicable, Readings, find_objective, in_both_directions, score_stand_ins
from bench.store import read_sealed, seal, write_atomic
from bench.types import Collection, Direction
from shifts.attacks.budget import count_edits, largest_change
from shifts.attacks.catalogue import STEPS, Attack, find_attack, parse_attack
from shifts.resources import find_missing_packages
from shifts.seeding import sample_rng

_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_EXAMINED_BY = {True: ("pgd", 4, STEPS), False: ("square", 8, 2)}  # by whether there is a gradient
Progress = Callable[[int], None]


class Findings(BaseModel):
    """What an examination of the victim found, as it is kept for the run's other cells."""

    key: str
    checks: tuple[Check, ...]
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Attacked:
    """The result of one attacked cell."""

    evidence: bytes
    metrics: Metrics
    flags: tuple[str, ...]
    report: AttackReport
    images: Embedded
    texts: Embedded
    n_distractors: int
    distractors_sha256: str | None
    token_bytes: int | None


@dataclass(frozen=True)
class _Items:
    """Embeddings of a collection's items: of each modality as they were, attacked, and before rounding; and of the
    images that were attacked, before that, which are not the collection's own where they become distractors.

    Beside them what a second stage reads of them; None where there is none.
    """

    clean: tuple[Embedded, Embedded]
    attacked: tuple[Embedded, Embedded]
    unrounded: np.ndarray | None
    started_from: Embedded
    clean_readings: Readings | None = None
    attacked_readings: Readings | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is ranked; unrounded pixels only by one stage, since their tokens are not kept."""
        one_stage = self.unrounded is not None and self.clean_readings is None
        return ("", "clean", "unrounded") if one_stage else ("", "clean")

    def vectors(self, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
        """Images and captions, unit vectors."""
        images, texts = self.clean if variant == "clean" else self.attacked
        pixels = self.unrounded if variant == "unrounded" and self.unrounded is not None else images.vectors
        return to_unit(pixels), to_unit(texts.vectors)


class AttackScorer:
    """Scores attacked cells of one run.

    Args:
        embedder: of the submission that is scored.
        crafter: attacks the same submission.
        label: of that submission.
        folder: of the run's examples.
        source: another run, whose examples are scored instead of new ones.
        rerank_k: how many items of each query the submission's second stage orders; None if it has none.
    """

    def __init__(
        self,
        embedder: Embedder,
        crafter: Crafter,
        label: str,
        folder: Path,
        source: Results | None = None,
        rerank_k: int | None = None,
    ) -> None:
        self._embedder, self._crafter, self._label = embedder, crafter, label
        self._folder, self._source, self._rerank_k = folder, source, rerank_k

    def close(self) -> None:
        """Ends the worker that is attacked; the next attack starts a fresh one."""
        self._crafter.close()

    def score(
        self, cell: Cell, collection: Collection, progress: Progress, beside: Collection | None = None
    ) -> Attacked:
        """The cell's items attacked and scored.

        Args:
            progress: is told of finished items.
            beside: as many other images, which distractors are made of.

        Raises:
            NotApplicable: the attack needs a gradient, and the submission has none, or it cannot reach the stage, or
                there are no images to make distractors of.
            SubmissionError: the submission failed.
            MissingError: a package that the attack needs is missing.
        """
        attack, budget = parse_attack(cell.shift)
        objective = self._choose_objective(cell, attack)
        role = role_of(cell)
        plan = Plan(attack, budget, role, cell.stage, cell.seed, objective=objective, rerank_k=self._rerank_k)
        crops = None if attack.modality == "text" else self._crops(collection)
        clean = self._embed_images(collection, crops), self._embed_texts(collection.captions)
        sides = Sides(*(torch.from_numpy(to_unit(part.vectors)) for part in clean))
        readings = self._readings(collection, crops, collection.captions)
        aim = make_aim(plan, collection, sides, readings)
        starts = self._crops_beside(beside) if role == "distractor" else crops
        examples = self._examples(cell, plan, collection, starts, aim, progress)
        items = self._embed(attack, clean, readings, examples, collection, starts)
        evidence = {variant: self._rank(cell, collection, items, variant) for variant in items.variants}
        findings = None if self._source else self._examine(plan, collection, crops, sides)
        report = self._report(cell, plan, collection, starts, examples, findings, aim, items, evidence)
        added = items.attacked[0] if plan.role == "distractor" else None
        images = items.clean[0] if added else items.attacked[0]
        return Attacked(
            evidence=pack_evidence(
                {in_variant(v, name): e for v, part in evidence.items() for name, e in part.items()}
            ),
            metrics=score_evidence(evidence[""], len(collection.images)),
            flags=find_flags(evidence[""]),
            report=report,
            images=images,
            texts=items.attacked[1],
            n_distractors=len(added.vectors) if added else 0,
            distractors_sha256=added.fed_sha256 if added else None,
            token_bytes=readings.token_bytes if readings else None,
        )

    def _choose_objective(self, cell: Cell, attack: Attack) -> Objective:
        """What the items are made for; of another run's what that run did."""
        if self._source is not None:
            return find_report(self._source, cell).objective
        loaded = self._embedder.start()
        if attack.access == "white" and not loaded.differentiable:
            raise NotApplicable(
                f"{attack.name} needs a gradient, which {self._label} does not give (it implements no pixels and "
                "embed_pixels); only black-box attacks run against it. See submissions/README.md."
            )
        return find_objective(cell, attack, loaded, self._label)

    def _crops(self, collection: Collection) -> Examples:
        if self._source is None:
            return self._crafter.crops(collection)
        return _read(self._source.folder, collection, "crops")

    def _crops_beside(self, beside: Collection | None) -> Examples:
        if beside is None:
            raise NotApplicable(
                "distractors are made of as many photos beside those of the cell; there are not so many."
            )
        return self._crops(beside)

    def _examples(
        self,
        cell: Cell,
        plan: Plan,
        collection: Collection,
        crops: Examples | None,
        aim: Aim,
        progress: Progress,
    ) -> Examples:
        if self._source is None:
            return self._crafter.attack(plan, collection, crops, aim, progress)
        examples = _read(self._source.folder, collection, plan.slug)
        stated = find_report(self._source, cell).examples_sha256
        if stated != examples.sha256:
            raise InputError(f"{self._source.folder}: the examples of {cell.id} are not those that its record states.")
        progress(n_attacked(cell, collection))
        return examples

    def _embed(
        self,
        attack: Attack,
        clean: tuple[Embedded, Embedded],
        readings: Readings | None,
        examples: Examples,
        collection: Collection,
        starts: Examples | None,
    ) -> _Items:
        images, texts = clean
        attacked = readings and replace(readings, captions=examples.captions)
        if attack.modality != "text":
            images = self._embed_images(collection, examples)
            attacked = self._readings(collection, examples, examples.captions)
        if attack.modality != "image":
            texts = self._embed_texts(examples.captions)
        rounded_only = self._source is not None or not len(examples.unrounded)
        unrounded = None if rounded_only else examples.unrounded
        started_from = self._embed_images(collection, starts)
        return _Items(clean, (images, texts), unrounded, started_from, readings, attacked)

    def _embed_images(self, collection: Collection, examples: Examples | None) -> Embedded:
        """Of the examples' images, or of the collection's on the canvas."""
        return self._embedder.images(*pixels_of(collection, examples), lambda count: None)

    def _readings(self, collection: Collection, examples: Examples | None, captions: Sequence[str]) -> Readings | None:
        """What the second stage reads of the same images, and of captions."""
        if self._rerank_k is None:
            return None
        tokens = self._embedder.tokens(*pixels_of(collection, examples), lambda count: None)
        return Readings(tokens.vectors, captions, self._embedder.score_pairs)

    def _rank(self, cell: Cell, collection: Collection, items: _Items, variant: Variant) -> dict[Direction, Evidence]:
        """The evidence of all stages under the cell's threat model."""
        second = self._second_stage(cell, collection, items, variant)
        clean, changed = items.vectors("clean"), items.vectors(variant)
        if cell.threat_model == "distractor":
            more = Distractors() if variant == "clean" else Distractors(images=changed[0])
            return rank(collection, *clean, cell.directions, more, second)
        if cell.threat_model == "gallery_target":
            return rank(collection, *clean, cell.directions, second=second, stand_ins=StandIns(*changed))
        return rank(collection, *changed, cell.directions, second=second)

    def _second_stage(self, cell: Cell, collection: Collection, items: _Items, variant: Variant) -> SecondStage | None:
        clean, attacked = items.clean_readings, items.attacked_readings
        if self._rerank_k is None or clean is None or attacked is None:
            return None
        score: PairScores = attacked.score
        if variant == "clean":
            score = clean.score
        elif cell.threat_model == "distractor":
            score = clean.with_distractors(attacked).score
        elif cell.threat_model == "gallery_target":
            score = score_stand_ins(clean, attacked, collection)
        return in_both_directions(self._rerank_k, score)

    def _embed_texts(self, captions: Sequence[str]) -> Embedded:
        return self._embedder.texts(list(captions), lambda count: None)

    def _report(
        self,
        cell: Cell,
        plan: Plan,
        collection: Collection,
        crops: Examples | None,
        examples: Examples,
        findings: Findings | None,
        aim: Aim,
        items: _Items,
        evidence: Mapping[Variant, Mapping[Direction, Evidence]],
    ) -> AttackReport:
        attack, n_images = plan.attack, len(collection.images)
        largest, most = verify_budget(plan, collection, crops, examples)
        asr = score_attack(evidence[""], evidence["clean"], n_images)
        losses = None if attack.modality == "joint" else _losses(aim, attack, items)
        checks: list[Check] = []
        if findings is not None:
            checks = [*findings.checks, *self._check_result(plan, collection, examples, aim, losses, asr)]
        unrounded = evidence.get("unrounded")
        return AttackReport(
            access=attack.access,
            version=attack.version,
            victim=cell.victim or self._label,
            objective=plan.objective,
            budget=plan.budget,
            unit=attack.unit,
            n_attacked=n_attacked(cell, collection),
            n_unchanged=_count_unchanged(attack, collection, crops, examples),
            largest_change=largest,
            most_edits=most,
            similarity=_similarity(collection.captions, examples.captions),
            candidates=candidate_source(attack),
            examples_sha256=examples.sha256,
            loss_before=losses and losses[0],
            loss_after=losses and losses[1],
            clean=score_evidence(evidence["clean"], n_images),
            unrounded=score_evidence(unrounded, n_images) if unrounded else {},
            asr=asr,
            curve=findings.curve if findings else (),
            checks=tuple(checks),
            verdict="transferred" if self._source else _verdict(checks),
        )

    def _examine(self, plan: Plan, collection: Collection, crops: Examples | None, sides: Sides) -> Findings:
        """What is found about the victim: once for all attacks on images, once for all on captions."""
        by_text = plan.attack.modality == "text"
        path = self._folder / name_examination(collection.name, len(collection.images), by_text)
        key = digest_of(self._crafter.identity(collection), N_EXAMINED)
        data = read_sealed(path)
        if data is not None and (known := Findings.model_validate_json(data)).key == key:
            return known
        if by_text or crops is None:
            examination = examine_texts(self._encode_afresh, list(dict.fromkeys(collection.captions))[:N_EXAMINED])
        else:
            examination = self._examine_images(plan, collection, crops, sides)
        findings = Findings(
            key=key,
            checks=examination.checks,
            curve=tuple(_curve_point(*point) for point in examination.curve),
        )
        write_atomic(path, seal(to_json(findings)))
        return findings

    def _check_result(
        self,
        plan: Plan,
        collection: Collection,
        examples: Examples,
        aim: Aim,
        losses: tuple[float, float] | None,
        asr: Mapping[Direction, Mapping[str, Estimate]],
    ) -> list[Check]:
        """Whether the attack did at all what it is for."""
        finite = Check(
            name="attacked values not finite",
            passed=not examples.n_broken,
            detail=f"in {examples.n_broken} of {len(examples.images)} images, which are the original's there",
        )
        fallen = min(part["asr_drop@1"].value for part in asr.values())
        if losses is None:
            return [
                finite,
                Check(name="R@1 rises under attack", passed=fallen >= 0, detail=f"it falls by {100 * fallen:.1f} pp"),
            ]
        rise = losses[1] - losses[0]
        checks = []
        if plan.attack.name != NOISE:  # which is the control, not an attack
            detail = f"from {losses[0]:.3f} to {losses[1]:.3f}"
            checks.append(Check(name="attack raises no loss", passed=rise >= 0, detail=detail))
        if plan.attack.modality == "image":
            checks.append(finite)
        if plan.attack.modality == "text":
            checks.append(self._check_random_edits(plan, collection, examples, aim))
        return checks

    def _check_random_edits(self, plan: Plan, collection: Collection, examples: Examples, aim: Aim) -> Check:
        """Random edits of the same size must be weaker."""
        rng = sample_rng(plan.seed, "random edits", 1, plan.budget, collection.name)
        rows = np.arange(min(4 * N_EXAMINED, len(collection.captions)))
        losses = aim.losses(self._crafter.victim, rows)
        words = [word for caption in collection.captions for word in caption.split()] or [""]
        originals = collection.captions[: len(rows)]
        edited = [_random_edits(text, plan.budget, plan.attack.edit_unit, words, rng) for text in originals]
        attacked = list(examples.captions[: len(rows)])
        random, made = (float(losses(texts, rows).mean()) for texts in (edited, attacked))
        detail = f"mean loss {random:.3f} under random edits, {made:.3f} under the attack"
        return Check(name="random edits as strong as the attack", passed=random <= made, detail=detail)

    def _encode_afresh(self, texts: Sequence[str]) -> Tensor:
        self._crafter.victim.forget_texts()
        return self._crafter.victim.encode_texts(texts)

    def _examine_images(self, plan: Plan, collection: Collection, crops: Examples, sides: Sides) -> Examination:
        """Of as many images of one size as there are, up to `N_EXAMINED`, as queries."""
        name, eps, steps = _EXAMINED_BY[self._crafter.victim.differentiable]
        shape = crops.images[0].pixels.shape
        rows = [row for row, image in enumerate(crops.images) if image.pixels.shape == shape][:N_EXAMINED]
        images = np.stack([crops.images[row].pixels for row in rows])
        query = Plan(find_attack(name), eps, "query", "", plan.seed)
        goal = make_goal(query, collection, sides).take(torch.tensor(rows))

        def craft(name: str, eps: int, steps: int) -> np.ndarray:
            one = Plan(find_attack(name), eps, "query", "", plan.seed, steps)
            return self._crafter.attack_queries(one, images, goal)

        rng = sample_rng(plan.seed, "examination", 1, eps, collection.name)
        return examine(self._crafter.victim, images, goal, craft, (name, eps), rng, steps)


def verify_budget(plan: Plan, collection: Collection, crops: Examples | None, examples: Examples) -> tuple[int, int]:
    """The largest change of a pixel and the most edits of a caption, among the items that are scored.

    Raises:
        RoveError: an item is outside the budget.
    """
    attack = plan.attack
    largest = most = 0
    if crops is not None and attack.modality != "text":
        pairs = zip(examples.images, crops.images, strict=True)
        largest = max(largest_change(attacked.pixels, crop.pixels) for attacked, crop in pairs)
    if attack.modality != "image":
        pairs_of_texts = zip(examples.captions, collection.captions, strict=True)
        most = max(count_edits(text, original, attack.edit_unit) for text, original in pairs_of_texts)
    allowed_levels = 0 if attack.modality == "text" else plan.budget
    allowed_edits = {"text": plan.budget, "joint": 1, "image": 0}[attack.modality]
    if largest > allowed_levels or most > allowed_edits:
        raise RoveError(
            f"{attack.id(plan.budget)} left items changed by {largest} levels and {most} edits; "
            f"expected at most {allowed_levels} and {allowed_edits}. Please report this."
        )
    return largest, most


def _losses(aim: Aim, attack: Attack, items: _Items) -> tuple[float, float]:
    """What the attack raises, averaged over its items, before and after."""
    if attack.modality == "text":
        parts = items.clean[1], items.attacked[1]
    else:
        parts = items.started_from, items.attacked[0]
    before, after = (torch.from_numpy(part.vectors) for part in parts)
    return aim.mean_loss(before, items.clean_readings), aim.mean_loss(after, items.attacked_readings)


def _random_edits(text: str, budget: int, unit: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """As many characters or words as the budget allows, at random places, for random others."""
    parts = text.split() if unit == "words" else list(text)
    choices = words if unit == "words" else _LETTERS
    for place in rng.permutation(len(parts))[:budget].tolist():
        parts[place] = choices[int(rng.integers(len(choices)))]
    return (" " if unit == "words" else "").join(parts)


def _curve_point(budget: int, hit_1: float, asr: float) -> CurvePoint:
    return CurvePoint(budget=budget, hit_1=hit_1, asr_hits=None if np.isnan(asr) else asr)


def _verdict(checks: Sequence[Check]) -> str:
    failed = "; ".join(f"{check.name} ({check.detail})" for check in checks if not check.passed)
    return f"unreliable: {failed}"[:2000] if failed else "reliable"


def _count_unchanged(attack: Attack, collection: Collection, crops: Examples | None, examples: Examples) -> int:
    if attack.modality == "text" or crops is None:
        return sum(text == original for text, original in zip(examples.captions, collection.captions, strict=True))
    return sum(image.sha256 == crop.sha256 for image, crop in zip(examples.images, crops.images, strict=True))


def _similarity(originals: Sequence[str], attacked: Sequence[str]) -> float | None:
    """Mean over the changed captions; None where none is changed, or where what measures it is not installed."""
    changed = [pair for pair in zip(originals, attacked, strict=True) if pair[0] != pair[1]]
    if not changed or find_missing_packages():
        return None
    from shifts.text.meaning import similarities

    return float(np.mean(similarities(*zip(*changed, strict=True)), dtype=np.float64).round(4))


def _read(folder: Path, collection: Collection, slug: str) -> Examples:
    """Examples that another run left."""
    batches = read_examples(folder / EXAMPLES / folder_name(collection.name, len(collection.images), slug))
    return join(batches, [image.id for image in collection.images], collection.captions)
