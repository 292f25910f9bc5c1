"""A replica of a submission, which scores one cell after another: in its own process it encodes, here its vectors are
ranked. It writes what it makes of a cell to the caches and the folder of examples only; a record is for who owns the
run to keep.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.cells import CellInputs, change_of, is_reranked
from bench.embed import Embedded, Embedder, Progress, Share
from bench.errors import MissingError, SubmissionError
from bench.evaluate import Distractors, digest_vectors, evaluate
from bench.probing import Scored, not_run, probe
from bench.records import Cell, Data, Probe, Record, Timing
from bench.second import NotApplicable, Readings, in_both_directions
from bench.shifted import Canvases, Change, Rewording, prepare_clean, prepare_shifted, reword
from bench.store import cache_folder
from bench.types import Collection
from bench.worker.host import Loaded

if TYPE_CHECKING:  # they take torch, which a run without attacks does without
    from bench.attack import AttackScorer
    from bench.crafting import Crafter


class Score(NamedTuple):
    """What came of a cell; there is evidence if its record says so."""

    record: Record
    evidence: bytes | None


@dataclass(frozen=True)
class _Sides:
    """A cell's items: what the towers make of the collection's own, and of the distractors that join them.

    Args:
        readings: of own items and distractors by the second stage; None where one stage is scored.
    """

    images: Embedded
    texts: Embedded
    more_images: Embedded | None = None
    more_texts: Embedded | None = None
    n_unchanged: int = 0
    readings: Readings | None = None

    @property
    def distractors(self) -> Distractors:
        vectors = [None if part is None else part.vectors for part in (self.more_images, self.more_texts)]
        return Distractors(*vectors)

    @property
    def n_distractors(self) -> int:
        return sum(len(part) for part in self.distractors if part is not None)

    @property
    def distractors_sha256(self) -> str | None:
        added = self.more_images or self.more_texts
        return added.fed_sha256 if added else None


class Replica:
    """A submission, loaded when first needed, and what it has been fed lately."""

    def __init__(self, inputs: CellInputs, examples: Path, share: Share | None = None) -> None:
        """`examples` takes attacked items; by `share` embeddings that other replicas have made are used too."""
        self.inputs, self._settings, self._examples = inputs, inputs.settings, examples
        settings, submission = inputs.settings, inputs.submission
        self._cache = settings.cache or cache_folder()
        made_by = submission, settings.worker
        self._embedder = Embedder(*made_by, self._cache, settings.batch_size, inputs.surroundings, share)
        self._crafter: Crafter | None = None
        self._canvases = Canvases()
        self._progress: Progress = _ignore

    def start(self) -> Loaded:
        """Loads the submission, unless that has happened.

        Raises:
            SubmissionError: it cannot be loaded.
        """
        return self._embedder.start()

    def close(self) -> None:
        """Ends the submission's processes; the next cell starts them afresh."""
        self._embedder.close()
        if self._crafter:
            self._crafter.close()

    def score_cell(self, cell: Cell, progress: Progress) -> Score:
        """The cell's record and evidence; what the submission does wrong becomes the record's status.

        Raises:
            InputError: an item of the collection cannot be used.
        """
        started, self._progress = time.perf_counter(), progress
        worker = self._settings.worker
        worker.cell.restart(worker.cell_timeout_s)
        collection, source = self.inputs.collection(cell)
        blank = self.inputs.blank(cell, self.rerank_k)
        try:
            score = self._score_attacked if cell.is_attack else self._score
            record, evidence = score(cell, blank, collection, source)
        except SubmissionError as error:
            self.close()
            return Score(blank.model_copy(update={"status": error.status, "reason": str(error)[:8000]}), None)
        except (MissingError, NotApplicable) as error:
            if isinstance(error, NotApplicable):
                blank = blank.model_copy(update={"status": "skipped", "isolation": ""})
            else:
                blank = blank.model_copy(update={"status": "error"})
            return Score(blank.model_copy(update={"reason": str(error)[:8000]}), None)
        timing = record.timing.model_copy(update={"wall_s": time.perf_counter() - started})
        stated = {"evidence_sha256": hashlib.sha256(evidence).hexdigest(), "timing": timing}
        return Score(record.model_copy(update=stated), evidence)

    def probe(self) -> tuple[Probe, ...]:
        """What the probes find on the collection that stands first, without a shift and on the canvas."""
        first = self.inputs.suite.cells[0].collection
        cell = Cell(collection=first, shift="clean_canvas", directions=("t2i", "i2t"))
        collection, _ = self.inputs.collection(cell)
        self._progress = _ignore
        try:
            sides = self._embed(cell, None, collection)
        except SubmissionError as error:
            self.close()
            return not_run(error, self.rerank_k is not None)
        vectors = sides.images.vectors, sides.texts.vectors
        scored = Scored(collection, self._canvases, *vectors, sides.readings, self.close)
        return probe(self.inputs.submission, self._settings.worker, self._settings.batch_size, scored)

    @cached_property
    def rerank_k(self) -> int | None:
        """How many items of each query its second stage orders; None if it has none."""
        return self._settings.rerank_k if self.start().reranker else None

    @cached_property
    def _scorer(self) -> AttackScorer:
        from bench.attack import AttackScorer
        from bench.crafting import Crafter

        submission, settings = self.inputs.submission, self._settings
        batches = settings.batch_size, self._examples, self.inputs.surroundings
        self._crafter = crafter = Crafter(submission, settings.worker, *batches)
        return AttackScorer(
            self._embedder, crafter, submission.label, self._examples, self.inputs.source, self.rerank_k
        )

    def _score(self, cell: Cell, blank: Record, collection: Collection, source: str) -> tuple[Record, bytes]:
        sides = self._embed(cell, change_of(cell), collection)
        images, texts, readings = sides.images, sides.texts, sides.readings
        second = in_both_directions(self.rerank_k, readings.score) if self.rerank_k and readings else None
        evaluation = evaluate(collection, images.vectors, texts.vectors, cell.directions, sides.distractors, second)
        described = _describe(
            collection,
            source,
            (images, texts),
            n_distractors=sides.n_distractors,
            n_unchanged=sides.n_unchanged,
            distractors_sha256=sides.distractors_sha256,
            token_bytes=readings.token_bytes if readings else None,
        )
        found = {"flags": evaluation.flags, "metrics": evaluation.metrics}
        return blank.model_copy(update={**found, **described}), evaluation.evidence

    def _score_attacked(self, cell: Cell, blank: Record, collection: Collection, source: str) -> tuple[Record, bytes]:
        n_images = len(collection.images)
        beside = self.inputs.whole(cell.collection).beside(n_images) if cell.threat_model == "distractor" else None
        result = self._scorer.score(cell, collection, self._progress, beside)
        described = _describe(
            collection,
            source,
            (result.images, result.texts),
            n_distractors=result.n_distractors,
            n_unchanged=result.report.n_unchanged,
            distractors_sha256=result.distractors_sha256,
            token_bytes=result.token_bytes,
        )
        found = {"flags": result.flags, "metrics": result.metrics, "attack": result.report}
        return blank.model_copy(update={**found, **described}), result.evidence

    def _embed(self, cell: Cell, change: Change | None, collection: Collection) -> _Sides:
        """What all stages make of the cell's items; a shift that adds distractors leaves the items themselves."""
        modality = change.shift.modality if change else ""
        own = collection, change if modality == "image" else None, cell.shift != "clean"
        more = (collection, change, True) if modality == "gallery_image" else None
        reworded = self._reword(change, collection) if change and modality in ("text", "gallery_text") else None
        captions, more_captions = collection.captions, list[str]()
        if reworded and modality == "text":
            captions = reworded.captions
        elif reworded:
            more_captions = [text for text in reworded.captions if text]
        sides = _Sides(
            images=self._images(self._embedder.images, *own),
            texts=self._texts(captions),
            more_images=self._images(self._embedder.images, *more) if more else None,
            more_texts=self._texts(more_captions) if more_captions else None,
            n_unchanged=reworded.n_unchanged if reworded else 0,
        )
        if not is_reranked(cell, self.rerank_k):
            return sides
        tokens = [self._images(self._embedder.tokens, *part).vectors for part in (own, more) if part]
        everything = np.concatenate(tokens) if len(tokens) > 1 else tokens[0]
        return replace(sides, readings=Readings(everything, [*captions, *more_captions], self._embedder.score_pairs))

    def _images(
        self, tower: Callable[..., Embedded], collection: Collection, change: Change | None, canvas: bool
    ) -> Embedded:
        """What `tower`, one of the embedder's, makes of the images."""
        clean = self._canvases if canvas else prepare_clean(canvas=False)
        prepare = prepare_shifted(change, collection, self._canvases) if change else clean
        identity = [canvas, change.identity if change else []]
        return tower(collection.images, prepare, identity, self._progress)

    def _texts(self, captions: Sequence[str]) -> Embedded:
        return self._embedder.texts(list(captions), self._progress)

    def _reword(self, change: Change, collection: Collection) -> Rewording:
        return reword(change, collection, self._cache)


def _describe(
    collection: Collection, source: str, embedded: tuple[Embedded, Embedded], **more: object
) -> dict[str, object]:
    """What a record says of the items, whatever was done to them; `more` are further fields of `Data`."""
    images, texts = embedded
    facts = {
        "revision": collection.revision,
        "n_images": len(collection.images),
        "n_captions": len(collection.captions),
        "source_sha256": source,
        "images_sha256": images.fed_sha256,
        "captions_sha256": texts.fed_sha256,
    }
    timing = Timing(
        encode_images_ms=images.ms_per_item,
        encode_texts_ms=texts.ms_per_item,
        images_cached=images.cached,
        texts_cached=texts.cached,
    )
    return {
        "data": Data.model_validate({**facts, **more}),
        "dim": images.vectors.shape[1],
        "embeddings_sha256": {"images": digest_vectors(images.vectors), "texts": digest_vectors(texts.vectors)},
        "timing": timing,
    }


def _ignore(count: int) -> None:
    pass
