"""A submission's examination before a run: does it keep to its interface, and how long will a full run take?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bench.cells import RunSettings
from bench.data.scenes import load_scenes
from bench.embed import MIN_COSINE, checked_vectors
from bench.errors import ProtocolError, SubmissionError
from bench.examples import N_EXAMINED
from bench.probing import compare_scores, score_again
from bench.records import CLEAN, Cell
from bench.run import choose_rerank_k
from bench.stats import detectable_difference
from bench.submission import Submission
from bench.suites import Suite, list_suites
from bench.worker.host import Worker, WorkerSettings
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

N_IMAGES = 16
MAX_CHANGE = 1e-4
BYTES_PER_QUERY = 120
EXAMINATION_PASSES = 300 * N_EXAMINED
_HARD_TEXTS = ("", " ", "a", "naïve 文字 עברית 👩‍🚀 e\u0301", "nul\x00nul", "a dog runs " * 1000)
Looks = dict[str, Callable[[], str]]
_HARD_SIZES = ((1, 1), (32, 517), (517, 32), (640, 480))


@dataclass(frozen=True)
class Step:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass
class Report:
    """What a check found; a step after the first failed one may be missing.

    Args:
        weights_sha256: of the weights that were loaded, the same each time; "" where none were found.
        suite_seconds: what a run takes on this machine, by suite.
    """

    steps: list[Step] = field(default_factory=list)
    weights_sha256: str = ""
    suite_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(step.passed for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


@dataclass(frozen=True)
class Speed:
    """Milliseconds per item, batched, as the harness sees them; of a second stage per pair, and pairs per query."""

    image_ms: float
    text_ms: float
    pair_ms: float = 0.0
    rerank_k: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    cells: list[tuple[str, str]]
    n_images: int
    seconds: float
    disk_bytes: int
    detectable_pp: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_submission(submission: Submission, settings: WorkerSettings, batch_size: int) -> Report:
    """Loads the submission in a worker of its own and looks at shapes, odd inputs, order, gradient and speed."""
    report = Report()
    with _step(report, "load"), Worker(submission, settings) as worker:
        loaded = worker.loaded
        report.weights_sha256 = loaded.weights_sha256
        which = f", weights {loaded.weights_sha256[:12]}" if loaded.weights_sha256 else ""
        report.steps.append(Step("load", True, f"{loaded.load_s:.1f} s, {_counted(loaded.parameters)}{which}"))
        images, texts = _samples()
        _check_tower(report, "images", worker.encode_images, images, _odd_images())
        if report.passed:
            _check_tower(report, "texts", worker.encode_texts, texts, list(_HARD_TEXTS))
        if worker.loaded.differentiable:
            check_gradient(worker, settings.dtype, report)
        if worker.loaded.reranker:
            _look(report, {"second stage": lambda: _second_stage(worker, images, texts)})
        if report.passed:
            with _step(report, "speed"):
                speed = measure_speed(worker, batch_size, choose_rerank_k(submission, None))
                report.steps.append(Step("speed", True, _describe(speed, batch_size)))
        if report.passed:
            report.suite_seconds = {s.label: estimate_seconds(s, speed) for s in list_suites().values()}
    return report


def check_gradient(worker: Worker, dtype: str, report: Report) -> None:
    """Adds to `report` what the pixels of a differentiable submission and their gradient look like."""
    images, _ = _samples()
    looks: Looks = {"pixels": lambda: _own_size(worker, images)}
    if dtype == "float32":
        looks["gradient"] = lambda: _gradient(worker, images)
    _look(report, looks)


def plan_run(submission: Submission, suite: Suite, settings: RunSettings) -> Plan:
    """What `rove run` would do; loads the submission to measure its speed."""
    with Worker(submission, settings.worker) as worker:
        speed = measure_speed(worker, settings.batch_size, choose_rerank_k(submission, settings.rerank_k))
    sizes = _sizes(suite, settings.limit)
    n_images = max(sizes.values())
    per_cell = [6 * sizes[cell.collection] for cell in suite.cells]
    return Plan(
        cells=[(cell.id, " ".join(cell.directions)) for cell in suite.cells],
        n_images=n_images,
        seconds=estimate_seconds(suite, speed, settings.limit),
        disk_bytes=BYTES_PER_QUERY * sum(per_cell),
        detectable_pp=100 * detectable_difference(n_images),
    )


def measure_speed(worker: Worker, batch_size: int, rerank_k: int) -> Speed:
    """The speed of a loaded submission: median of three batches after one to warm up."""
    images, texts = _samples()
    speed = Speed(
        _ms_per_item(worker.encode_images, _repeated(images, batch_size)),
        _ms_per_item(worker.encode_texts, _repeated(texts, batch_size)),
    )
    if not worker.loaded.reranker:
        return speed
    tokens = worker.image_tokens(images)[np.arange(batch_size) % len(images)]
    asked = [texts[row // rerank_k % len(texts)] for row in range(batch_size)]
    pair_ms = _ms_per_item(lambda captions: worker.score_pairs(tokens, captions), asked)
    return replace(speed, pair_ms=pair_ms, rerank_k=rerank_k)


def estimate_seconds(suite: Suite, speed: Speed, limit: int | None = None) -> float:
    """How long a run of `suite` takes with nothing cached; five captions an image are assumed.

    Of a second stage the pairs that are ranked count, not those by which an attack searches.
    """
    sizes = _sizes(suite, limit)
    seconds = 0.0
    for cell in suite.cells:
        n_images = min(sizes[cell.collection], cell.n_images or sizes[cell.collection])
        asking = ("i2t" in cell.directions) + 5 * ("t2i" in cell.directions)
        second_ms = asking * min(speed.rerank_k, 5 * n_images) * speed.pair_ms
        seconds += n_images * (_per_image_ms(cell, speed) + second_ms) / 1000
    examination = EXAMINATION_PASSES * speed.image_ms if any(cell.is_attack for cell in suite.cells) else 0.0
    return seconds + (sum(sizes.values()) * 5 * speed.text_ms + examination) / 1000


def _per_image_ms(cell: Cell, speed: Speed) -> float:
    """What one image with its captions costs in a cell."""
    if cell.is_attack:
        n_images, n_texts = parse_attack(cell.shift)[0].passes
        return n_images * speed.image_ms + 5 * n_texts * speed.text_ms
    text_cell = cell.shift not in CLEAN and parse_shift(cell.shift)[0].modality.endswith("text")
    return 5 * speed.text_ms if text_cell else speed.image_ms


def _second_stage(worker: Worker, images: list[np.ndarray], texts: list[str]) -> str:
    """What is kept of an image, and whether pairs are scored one by one.

    Raises:
        ProtocolError: a score depends on the pairs beside it.
    """
    tokens = worker.image_tokens(images)
    asked = [texts[(row + shift) % len(texts)] for shift in (0, 1) for row in range(len(images))]
    tokens = np.concatenate([tokens, tokens])
    _, holds, told = compare_scores(
        score_again(worker, tokens, asked, 8), worker.score_pairs(tokens, asked), MIN_COSINE
    )
    if not holds:
        raise ProtocolError(f"{told}; a score is of its own image and caption alone, whatever stands beside them.")
    return f"{tokens[0].nbytes:,} bytes an image, {told}"


def _describe(speed: Speed, batch_size: int) -> str:
    told = f"{speed.image_ms:.1f} ms an image, {speed.text_ms:.2f} ms a caption"
    if speed.rerank_k:
        told += f", {speed.pair_ms:.2f} ms a pair ({speed.rerank_k} for each query)"
    return f"{told} in batches of {batch_size}"


def _check_tower(
    report: Report, name: str, encode: Callable[[list[Any]], np.ndarray], items: list[Any], odd: list[Any]
) -> None:
    looks: Looks = {
        name: lambda: f"{checked_vectors(encode(items), f'encode_{name}').shape[1]} dimensions",
        f"odd {name}": lambda: f"{len(checked_vectors(encode(odd), f'encode_{name}'))} of them",
        f"order of {name}": lambda: f"lowest cosine {_invariance(encode, items):.6f}",
    }
    _look(report, looks)


def _look(report: Report, looks: Looks) -> None:
    """Takes one step after the other, up to the first that fails."""
    for title, look in looks.items():
        if report.passed:
            with _step(report, title):
                report.steps.append(Step(title, True, look()))


def _own_size(worker: Worker, images: list[np.ndarray]) -> str:
    """The size of the pixels that a differentiable submission looks at.

    Raises:
        ProtocolError: it depends on the image, or an image that has it already is changed.
    """
    pixels = worker.pixels(images)
    odd = worker.pixels(_odd_images())
    if odd.shape[1:] != pixels.shape[1:]:
        raise ProtocolError(f"pixels are {pixels.shape[1:]}, of odd images {odd.shape[1:]}; expected one shape.")
    levels = np.rint(pixels * 255).astype(np.uint8)
    change = np.abs(worker.pixels(list(levels.transpose(0, 2, 3, 1))) - levels / np.float32(255)).max()
    if not change <= MAX_CHANGE:
        raise ProtocolError(
            f"pixels changes an image that already has the model's own size by {change:.4f} of the range; expected it "
            "to stay as it is, since attacked images are stored at that size. See submissions/README.md."
        )
    return f"{pixels.shape[3]} x {pixels.shape[2]}"


def _gradient(worker: Worker, images: list[np.ndarray]) -> str:
    """What the gradient of a sum of the embeddings, weighted at random, looks like.

    Raises:
        ProtocolError: it is not finite or zero for an image, or it is the gradient of other embeddings.
    """
    vectors = checked_vectors(worker.embed_pixels(worker.pixels(images), grad=True), "embed_pixels")
    lowest = _cosines(vectors, worker.encode_images(images)).min()
    if not lowest >= MIN_COSINE:
        raise ProtocolError(
            f"embed_pixels(pixels(images)) is not encode_images(images) (cosine {lowest:.4f}); expected at least "
            f"{MIN_COSINE}."
        )
    rng = np.random.Generator(np.random.Philox(0))
    largest = np.abs(worker.pull_back(rng.standard_normal(vectors.shape, np.float32))).max(axis=(1, 2, 3))
    bad = np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    if bad.size:
        kind = "zero" if largest[bad[0]] == 0 else "not finite"
        cause = " The output does not depend on the pixels: is it detached?" if worker.detached_gradients else ""
        raise ProtocolError(f"the gradient of embed_pixels is {kind} ({bad.size} of {len(images)} images).{cause}")
    return f"lowest cosine {lowest:.6f}, largest slopes {largest.min():.2g} to {largest.max():.2g}"


@contextmanager
def _step(report: Report, name: str) -> Iterator[None]:
    try:
        yield
    except SubmissionError as error:
        report.steps.append(Step(name, False, str(error)))


def _invariance(encode: Callable[[Any], np.ndarray], items: list[Any]) -> float:
    """The lowest cosine between vectors of the same item, encoded in other company and order.

    Raises:
        ProtocolError: it is below `MIN_COSINE`.
    """
    together, backwards = encode(items), encode(items[::-1])[::-1]
    alone = np.concatenate([encode([item]) for item in items[:4]])
    lowest = min(_cosines(together, backwards).min(), _cosines(together[:4], alone).min())
    if not lowest >= MIN_COSINE:
        raise ProtocolError(
            f"the vector of an item depends on its neighbours (cosine {lowest:.4f}); expected at least {MIN_COSINE}. "
            "Is the model in eval mode, and is padding masked?"
        )
    return float(lowest)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _samples() -> tuple[list[np.ndarray], list[str]]:
    collection = load_scenes("scenes", "test").head(N_IMAGES)
    return [np.asarray(image.decode()) for image in collection.images], list(collection.captions[:N_IMAGES])


def _odd_images() -> list[np.ndarray]:
    rng = np.random.Generator(np.random.Philox(0))
    noise = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in _HARD_SIZES]
    return [*noise, np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]


def _repeated(items: list[Any], count: int) -> list[Any]:
    return [items[i % len(items)] for i in range(count)]


def _ms_per_item(encode: Callable[[list[Any]], np.ndarray], items: list[Any]) -> float:
    encode(items)
    times = []
    for _ in range(3):
        started = time.perf_counter_ns()
        encode(items)
        times.append((time.perf_counter_ns() - started) / 1e6 / len(items))
    return float(np.median(times))


def _sizes(suite: Suite, limit: int | None) -> dict[str, int]:
    return {name: min(count, limit or count) for name, count in suite.collections.items()}


def _counted(parameters: int | None) -> str:
    return "parameters unknown" if parameters is None else f"{parameters / 1e6:.2f} M parameters"
