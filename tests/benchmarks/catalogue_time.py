"""A run of cells drawn from a suite, beside the bare forward passes that they need and clip-benchmark cell by cell.

    python tests/benchmarks/catalogue_time.py SUBMISSION SUITE [--every N] [--pairs N] [--peer] [--data-dir NAME=SPEC]

Every N-th cell that is not attacked, and the two clean ones, each on the whole collection. All sides load the
submission before the clock starts and use the same batch size and threads.

bare: the encoder alone, in this process, over pixels and captions that lie ready in memory, each list of them once.
run: `run_suite` from an empty cache of embeddings, from the first cell to the last record: decoding, shifts, the other
     process, ranks, intervals, files. Captions that a model rewords are data, and lie ready.
peer: `zeroshot_retrieval.evaluate` of the clip-benchmark package on each cell alone, with pixels that lie ready.

The ratios are taken within a round; the median is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import PIL.Image
import torch
from bench_overhead import load_encoder
from clip_benchmark.metrics import zeroshot_retrieval
from parity_clip_benchmark import Peer, Texts

from bench import torchvision_fix
from bench.cells import CellInputs, RunSettings, change_of
from bench.records import Cell, Record
from bench.run import run_suite
from bench.shifted import prepare_clean, prepare_shifted, reword
from bench.submission import Submission, find_submission
from bench.suites import Suite, find_suite

BATCH = 32


class Inputs(NamedTuple):
    """What a cell is made of; equal digests are equal lists."""

    pixels: str
    texts: tuple[str, ...]


class Clock:
    """An observer of a run, which looks at the clock when the first cell begins."""

    started = 0.0

    def cell_started(self, cell: Cell, n_items: int) -> None:
        self.started = self.started or time.perf_counter()

    def items_encoded(self, count: int) -> None:
        pass

    def cell_finished(self, record: Record, reused: bool) -> None:
        if record.status != "ok":
            raise SystemExit(f"{record.cell.shift}: {record.reason}")


class Bench:
    """A submission and the cells of a suite that are timed."""

    def __init__(self, submission: Submission, suite: Suite, data_dirs: dict[str, str], cache: Path) -> None:
        self.submission, self.suite, self.cache = submission, suite, cache
        self.settings = RunSettings(batch_size=BATCH, data_dirs=data_dirs)
        self.inputs = CellInputs(submission, suite, self.settings, {})
        self.encoder = load_encoder(submission)
        self.cells = {cell: self._inputs_of(cell) for cell in suite.cells}

    def _inputs_of(self, cell: Cell) -> Inputs:
        collection, change = self.inputs.collection(cell)[0], change_of(cell)
        modality = change.shift.modality if change else ""
        if modality.startswith("gallery"):
            raise SystemExit(f"{cell.shift} adds items; leave it out.")
        texts = reword(change, collection, self.cache).captions if modality == "text" else collection.captions
        shown = repr(change.identity) if modality == "image" else cell.shift if cell.shift == "clean" else "canvas"
        return Inputs(f"{cell.collection} {cell.n_images} {shown}", tuple(texts))

    def pixels(self, cell: Cell) -> list[PIL.Image.Image]:
        collection, change = self.inputs.collection(cell)[0], change_of(cell)
        shifted = change is not None and change.shift.modality == "image"
        prepare = prepare_shifted(change, collection) if shifted else prepare_clean(cell.shift != "clean")
        return [PIL.Image.fromarray(prepare(image)) for image in collection.images]

    def encode_images(self, images: Sequence[PIL.Image.Image]) -> float:
        started = time.perf_counter()
        for start in range(0, len(images), BATCH):
            self.encoder.encode_images(images[start : start + BATCH])
        return time.perf_counter() - started

    def encode_texts(self, texts: Iterable[str]) -> float:
        unique = list(dict.fromkeys(texts))
        started = time.perf_counter()
        for start in range(0, len(unique), BATCH):
            self.encoder.encode_texts(unique[start : start + BATCH])
        return time.perf_counter() - started

    def bare(self) -> float:
        """Seconds of the forward passes over every list of items once."""
        of_images = {inputs.pixels: cell for cell, inputs in self.cells.items()}
        of_texts = {inputs.texts for inputs in self.cells.values()}
        seconds = sum(self.encode_images(self.pixels(cell)) for cell in of_images.values())
        return seconds + sum(self.encode_texts(texts) for texts in of_texts)

    def run(self) -> float:
        """Seconds of a run of the cells, from the first one's beginning."""
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder, "cache")
            cache.mkdir()
            if (self.cache / "rewordings").exists():
                (cache / "rewordings").symlink_to(self.cache / "rewordings")
            settings = replace(self.settings, output=Path(folder, "run"), cache=cache, limit=sys.maxsize)
            clock = Clock()
            run_suite(self.submission, self.suite, settings, clock)
            return time.perf_counter() - clock.started

    def peer(self) -> float:
        """Seconds of the peer's evaluation of every cell on its own, beside decoding and shifts."""
        return sum(self._peer(cell, inputs.texts) for cell, inputs in self.cells.items())

    def _peer(self, cell: Cell, texts: Sequence[str]) -> float:
        collection = self.inputs.collection(cell)[0]
        captions_of: list[list[str]] = [[] for _ in collection.images]
        for image, caption in collection.positives:
            captions_of[image].append(texts[caption])
        starts = range(0, len(captions_of), BATCH)
        indices = torch.arange(len(captions_of))
        batches = [(indices[i : i + BATCH], captions_of[i : i + BATCH]) for i in starts]
        model = Peer(self.encoder, [_Ready(pixels) for pixels in self.pixels(cell)])
        started = time.perf_counter()
        with redirect_stderr(StringIO()):
            zeroshot_retrieval.evaluate(model, batches, Texts, "cpu", amp=False, recall_k_list=[1, 5, 10])
        return time.perf_counter() - started


class _Ready(NamedTuple):
    pixels: PIL.Image.Image

    def decode(self) -> PIL.Image.Image:
        return self.pixels


def choose_cells(suite: Suite, every: int) -> Suite:
    """The suite's clean cells and every so manieth of those that change the items of a collection of pairs."""
    changed = [cell for cell in suite.cells if _is_timed(cell)]
    clean = [cell for cell in suite.cells if cell.shift in ("clean", "clean_canvas") and not cell.baseline]
    cells = tuple(dict.fromkeys([*clean[:2], *changed[::every]]))
    return replace(suite, name=f"{suite.name}-part", cells=cells)


def _is_timed(cell: Cell) -> bool:
    change = change_of(cell)
    return change is not None and not change.shift.modality.startswith("gallery") and cell.directions != ("i2i",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submission")
    parser.add_argument("suite")
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--data-dir", action="append", default=[])
    asked = parser.parse_args()
    torchvision_fix.install()
    submission, suite = find_submission(asked.submission), choose_cells(find_suite(asked.suite), asked.every)
    data_dirs = dict(part.split("=", 1) for part in asked.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(submission, suite, data_dirs, Path(folder))
        print(
            f"{submission.label}, {len(suite.cells)} cells: {' '.join(cell.slug for cell in suite.cells)}", flush=True
        )
        bench.encode_texts(next(iter(bench.cells.values())).texts[:320])
        found: dict[str, list[float]] = {"run / bare": [], "peer / run": []}
        for _ in range(asked.pairs):
            bare, run = bench.bare(), bench.run()
            found["run / bare"].append(run / bare)
            line = f"bare {bare:.1f} s  run {run:.1f} s  ratio {run / bare:.3f}"
            if asked.peer:
                peer = bench.peer()
                found["peer / run"].append(peer / run)
                line += f"  peer {peer:.1f} s  ratio {peer / run:.2f}"
            print(line, flush=True)
        for name, ratios in found.items():
            if ratios:
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                print(f"{name}: {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
