"""Indexes of galleries of millions of items: built shard by shard in bounded memory, written whole or not at all,
opened memory-mapped and checked. What an index is called and how large it will be is in `index_spec` and `index_size`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from bench.errors import InputError, RoveError
from bench.records import Finite, Line, Sha256, Strict, to_json
from bench.retrieval.costs import harness_peak_bytes
from bench.retrieval.index_device import move_to_gpu, parse_device
from bench.retrieval.index_size import check_fits, estimate_bytes
from bench.retrieval.index_spec import (
    IndexSpec,
    apply_search,
    complete_search,
    default_index,
    iterate_parts,
    load_faiss,
    make_empty,
    parse_index,
    say_briefly,
)
from bench.retrieval.page_cache import drop_from_page_cache, read_into_page_cache
from bench.store import read_sealed, seal, set_aside, sha256_of, write_atomic

__all__ = [
    "IndexFile",
    "IndexSpec",
    "Searcher",
    "build_index",
    "check_fits",
    "check_index",
    "default_index",
    "estimate_bytes",
    "open_index",
    "parse_index",
    "read_index_file",
    "recover_index",
]

_INDEX = "index.faiss"
_FACTS = "index.facts"
_ANY_DIM = 7680
"""Of all dimensions: one that product codes of most sizes divide."""
_REMEDY = "Build it again with --rebuild."
Count = Annotated[int, Field(ge=1)]


class IndexFile(Strict):
    """What is known of an index that was built; it is written last."""

    factory: Line
    n_items: Count
    dim: Count
    n_bytes: Count
    sha256: Sha256 = Field(description="of index.faiss")
    train_s: Finite
    add_s: Finite = Field(description="of faiss alone; where the vectors come from is not in it")
    peak_bytes: Annotated[int, Field(ge=0)] = Field(description="largest resident memory of the process that built it")
    faiss: Line = Field(description="its version")


def check_index(factory: str, search: Mapping[str, int], device: str) -> None:
    """Sees to it, before anything is encoded, that there can be such an index at all; dimensions are checked later.

    Raises:
        UsageError: faiss knows no such index, it has no such parameter, or it cannot lie on that device.
        MissingError: faiss is not installed.
    """
    empty = make_empty(factory, _ANY_DIM)
    parse_device(device, empty, factory, complete_search(empty, search, factory))


def build_index(
    spec: IndexSpec,
    sample: Float32[np.ndarray, "n_sample dim"],
    shards: Iterable[Float32[np.ndarray, "n_shard dim"]],
    n_items: int,
    folder: Path,
) -> IndexFile:
    """Trains an index, adds the gallery shard by shard, and writes `index.faiss` and then `index.facts` to `folder`.

    The codes are held once. Whatever happens before the end, `folder` holds no index that opens; one process at a time
    may build there.

    Args:
        spec: its parameters of searching do not matter.
        sample: what it is trained with, of unit length.
        shards: all vectors in the order of their rows, of unit length.
        n_items: how many vectors there are in `shards`.
        folder: made if it is missing.

    Raises:
        InputError: `sample` is too small, a vector has other dimensions, or there are not `n_items` of them.
        RoveError: the folder cannot be written.
    """
    index = make_empty(spec.factory, sample.shape[1])
    with _says_where(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)
    train_s = _train(index, sample, spec.factory)
    _reserve(index, n_items)
    add_s = _add_all(index, shards, n_items)
    path = _write(index, folder)
    facts = IndexFile(
        factory=spec.factory,
        n_items=n_items,
        dim=index.d,
        n_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        train_s=train_s,
        add_s=add_s,
        peak_bytes=harness_peak_bytes(),
        faiss=load_faiss().__version__,
    )
    write_atomic(folder / _FACTS, seal(to_json(facts)))
    return facts


def read_index_file(folder: Path) -> IndexFile | None:
    """What is known of the index in `folder`; None if none was finished there, or if that is damaged."""
    data = read_sealed(folder / _FACTS)
    return None if data is None else IndexFile.model_validate_json(data)


def recover_index(folder: Path) -> IndexFile | None:
    """What is known of the index in `folder`, if its file is as it was written; a damaged one is set aside."""
    facts = read_index_file(folder)
    try:
        if facts is not None:
            _check_file(folder / _INDEX, facts)
    except InputError as error:
        for path in (folder / _FACTS, folder / _INDEX):
            if path.exists():
                set_aside(path, str(error))
        return None
    return facts


class Found(NamedTuple):
    """The best rows of each query.

    Args:
        scores: inner products, falling; of an index without refinement those of its approximate vectors.
        rows: of the gallery; -1 behind the last where an index found fewer than k, in the lists that it visited or at
            all. Their scores mean nothing.
    """

    scores: Float32[np.ndarray, "n_queries k"]
    rows: Int64[np.ndarray, "n_queries k"]


class Searcher:
    """An open index; `open_index` opens one.

    Args:
        path: its file, as it was checked.
        facts: what is known of it.
        search: as for `set_parameters`.
        gpu: number of the GPU that it is copied to; None for memory.
    """

    def __init__(self, path: Path, facts: IndexFile, search: Mapping[str, int], gpu: int | None) -> None:
        self._path, self._facts, self._gpu = path, facts, gpu
        self._empty = make_empty(facts.factory, facts.dim)
        self._search = complete_search(self._empty, search, facts.factory)
        started = time.perf_counter()
        self._open()
        self._open_s = time.perf_counter() - started

    @property
    def n_items(self) -> int:
        return self._facts.n_items

    @property
    def dim(self) -> int:
        return self._facts.dim

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self._facts.n_bytes

    @property
    def open_s(self) -> float:
        """Seconds that faiss took to open the file, most of which was in the page cache after its check."""
        return self._open_s

    @property
    def mapped(self) -> bool:
        """Whether more than half of the file stays on disk until it is needed; faiss reads the codes of fast scan."""
        return self._mapped

    def search(self, queries: Float32[np.ndarray, "n_queries dim"], k: int) -> Found:
        """The best items by inner product.

        An index with refinement scores `k_factor` x k candidates again. One query is answered by one thread: faiss
        shares out queries, and its ways to share one out over lists were slower on two cores.

        Args:
            queries: of unit length, in one piece.
            k: at least 1.

        Raises:
            InputError: the queries or `k` are not of that kind.
        """
        if queries.ndim != 2 or queries.dtype != np.float32 or not queries.flags.c_contiguous:
            found = f"{queries.dtype} {queries.shape}{'' if queries.flags.c_contiguous else ' in pieces'}"
            raise InputError(f"queries are {found}; expected contiguous float32 (n_queries, {self.dim}).")
        if queries.shape[1] != self.dim:
            raise InputError(
                f"queries have {queries.shape[1]} dimensions; expected {self.dim}, as the index has. Encode both with "
                "one model."
            )
        if k < 1:
            raise InputError(f"the best {k} items were asked for; expected at least 1.")
        try:
            return Found(*self._index.search(queries, k))
        except RuntimeError as error:
            raise InputError(
                f"{self._facts.factory} cannot answer {len(queries)} queries for {k} items: {say_briefly(error)}."
            ) from None

    def set_parameters(self, search: Mapping[str, int]) -> None:
        """Searches with other parameters from now on; those not given get their defaults.

        Raises:
            UsageError: the index has no such parameter, or the value is out of range.
        """
        self._search = complete_search(self._empty, search, self._facts.factory)
        self._apply_search()

    def drop_cached(self) -> None:
        """Drops what is mapped of the file from memory and the page cache, so that the next search reads the disk.

        Parts that faiss reads when it opens a file stay in memory.
        """
        # Pages that are mapped and were touched are not dropped: the new mapping has touched nothing yet.
        del self._index
        self._open()
        drop_from_page_cache(self._path)

    def warm(self) -> None:
        """Reads the whole file once, so that searches find what is mapped in the page cache if it has room there."""
        read_into_page_cache(self._path)

    def _open(self) -> None:
        index = _read(self._path)
        self._mapped = self._gpu is None and _is_mapped(index, self.n_items, self.n_bytes)
        self._index = index if self._gpu is None else move_to_gpu(index, self._gpu)
        self._apply_search()

    def _apply_search(self) -> None:
        if self._gpu is None:
            apply_search(self._index, self._search)
        elif "nprobe" in self._search:
            self._index.nprobe = self._search["nprobe"]


def open_index(folder: Path, search: Mapping[str, int], device: str = "cpu") -> Searcher:
    """The index in `folder`, if it is as it was written.

    Args:
        folder: as for `build_index`.
        search: of nprobe, ef and k_factor what differs from the defaults of `parse_index`.
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: there is none, or its file is not the one that was written.
        UsageError: it has no such parameter, or cannot lie on that device.
        MissingError: faiss is not installed.
    """
    facts = read_index_file(folder)
    if facts is None:
        raise InputError(f"{folder} holds no finished index; expected {_INDEX} and {_FACTS}. {_REMEDY}")
    empty = make_empty(facts.factory, facts.dim)
    complete = complete_search(empty, search, facts.factory)
    gpu = parse_device(device, empty, facts.factory, complete)
    _check_file(folder / _INDEX, facts)
    return Searcher(folder / _INDEX, facts, complete, gpu)


def _train(index: Any, sample: Float32[np.ndarray, "n_sample dim"], factory: str) -> float:
    """Seconds that it took."""
    _check_vectors(sample, index.d, "the sample")
    for part in iterate_parts(index):
        _prepare_training(part)
    started = time.perf_counter()
    try:
        index.train(sample)
    except RuntimeError as error:
        raise InputError(
            f"{factory} cannot be trained with {len(sample):,} vectors: {say_briefly(error)}. Choose an --index with "
            "fewer lists, or a larger --gallery."
        ) from None
    return time.perf_counter() - started


def _prepare_training(part: Any) -> None:
    """Leaves out what training would do for nothing."""
    if hasattr(part, "do_polysemous_training"):
        # It orders a codebook for a search by Hamming distance that is never asked for, 100 s for IVF1024,PQ64.
        part.do_polysemous_training = False
    clusterings = [owner.cp for owner in (part, getattr(part, "pq", part)) if hasattr(owner, "cp")]
    for clustering in clusterings:
        # faiss writes a warning for every codebook of a small sample.
        clustering.min_points_per_centroid = 1


def _reserve(index: Any, n_items: int) -> None:
    """Makes room for all codes at once: growing, a vector is copied, and for that time held twice."""
    for part in iterate_parts(index):
        if hasattr(getattr(part, "codes", None), "owned_data") and not part.ntotal:
            part.codes.resize(n_items * part.code_size)
            part.codes.resize(0)


def _add_all(index: Any, shards: Iterable[Float32[np.ndarray, "n_shard dim"]], n_items: int) -> float:
    """Seconds that faiss took to add all of them."""
    seconds = 0.0
    for shard in shards:
        _check_vectors(shard, index.d, f"the shard from row {index.ntotal:,} on")
        if index.ntotal + len(shard) > n_items:
            raise InputError(f"the shards have more than {n_items:,} vectors; expected as many as the gallery has.")
        started = time.perf_counter()
        index.add(shard)
        seconds += time.perf_counter() - started
    if index.ntotal != n_items:
        raise InputError(f"the shards have {index.ntotal:,} vectors; expected {n_items:,}, as many as the gallery has.")
    return seconds


def _check_vectors(vectors: np.ndarray, dim: int, which: str) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != dim:
        raise InputError(f"{which} is {vectors.dtype} {vectors.shape}; expected float32 (n_items, {dim}).")


def _write(index: Any, folder: Path) -> Path:
    """The file of the index, complete and on the disk."""
    path, temporary = folder / _INDEX, folder / f".{_INDEX}.tmp"
    with _says_where(folder):
        try:
            load_faiss().write_index(index, os.fspath(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _says_where(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in writing into an error that names the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else say_briefly(error)
        raise RoveError(f"cannot write an index to {folder}: {said}. Free space, or choose another folder.") from error


def _check_file(path: Path, facts: IndexFile) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != facts.n_bytes:
        raise InputError(f"{path} has {size:,} bytes; expected {facts.n_bytes:,}, as were written. {_REMEDY}")
    found = sha256_of(path)
    if found != facts.sha256:
        raise InputError(f"{path} has sha256 {found[:16]}...; expected {facts.sha256[:16]}.... {_REMEDY}")


def _read(path: Path) -> Any:
    """The index, memory-mapped as far as faiss can: flat codes, graphs and inverted lists, but not fast scan."""
    faiss = load_faiss()
    try:
        return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise InputError(
            f"faiss {faiss.__version__} cannot read {path}: {say_briefly(error)}; expected an index as it was written. "
            f"{_REMEDY}"
        ) from None


def _is_mapped(index: Any, n_items: int, n_bytes: int) -> bool:
    """Whether what faiss had to read is the smaller part of the file."""
    # Fast scan keeps aligned blocks of its own, in one table or one for each list, with ids.
    scanned = [part for part in iterate_parts(index) if hasattr(part, "bbs")]
    read = sum(n_items * (max(part.code_size, part.M2 / 2) + 8 * hasattr(part, "nlist")) for part in scanned)
    return read < n_bytes / 2
