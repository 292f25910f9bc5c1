"""Entries and resamples with made-up figures, for the tests of what ranks, recommends and shows them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from made_timings import ENVIRONMENT

from bench.records import CLEAN, Cell, Estimate, Manifest, RunManifest, digest_of, estimate, suite_digest
from bench.types import Direction
from leaderboard.entries import N_RANK_RESAMPLES, Entry, Held, Hits, Resamples, Score

COLLECTION = "made/test"
FAMILIES = {"noise": (0.45, 0.25), "blur": (0.4, 0.33), "typo": (0.5, 0.17)}
HALF_WIDTH = 0.025


def made_entry(
    label: str,
    suite: str = "made-v1",
    families: Mapping[str, tuple[float, float]] = FAMILIES,
    parameters: int | None = 10_000_000,
    clean: float = 0.6,
    rerank_k: int | None = None,
    **overrides: Any,
) -> Entry:
    """An entry of a suite with one cell per family, shift `<family>_made` at severity 3.

    Args:
        families: by name, R@1 under shift and the share lost, fractions; whether they agree with `clean` is not asked.
        clean: R@1 on native images and on the clean canvas.
        overrides: fields of the Entry.
    """
    scores = [_score(_cell(shift), "clean", clean, None) for shift in CLEAN]
    scores += [_score(_cell(_shift(name) + ":3"), name, r1, lost) for name, (r1, lost) in families.items()]
    held = {name: Held(r1=around(r1), lost=around(lost)) for name, (r1, lost) in families.items()}
    means = [float(np.mean(values)) for values in zip(*families.values(), strict=True)]
    fields: dict[str, Any] = {
        "bundle_sha256": digest_of("bundle", label, suite, dict(families), clean),
        "manifest": made_manifest(label, suite, [score.cell for score in scores], parameters, rerank_k),
        "scores": tuple(scores),
        "attacks": (),
        "skipped": {},
        "shifts": {_shift(name): part for name, part in held.items()},
        "families": held,
        "overall": Held(r1=around(means[0]), lost=around(means[1])) if means else None,
        "worst": _shift(max(families, key=lambda name: families[name][1])) if families else "",
        "worst_decile": around(0.1) if families else None,
        "mce": None,
        "relative_mce": None,
        "image_ms": 12.5,
        "text_ms": 3.25,
        "timings": (),
    }
    return Entry(**(fields | overrides))


def made_manifest(
    label: str, suite: str, cells: Iterable[Cell], parameters: int | None = None, rerank_k: int | None = None
) -> RunManifest:
    """The manifest of a whole run over `cells`."""
    cells, collections = tuple(cells), {COLLECTION: 200}
    name = re.sub(r"[^a-z0-9_.-]+", "-", label.lower()).strip("-._")[:64] or "unnamed"
    return RunManifest(
        submission=Manifest(name=name, title=f"{label}, made up", method="zero-shot"),
        label=label,
        args={},
        fingerprint=digest_of("fingerprint", label),
        weights_sha256=digest_of("weights", label),
        parameters=parameters,
        suite=suite,
        suite_id=suite_digest(suite, collections, cells),
        collections=collections,
        cells=cells,
        device="cpu",
        dtype="float32",
        batch_size=32,
        rerank_k=rerank_k,
        isolation="process",
        command=f"rove run {name} --suite {suite}",
        environment=ENVIRONMENT,
    )


def made_resamples(
    entry: Entry, rng: np.random.Generator, shared: np.ndarray | None = None, n_resamples: int = N_RANK_RESAMPLES
) -> Resamples:
    """Resamples whose spread goes with the entry's intervals, around its own values.

    Args:
        shared: what is easy about each resample, (n_resamples,) standard normal; half of the variance comes from it, so
            that entries which are given the same one are compared in pairs as real ones are. None draws another.
    """
    common = rng.standard_normal(n_resamples) if shared is None else shared

    def around_values(values: list[float]) -> np.ndarray:
        noise = np.sqrt(0.5) * (common + rng.standard_normal((len(values), n_resamples)))
        return np.clip(np.array(values)[:, None] + HALF_WIDTH / 1.96 * noise, 0, 1).astype(np.float32)

    clean = entry.clean()
    return Resamples(
        r1=around_values([held.r1.value for held in entry.families.values()]),
        lost=around_values([held.lost.value for held in entry.families.values()]),
        clean=around_values([np.nan if clean is None else clean.r1.value])[0],
    )


def around(value: float, half_width: float = HALF_WIDTH) -> Estimate:
    """A fraction with a symmetric interval."""
    return estimate(value, max(0.0, value - half_width), min(1.0, value + half_width))


def _shift(family: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", family.lower()) + "_made"


def _cell(shift: str) -> Cell:
    return Cell(collection=COLLECTION, shift=shift, directions=("t2i", "i2t"))


def _score(cell: Cell, family: str, r1: float, lost: float | None) -> Score:
    names: tuple[Direction, Direction] = ("t2i", "i2t")
    figures = {"hit@1": r1, "hit@5": r1**0.5, "hit@10": r1**0.3, "ndcg@10": r1**0.45, "mrr": r1**0.6}
    metrics: dict[Direction | Literal["both"], dict[str, Estimate]] = {
        name: {metric: around(value) for metric, value in figures.items()} for name in names
    }
    total = 200 * (figures["hit@1"] + figures["hit@5"] + figures["hit@10"])
    metrics["both"] = {"hit@1": around(r1), "rsum": estimate(total, total - 12, total + 12)}
    return Score(
        cell=cell,
        family=family,
        r1=around(r1),
        lost=None if lost is None else around(lost),
        metrics=metrics,
        flags=(),
        items=digest_of("items", cell.id),
    )


NO_HITS = Hits((), (), (), zlib.compress(b""), zlib.compress(b""))
