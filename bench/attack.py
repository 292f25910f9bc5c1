"""One attacked cell: items attacked in one worker, scored in another that was never attacked, beside the same items as
they were; with the checks that tell whether the result may be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from bench.bundle import Results
from bench.crafting import Crafter, Plan, Sides, folder_name, make_goal, role_of
from bench.embed import Embedded, Embedder
from bench.errors import InputError, RoveError
from bench.evaluate import Distractors, StandIns, rank, to_unit
from bench.evidence import Evidence, Variant, in_variant, pack_evidence
from bench.examples import Examples, join, read_examples
from bench.records import AttackReport, Cell, Check, CurvePoint, Estimate, digest_of, read_json, to_json
from bench.reliability import Examination, examine, examine_texts
from bench.scoring import Metrics, find_flags, score_attack, score_evidence
from bench.shifted import prepare_clean
from bench.store import write_atomic
from bench.types import Collection, Direction
from shifts.attacks.budget import count_edits, largest_change
from shifts.attacks.catalogue import Attack, find_attack, parse_attack
from shifts.attacks.goal import Goal
from shifts.resources import find_missing_packages
from shifts.seeding import sample_rng

N_EXAMINED = 32
EXAMPLES = "examples"
_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_EXAMINED_BY = {True: ("pgd", 4), False: ("square", 8)}
Progress = Callable[[int], None]


class NotApplicable(RoveError):
    """The cell's attack cannot be run against the submission; the message says why."""


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


@dataclass(frozen=True)
class _Items:
    """Embeddings of a collection's items: of each modality as they were, attacked, and before rounding."""

    clean: tuple[Embedded, Embedded]
    attacked: tuple[Embedded, Embedded]
    unrounded: np.ndarray | None

    @property
    def variants(self) -> tuple[Variant, ...]:
        return ("", "clean") if self.unrounded is None else ("", "clean", "unrounded")

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
    """

    def __init__(
        self, embedder: Embedder, crafter: Crafter, label: str, folder: Path, source: Results | None = None
    ) -> None:
        self._embedder, self._crafter, self._label = embedder, crafter, label
        self._folder, self._source = folder, source

    def close(self) -> None:
        """Ends the worker that is attacked; the next attack starts a fresh one."""
        self._crafter.close()

    def source_key(self, cell: Cell) -> str:
        """Which examples of another run a cell is scored on."""
        return _find_report(self._source, cell).examples_sha256 if self._source else ""

    def score(self, cell: Cell, collection: Collection, progress: Progress) -> Attacked:
        """The cell's items attacked and scored; `progress` is told of finished items.

        Raises:
            NotApplicable: the attack needs a gradient, and the submission has none.
            SubmissionError: the submission failed.
            MissingError: a package that the attack needs is missing.
        """
        attack, budget = parse_attack(cell.shift)
        plan = Plan(attack, budget, role_of(cell), cell.stage, cell.seed)
        self._check_applicable(cell, attack)
        crops = None if attack.modality == "text" else self._crops(collection)
        clean = self._embed_images(collection, crops), self._embed_texts(collection.captions)
        sides = Sides(*(torch.from_numpy(to_unit(part.vectors)) for part in clean))
        examples = self._examples(cell, plan, collection, crops, sides, progress)
        items = self._embed(attack, clean, examples, collection)
        evidence = {
            variant: _rank(cell, collection, items.vectors("clean"), items.vectors(variant), variant)
            for variant in items.variants
        }
        report = self._report(cell, plan, collection, crops, examples, sides, items, evidence)
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
        )

    def _check_applicable(self, cell: Cell, attack: Attack) -> None:
        loaded = self._embedder.start()
        if attack.access == "white" and not loaded.differentiable and self._source is None:
            raise NotApplicable(
                f"{attack.name} needs a gradient, which {self._label} does not give (it implements no pixels and "
                "embed_pixels); only black-box attacks run against it. See submissions/README.md."
            )
        if cell.stage and not loaded.reranker:
            raise NotApplicable(f"{self._label} has one stage; there is no {cell.stage} to be attacked by itself.")

    def _crops(self, collection: Collection) -> Examples:
        if self._source is None:
            return self._crafter.crops(collection)
        return _read(self._source.folder, collection, "crops")

    def _examples(
        self,
        cell: Cell,
        plan: Plan,
        collection: Collection,
        crops: Examples | None,
        sides: Sides,
        progress: Progress,
    ) -> Examples:
        if self._source is None:
            return self._crafter.attack(plan, collection, crops, sides, progress)
        examples = _read(self._source.folder, collection, plan.slug)
        stated = _find_report(self._source, cell).examples_sha256
        if stated != examples.sha256:
            raise InputError(f"{self._source.folder}: the examples of {cell.id} are not those that its record states.")
        progress(n_attacked(cell, collection))
        return examples

    def _embed(
        self, attack: Attack, clean: tuple[Embedded, Embedded], examples: Examples, collection: Collection
    ) -> _Items:
        images, texts = clean
        if attack.modality != "text":
            images = self._embed_images(collection, examples)
        if attack.modality != "image":
            texts = self._embed_texts(examples.captions)
        rounded_only = self._source is not None or not len(examples.unrounded)
        return _Items(clean, (images, texts), None if rounded_only else examples.unrounded)

    def _embed_images(self, collection: Collection, examples: Examples | None) -> Embedded:
        """Of the examples' images, or of the collection's on the canvas."""
        images = collection.images if examples is None else examples.images
        prepare = prepare_clean(canvas=examples is None)
        return self._embedder.images(images, prepare, [examples is None, []], lambda count: None)

    def _embed_texts(self, captions: Sequence[str]) -> Embedded:
        return self._embedder.texts(list(captions), lambda count: None)

    def _report(
        self,
        cell: Cell,
        plan: Plan,
        collection: Collection,
        crops: Examples | None,
        examples: Examples,
        sides: Sides,
        items: _Items,
        evidence: Mapping[Variant, Mapping[Direction, Evidence]],
    ) -> AttackReport:
        attack, n_images = plan.attack, len(collection.images)
        largest, most = verify_budget(plan, collection, crops, examples)
        asr = score_attack(evidence[""], evidence["clean"], n_images)
        losses = None if attack.modality == "joint" else _losses(make_goal(plan, collection, sides), attack, items)
        findings, checks = Findings(key="", checks=()), []
        if self._source is None:
            findings = self._examine(plan, collection, crops, sides)
            checks = [*findings.checks, *self._check_result(plan, collection, examples, sides, losses, asr)]
        unrounded = evidence.get("unrounded")
        return AttackReport(
            access=attack.access,
            version=attack.version,
            victim=cell.victim or self._label,
            budget=plan.budget,
            unit=attack.unit,
            n_attacked=n_attacked(cell, collection),
            n_unchanged=_count_unchanged(attack, collection, crops, examples),
            largest_change=largest,
            most_edits=most,
            similarity=_similarity(collection.captions, examples.captions),
            candidates=_candidates(attack),
            examples_sha256=examples.sha256,
            loss_before=losses and losses[0],
            loss_after=losses and losses[1],
            clean=score_evidence(evidence["clean"], n_images),
            unrounded=score_evidence(unrounded, n_images) if unrounded else {},
            asr=asr,
            curve=findings.curve,
            checks=tuple(checks),
            verdict="transferred" if self._source else _verdict(checks),
        )

    def _examine(self, plan: Plan, collection: Collection, crops: Examples | None, sides: Sides) -> Findings:
        """What is found about the victim: once for all attacks on images, once for all on captions."""
        by_text = plan.attack.modality == "text"
        path = self._folder / folder_name(collection, f"examination-{'texts' if by_text else 'images'}.json")
        key = digest_of(self._crafter.identity(collection), N_EXAMINED)
        if path.is_file() and (known := read_json(path, Findings)).key == key:
            return known
        if by_text or crops is None:
            examination = examine_texts(self._encode_afresh, list(dict.fromkeys(collection.captions))[:N_EXAMINED])
        else:
            examination = self._examine_images(plan, collection, crops, sides)
        findings = Findings(
            key=key,
            checks=tuple(Check(name=c.name, passed=c.passed, detail=c.detail) for c in examination.checks),
            curve=tuple(_curve_point(*point) for point in examination.curve),
        )
        write_atomic(path, to_json(findings))
        return findings

    def _check_result(
        self,
        plan: Plan,
        collection: Collection,
        examples: Examples,
        sides: Sides,
        losses: tuple[float, float] | None,
        asr: Mapping[Direction, Mapping[str, Estimate]],
    ) -> list[Check]:
        """Whether the attack did at all what it is for."""
        fallen = min(part["asr_drop@1"].value for part in asr.values())
        if losses is None:
            return [
                Check(name="R@1 rises under attack", passed=fallen >= 0, detail=f"it falls by {100 * fallen:.1f} pp")
            ]
        rise = losses[1] - losses[0]
        if plan.role == "distractor":
            rise = fallen
        checks = [
            Check(name="attack raises no loss", passed=rise >= 0, detail=f"from {losses[0]:.3f} to {losses[1]:.3f}")
        ]
        if plan.attack.modality == "text":
            checks.append(self._check_random_edits(plan, collection, examples, sides))
        return checks

    def _check_random_edits(self, plan: Plan, collection: Collection, examples: Examples, sides: Sides) -> Check:
        """Random edits of the same size must be weaker."""
        rng = sample_rng(plan.seed, "random edits", 1, plan.budget, collection.name)
        rows = torch.arange(min(4 * N_EXAMINED, len(collection.captions)))
        goal = make_goal(plan, collection, sides).take(rows)
        words = [word for caption in collection.captions for word in caption.split()] or [""]
        originals = collection.captions[: len(rows)]
        edited = [_random_edits(text, plan.budget, plan.attack.edit_unit, words, rng) for text in originals]
        attacked = list(examples.captions[: len(rows)])
        random, made = (float(goal.losses(self._crafter.victim.encode_texts(t)).mean()) for t in (edited, attacked))
        detail = f"mean loss {random:.3f} under random edits, {made:.3f} under the attack"
        return Check(name="random edits as strong as the attack", passed=random <= made, detail=detail)

    def _encode_afresh(self, texts: Sequence[str]) -> Tensor:
        self._crafter.victim.forget_texts()
        return self._crafter.victim.encode_texts(texts)

    def _examine_images(self, plan: Plan, collection: Collection, crops: Examples, sides: Sides) -> Examination:
        """Of as many images of one size as there are, up to `N_EXAMINED`, as queries."""
        name, eps = _EXAMINED_BY[self._crafter.victim.differentiable]
        shape = crops.images[0].pixels.shape
        rows = [row for row, image in enumerate(crops.images) if image.pixels.shape == shape][:N_EXAMINED]
        images = np.stack([crops.images[row].pixels for row in rows])
        query = Plan(find_attack(name), eps, "query", "", plan.seed)
        goal = make_goal(query, collection, sides).take(torch.tensor(rows))

        def craft(name: str, eps: int, steps: int) -> np.ndarray:
            one = Plan(find_attack(name), eps, "query", "", plan.seed, steps)
            return self._crafter.attack_queries(one, images, goal)

        rng = sample_rng(plan.seed, "examination", 1, eps, collection.name)
        return examine(self._crafter.victim, images, goal, craft, (name, eps), rng)


def n_attacked(cell: Cell, collection: Collection) -> int:
    """How many items the cell's attack works on, one after the other."""
    is_text = parse_attack(cell.shift)[0].modality == "text"
    return len(collection.captions) if is_text else len(collection.images)


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


def _rank(
    cell: Cell,
    collection: Collection,
    clean: tuple[np.ndarray, np.ndarray],
    changed: tuple[np.ndarray, np.ndarray],
    variant: Variant,
) -> dict[Direction, Evidence]:
    """The evidence of unit vectors under the cell's threat model; `changed` are those of all items, attacked or not."""
    if cell.threat_model == "distractor":
        more = Distractors() if variant == "clean" else Distractors(images=changed[0])
        return rank(collection, *clean, cell.directions, more)
    if cell.threat_model == "gallery_target":
        return rank(collection, *clean, cell.directions, stand_ins=StandIns(*changed))
    return rank(collection, *changed, cell.directions)


def _losses(goal: Goal, attack: Attack, items: _Items) -> tuple[float, float]:
    """What the attack raises, averaged over its items, before and after."""
    side = 1 if attack.modality == "text" else 0
    before, after = (torch.from_numpy(part[side].vectors) for part in (items.clean, items.attacked))
    return float(goal.losses(before).mean()), float(goal.losses(after).mean())


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


def _candidates(attack: Attack) -> str:
    if attack.modality == "image" or attack.edit_unit != "words":
        return ""
    from shifts.attacks.candidates import source

    return source()


def _read(folder: Path, collection: Collection, slug: str) -> Examples:
    """Examples that another run left."""
    batches = read_examples(folder / EXAMPLES / folder_name(collection, slug))
    return join(batches, [image.id for image in collection.images], collection.captions)


def _find_report(source: Results, cell: Cell) -> AttackReport:
    own = cell.model_copy(update={"victim": ""})
    found = next((record.attack for record in source.records if record.cell == own), None)
    if found is None:
        raise InputError(f"{source.folder} has no finished cell {own.id}; run it there first.")
    return found
