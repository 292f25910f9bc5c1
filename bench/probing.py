"""Probes: whether a submission's vectors are a function of the item alone, as every score of a run takes for granted.

A run probes its submission when all cells are scored, in a worker that has seen nothing yet, captions first. What it
encodes there is compared with the vectors that were scored. Records stay as they are: a probe that fails takes the
run out of the order, one that is flagged is shown beside it. docs/probes.md gives each rule with its reason.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int, UInt8

from bench.embed import MIN_COSINE, checked_vectors
from bench.errors import ProtocolError, SubmissionError
from bench.evaluate import digest_vectors, to_unit
from bench.feed import Prepare
from bench.records import PROBES, Probe, ProbeName, without_control
from bench.second import Readings
from bench.submission import Submission
from bench.types import Collection
from bench.worker.host import Worker, WorkerSettings

LOWEST_COSINE = {"float32": MIN_COSINE, "bfloat16": 0.99}
"""By dtype, between two ways to one vector."""

MIN_SHARE, MIN_ITEMS, MAX_ITEMS = 0.02, 16, 64
"""Of the images, and of the captions, that are encoded again."""

MAX_LOST, MAX_P = 0.25, 1e-3
"""Of the hits at 1, the share that altered items may lose, and the p-value up to which a loss is no chance."""

MAX_MEAN_COSINE, MAX_ALIKE = 0.9999, 0.25
"""Between two items on average, and the share of items that have one and the same vector."""

MAX_TIED = 0.5
"""Share of a query's scores that another, different vector of the gallery has to six decimals."""

MAX_RATIO, MIN_DIFFERENCE_MS = 3.0, 1.0
"""How many times as long as usual, and how much longer, a call may take."""

_SMALL_BATCH, _N_ALONE, _N_REPEATED = 4, 4, 16
_MIN_REPEATS, _MAX_REPEATS, _REPEATS_MS = 6, 100, 250.0
_PAIR_IMAGES, _PAIR_CAPTIONS = 8, 4
_JPEG_QUALITY = 95
Rows = Int[np.ndarray, " n"]
Vectors = Float[np.ndarray, "n dim"]
Pixels = UInt8[np.ndarray, "height width 3"]
Times = Float[np.ndarray, " n_batches"]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a run has scored of its first collection.

    Args:
        prepare: gives the pixels that were encoded.
        images: as the submission returned them.
        texts: the same of the captions.
        readings: of the second stage; None where there is one stage.
        release: ends the worker that scored, since two models need not fit into memory.
    """

    collection: Collection
    prepare: Prepare
    images: Float[np.ndarray, "n_images dim"]
    texts: Float[np.ndarray, "n_captions dim"]
    readings: Readings | None
    release: Callable[[], None]


class _Sample(NamedTuple):
    """Rows of the images and captions that are encoded again."""

    images: Rows
    captions: Rows


class _Tower(NamedTuple):
    """Items that are encoded again, the same altered so that nobody sees it, and the vectors that were scored."""

    encode: Callable[[list[Any]], np.ndarray]
    items: list[Any]
    altered: list[Any]
    scored: Vectors


class _Speed(NamedTuple):
    """Milliseconds of a batch, the median over batches.

    Args:
        usual: when it is repeated.
        new: when its items are, each time.
        late: after many calls, whatever they ask.
    """

    usual: float
    new: float
    late: float

    @property
    def ratio(self) -> float:
        """How many times as long as usual a batch takes that is new, or late; 1 where that is too little to matter."""
        slowest = max(self.new, self.late)
        return slowest / self.usual if slowest - self.usual > MIN_DIFFERENCE_MS else 1.0

    def __str__(self) -> str:
        return f"{self.new:.2f} ms a new batch, {self.usual:.2f} when repeated, {self.late:.2f} after many calls"


class _Seen(NamedTuple):
    """What a tower made of its items.

    Args:
        order: lowest cosine with what was scored, backwards in batches of the run's size.
        batch_size: the same in small batches, and alone.
        duplicates: the same of batches that come again, and of items that stand twice in one.
        speed: of its calls.
        altered: vectors of the altered items.
    """

    order: float
    batch_size: float
    duplicates: float
    speed: _Speed
    altered: Vectors


def probe(submission: Submission, settings: WorkerSettings, batch_size: int, scored: Scored) -> tuple[Probe, ...]:
    """Every probe that applies, in the order of `PROBES`; those that the submission fails to answer are not run."""
    rng = np.random.Generator(np.random.Philox(int(digest_vectors(scored.images)[:32], 16)))
    sample = _Sample(_draw(len(scored.images), rng), _draw(len(scored.texts), rng))
    probes = [_probe_spread(scored), _probe_ties(scored, sample)]
    try:
        probes += _probe_again(submission, settings, batch_size, scored, sample)
    except SubmissionError as error:
        return not_run(error, scored.readings is not None, probes)
    return tuple(sorted(probes, key=lambda found: PROBES.index(found.name)))


def not_run(error: SubmissionError, has_second_stage: bool, done: Sequence[Probe] = ()) -> tuple[Probe, ...]:
    """The probes that are done, and in place of each other one why it was not run."""
    known = {found.name: found for found in done}
    names = PROBES if has_second_stage else PROBES[:-1]
    detail = without_control(f"{error.status}: {error}".splitlines()[0][:1000].encode(errors="replace").decode())
    return tuple(known.get(name) or Probe(name=name, status="not run", detail=detail) for name in names)


def _draw(n_items: int, rng: np.random.Generator) -> Rows:
    size = min(max(MIN_ITEMS, math.ceil(MIN_SHARE * n_items)), MAX_ITEMS)
    return rng.permutation(n_items)[:size]


def _probe_again(
    submission: Submission, settings: WorkerSettings, batch_size: int, scored: Scored, sample: _Sample
) -> list[Probe]:
    """The probes for which the submission encodes the sample again.

    Raises:
        SubmissionError: it fails at that.
    """
    collection, readings, lowest = scored.collection, scored.readings, LOWEST_COSINE[settings.dtype]
    pixels = [np.ascontiguousarray(scored.prepare(collection.images[row])) for row in sample.images]
    texts = [collection.captions[row] for row in sample.captions]
    pairs = _pair(sample)
    scores = readings.score(sample.images[pairs[0]], sample.captions[pairs[1]]) if readings else None
    scored.release()
    with Worker(submission, settings) as worker:
        respaced, recompressed = [_respace(text) for text in texts], [_recompress(image) for image in pixels]
        captions = _see(_Tower(worker.encode_texts, texts, respaced, scored.texts[sample.captions]), batch_size)
        images = _see(_Tower(worker.encode_images, pixels, recompressed, scored.images[sample.images]), batch_size)
        probes = [
            _probe_cosine("order", min(images.order, captions.order), lowest),
            _probe_cosine("batch size", min(images.batch_size, captions.batch_size), lowest),
            _probe_cosine("duplicates", min(images.duplicates, captions.duplicates), lowest),
            _probe_memory(scored, sample, images.altered, captions.altered),
            _probe_speed(images.speed, captions.speed),
        ]
        if scores is not None:
            tokens, _ = _encode(worker.image_tokens, pixels[:_PAIR_IMAGES], _SMALL_BATCH)
            found = score_again(worker, tokens[pairs[0]], [texts[row] for row in pairs[1]], batch_size)
            probes.append(_probe_second_stage(found, scores, lowest))
    return probes


def _pair(sample: _Sample) -> tuple[Rows, Rows]:
    """Each of a few images with each of a few captions, as places in the sample."""
    few = np.arange(len(sample.images))[:_PAIR_IMAGES], np.arange(len(sample.captions))[:_PAIR_CAPTIONS]
    images, captions = np.meshgrid(*few)
    return images.reshape(-1), captions.reshape(-1)


def _respace(text: str) -> str:
    """The text with every space doubled and one behind it."""
    return text.replace(" ", "  ") + " "


def _recompress(image: Pixels) -> Pixels:
    """The image without its first row and column, through JPEG at quality 95."""
    cropped = image[1:, 1:] if min(image.shape[:2]) > 1 else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(cropped).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(PIL.Image.open(buffer))


def _see(tower: _Tower, batch_size: int) -> _Seen:
    """What a tower makes of its items in every arrangement.

    Raises:
        SubmissionError: it fails, or returns vectors without a direction or of other dimensions than before.
    """
    items, few, small = tower.items, tower.items[:_N_REPEATED], _SMALL_BATCH - (batch_size == _SMALL_BATCH)
    first, first_ms = _encode(tower.encode, items, small)
    repeated, repeated_ms = _repeat(tower.encode, few, small)
    altered, altered_ms = _encode(tower.encode, tower.altered, small)
    alone, _ = _encode(tower.encode, items[:_N_ALONE], 1)
    backwards, _ = _encode(tower.encode, items[::-1], batch_size)
    twice, _ = _encode(tower.encode, [item for item in few for _ in range(2)], max(2, batch_size))
    return _Seen(
        order=_lowest_cosine(backwards[::-1], tower.scored),
        batch_size=min(_lowest_cosine(first, tower.scored), _lowest_cosine(alone, tower.scored)),
        duplicates=min(_lowest_cosine(part, tower.scored) for part in (*repeated, twice[::2], twice[1::2])),
        speed=_measure_speed(first_ms, repeated_ms, altered_ms),
        altered=checked_vectors(altered, "the encoder"),
    )


def _measure_speed(first_ms: Times, repeated_ms: Float[np.ndarray, "n_passes n_batches"], altered_ms: Times) -> _Speed:
    """What the passes took: a pass alone may be disturbed, so that the faster one of two far apart is taken.

    Usual is what the quicker passes of the first half took, since slow calls may begin within it.
    """
    n_passes, n_batches = repeated_ms.shape
    usual = np.quantile(repeated_ms[: n_passes // 2], 0.25, axis=0)
    new, late = (np.minimum(ms[:n_batches], altered_ms[:n_batches]) for ms in (first_ms, repeated_ms[-1]))
    return _Speed(*(float(np.median(ms)) for ms in (usual, new, late)))


def _encode(encode: Callable[[list[Any]], np.ndarray], items: list[Any], batch_size: int) -> tuple[Vectors, Times]:
    """The vectors of all items, and the milliseconds of each batch.

    Raises:
        SubmissionError: it fails, or batches have other dimensions than one another.
    """
    parts, ms = [], []
    for start in range(0, len(items), batch_size):
        started = time.perf_counter_ns()
        parts.append(encode(items[start : start + batch_size]))
        ms.append((time.perf_counter_ns() - started) / 1e6)
    if len({part.shape[1:] for part in parts}) > 1:
        raise ProtocolError("vectors of some batches have other dimensions; expected the same for all batches.")
    return np.concatenate(parts), np.array(ms)


def _repeat(
    encode: Callable[[list[Any]], np.ndarray], items: list[Any], batch_size: int
) -> tuple[list[Vectors], Times]:
    """The vectors of each of several passes over the same items, and their milliseconds, a row for each pass."""
    vectors, ms, total_ms = list[Vectors](), list[Times](), 0.0
    while len(ms) < _MIN_REPEATS or (len(ms) < _MAX_REPEATS and total_ms < _REPEATS_MS):
        found, found_ms = _encode(encode, items, batch_size)
        vectors.append(found)
        ms.append(found_ms)
        total_ms += float(found_ms.sum())
    return vectors, np.stack(ms)


def score_again(worker: Worker, tokens: np.ndarray, texts: list[str], batch_size: int) -> list[np.ndarray]:
    """The scores of pairs by the second stage: in small batches, backwards, and twice in a batch; in their order."""

    def score(rows: Rows, size: int) -> np.ndarray:
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([worker.score_pairs(tokens[part], [texts[row] for row in part]) for part in parts])

    rows = np.arange(len(texts))
    twice = score(np.repeat(rows, 2), max(2, batch_size))
    return [score(rows, _SMALL_BATCH - 1), score(rows[::-1], batch_size)[::-1], twice[::2], twice[1::2]]


def _lowest_cosine(vectors: Vectors, scored: Vectors) -> float:
    """Between vectors and the first of those that were scored; -1 where a vector has no direction in their space."""
    expected = scored[: len(vectors)].astype(np.float64)
    if vectors.shape != expected.shape:
        return -1.0
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (vectors * expected).sum(axis=1) / norms
    return float(np.nan_to_num(cosines, nan=-1.0, posinf=-1.0, neginf=-1.0).min())


def _probe_cosine(name: ProbeName, cosine: float, lowest: float) -> Probe:
    detail = f"lowest cosine with what was scored {cosine:.6f} (at least {lowest})"
    return Probe(name=name, status="passed" if cosine >= lowest else "failed", figure=round(cosine, 6), detail=detail)


def compare_scores(found: Sequence[np.ndarray], scores: np.ndarray, lowest: float) -> tuple[float, bool, str]:
    """By how much of their deviation scores move, whether that is at most what unit vectors of the lowest cosine are
    apart, and both in words.
    """
    largest = math.sqrt(2 - 2 * lowest)
    change = max(float(np.abs(part - scores).max()) for part in found) / (float(scores.std()) or 1.0)
    told = f"a pair's score moves by up to {change:.4f} of the scores' deviation (at most {largest:.3f})"
    return change, change <= largest, told


def _probe_second_stage(found: Sequence[np.ndarray], scores: np.ndarray, lowest: float) -> Probe:
    change, holds, detail = compare_scores(found, scores, lowest)
    return Probe(name="second stage", status="passed" if holds else "failed", figure=round(change, 6), detail=detail)


def _probe_memory(scored: Scored, sample: _Sample, images: Vectors, captions: Vectors) -> Probe:
    """Whether altered items still find what the items themselves find."""
    pairs = scored.collection.positives
    right = _right(pairs, sample.images, len(scored.texts)), _right(pairs[:, ::-1], sample.captions, len(scored.images))
    losses = [
        _compare(_hits(scored.images[sample.images], scored.texts, right[0]), _hits(images, scored.texts, right[0])),
        _compare(
            _hits(scored.texts[sample.captions], scored.images, right[1]), _hits(captions, scored.images, right[1])
        ),
    ]
    is_memory = any(loss.share > MAX_LOST and loss.p_value <= MAX_P for loss in losses)
    told = (
        f"{kind}: {loss}"
        for kind, loss in zip(("i2t of altered images", "t2i of altered captions"), losses, strict=True)
    )
    return Probe(
        name="memorised pairs",
        status="flagged" if is_memory else "passed",
        figure=round(max(loss.share for loss in losses), 6),
        detail="; ".join(told),
    )


class _Loss(NamedTuple):
    """Hits at 1 of a sample before and after its items were altered, and how many queries lost and gained one."""

    before: int
    lost: int
    gained: int
    n_queries: int

    @property
    def share(self) -> float:
        """Of the hits, how many fewer there are now; 0 where there were none, or are more."""
        return max(0, self.lost - self.gained) / max(1, self.before)

    @property
    def p_value(self) -> float:
        """Of as many losses among the queries that changed, were each as likely a gain: the exact sign test."""
        changed = self.lost + self.gained
        return sum(math.comb(changed, count) for count in range(self.lost, changed + 1)) / 2**changed

    def __str__(self) -> str:
        after = self.before - self.lost + self.gained
        return f"{self.before} hits of {self.n_queries} became {after}, p = {self.p_value:.2g}"


def _compare(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> _Loss:
    return _Loss(int(before.sum()), int((before & ~after).sum()), int((~before & after).sum()), len(before))


def _right(pairs: Int[np.ndarray, "n_pairs 2"], queries: Rows, n_items: int) -> Bool[np.ndarray, "n n_items"]:
    """Which items of the gallery are right for each query; pairs are of query and item."""
    right = np.zeros((len(queries), n_items), dtype=bool)
    for row, query in zip(right, queries, strict=True):
        row[pairs[pairs[:, 0] == query, 1]] = True
    return right


def _hits(queries: Vectors, gallery: Vectors, right: Bool[np.ndarray, "n n_items"]) -> Bool[np.ndarray, " n"]:
    """Which queries find a right item first; of equal scores the wrong one counts."""
    scores = to_unit(queries) @ to_unit(gallery).T
    best = np.where(right, scores, -np.inf).max(axis=1)
    return np.asarray(best > np.where(right, -np.inf, scores).max(axis=1))


def _probe_spread(scored: Scored) -> Probe:
    """Whether items are given vectors of their own."""
    means, alike = zip(*(_spread(vectors) for vectors in (scored.images, scored.texts)), strict=True)
    is_narrow = max(means) > MAX_MEAN_COSINE or max(alike) > MAX_ALIKE
    detail = (
        f"mean cosine between images {means[0]:.6f}, between captions {means[1]:.6f} (at most {MAX_MEAN_COSINE}); "
        f"{alike[0]:.1%} and {alike[1]:.1%} have one vector (at most {MAX_ALIKE:.0%})"
    )
    return Probe(name="spread", status="flagged" if is_narrow else "passed", figure=round(max(means), 6), detail=detail)


def _spread(vectors: Vectors) -> tuple[float, float]:
    """The mean cosine between two items, and the share of items that have one and the same vector."""
    unit, n = to_unit(vectors).astype(np.float64), len(vectors)
    mean = (float(np.square(unit.sum(axis=0)).sum()) - n) / max(1, n * (n - 1))
    most = np.unique(vectors, axis=0, return_counts=True)[1].max()
    return mean, float(most) / n if most > 1 else 0.0


def _probe_ties(scored: Scored, sample: _Sample) -> Probe:
    """Whether a query's scores tell the vectors of the gallery apart."""
    shares = _tied(scored.images[sample.images], scored.texts), _tied(scored.texts[sample.captions], scored.images)
    detail = (
        f"{shares[0]:.1%} of an image's scores and {shares[1]:.1%} of a caption's are those of other vectors as well "
        f"(at most {MAX_TIED:.0%})"
    )
    return Probe(
        name="ties",
        status="flagged" if max(shares) > MAX_TIED else "passed",
        figure=round(max(shares), 6),
        detail=detail,
    )


def _tied(queries: Vectors, gallery: Vectors) -> float:
    """Mean share of a query's scores that several different vectors of the gallery have, to six decimals."""
    scores = np.rint(to_unit(queries) @ to_unit(np.unique(gallery, axis=0)).T * 1e6)
    single = [(np.unique(row, return_counts=True)[1] == 1).sum() / len(row) for row in scores]
    return 1 - float(np.mean(single))


def _probe_speed(images: _Speed, captions: _Speed) -> Probe:
    """Whether answers are neither kept nor slow after many calls."""
    ratio = max(images.ratio, captions.ratio)
    return Probe(
        name="speed",
        status="flagged" if ratio > MAX_RATIO else "passed",
        figure=round(ratio, 3),
        detail=f"images {images}; captions {captions} (at most {MAX_RATIO:g} times)",
    )
