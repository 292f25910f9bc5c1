"""Which index: faiss's name of it, checked by letting faiss build it empty, and the parameters of its search.

Inner product on vectors of unit length throughout. faiss is imported when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import MissingError, UsageError

DEFAULT_NPROBE = 128
DEFAULT_EF = 128
N_CANDIDATES = 2_000
MAX_FLAT_ITEMS = 100_000
MAX_COARSE_ITEMS = 3_000_000
EXAMPLES = "'Flat', 'HNSW32', 'IVF1024,Flat', 'IVF4096,PQ64', 'IVF1024,PQ128x4fs,Refine(SQfp16)' and 'SQ8'"

MAX_NAME = 200
MAX_NUMBER = 1 << 20  # lists, dimensions: some parts are allocated at once
MAX_BITS = 16  # of a code: each has a table of 2**bits vectors

_BLAS_THRESHOLD = 20
_INSTANCES = f"There are, for instance, {EXAMPLES}."
_WHERE = re.compile(r".*\.(?:cpp|h|cu):\d+: ", re.DOTALL)
_CONDITION = re.compile(r"^Error: '.*?' failed(?:: )?")


@dataclass(frozen=True)
class IndexSpec:
    """An index and how it is searched.

    Args:
        factory: faiss's name of it.
        search: of `nprobe` (lists that are visited), `ef` (a graph's candidates) and `k_factor` (for each item that
            is asked for, how many are scored again by the refinement) those that the index has.
    """

    factory: str
    search: Mapping[str, int]

    @property
    def id(self) -> str:
        """`IVF4096,PQ64 nprobe=32`."""
        return " ".join([self.factory, *(f"{name}={value}" for name, value in sorted(self.search.items()))])


def load_faiss() -> Any:
    """The faiss package, set so that a batch of `_BLAS_THRESHOLD` queries already is one matrix product.

    Raises:
        MissingError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingError(
            "large galleries and their indexes need faiss, which is not installed; expected rove-bench[cpu] or "
            "rove-bench[gpu]. Install one of them, not both."
        ) from None
    # By default small batches over large galleries are compared pair by pair, 15 times slower.
    faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD
    return faiss


def parse_index(
    factory: str,
    dim: int,
    k: int = 10,
    *,
    nprobe: int | None = None,
    ef: int | None = None,
    k_factor: int | None = None,
) -> IndexSpec:
    """The index of that name over vectors of `dim` dimensions.

    Args:
        factory: as for faiss's `index_factory`.
        k: how many items it will be asked for.
        nprobe: DEFAULT_NPROBE, or all lists where there are fewer, if not given.
        ef: DEFAULT_EF if not given.
        k_factor: so many that N_CANDIDATES are scored again if not given.

    Raises:
        UsageError: faiss knows no such index or not with so many dimensions, it cannot be used for inner products, or
            it has no such parameter; says what faiss said.
        MissingError: faiss is not installed.
    """
    given = {"nprobe": nprobe, "ef": ef, "k_factor": k_factor}
    index = make_empty(factory, dim)
    named = {name: number for name, number in given.items() if number is not None}
    return IndexSpec(factory, complete_search(index, named, factory, k))


def default_index(n_items: int, dim: int) -> IndexSpec:
    """What a gallery of that size is searched with: all of it up to MAX_FLAT_ITEMS, above that inverted lists of 4-bit
    codes, whose best candidates are scored again from 16-bit vectors.

    Over 400,000 and 1,000,000 vectors of 512 dimensions it finds .998 and .999 of the exact ten best in 1 ms on one
    core. More items get more lists only where comparing every item with every list stays a matter of two minutes.

    Raises:
        MissingError: faiss is not installed.
    """
    if n_items <= MAX_FLAT_ITEMS:
        return parse_index("Flat", dim)
    n_lists = 1024 if n_items <= MAX_COARSE_ITEMS else 2048
    # Two or four dimensions to a code of four bits: vectors of few dimensions hold more in each.
    n_per_code = 4 if dim >= 512 else 2
    if dim % n_per_code:
        return parse_index(f"IVF{n_lists},SQfp16", dim)
    return parse_index(f"IVF{n_lists},PQ{dim // n_per_code}x4fs,Refine(SQfp16)", dim)


def make_empty(factory: str, dim: int) -> Any:
    """faiss's index of that name, untrained; raises as `parse_index`."""
    faiss = load_faiss()
    _check_name(factory)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        message = f"faiss knows no index {factory!r} over {dim} dimensions: {say_briefly(error)}."
        raise UsageError(f"{message} {_INSTANCES}") from None
    for part in iterate_parts(index):
        _check_usable(part, factory)
    return index


def _check_name(factory: str) -> None:
    """Refuses what makes faiss overflow its stack or fill the memory before it can complain."""
    if len(factory) > MAX_NAME or not factory.isascii():
        raise UsageError(f"{factory[:MAX_NAME]!r} is no index; expected at most {MAX_NAME} plain letters. {_INSTANCES}")
    for times, number in re.findall(r"(x?)([0-9]+)", factory):
        limit = MAX_BITS if times else MAX_NUMBER
        if int(number) > limit:
            raise UsageError(f"{factory} has the number {number}; expected at most {limit} there. {_INSTANCES}")


def iterate_parts(index: Any) -> Iterator[Any]:
    """The index and every index inside it, by their own types; what is asked first comes last."""
    # A second name: what downcast_index gives does not keep alive what it was given.
    part = load_faiss().downcast_index(index)
    yield part
    for name in ("base_index", "refine_index", "index", "storage", "quantizer"):
        inner = getattr(part, name, None)
        if inner is not None:
            yield from iterate_parts(inner)


def complete_search(index: Any, given: Mapping[str, int], factory: str, k: int = 10) -> dict[str, int]:
    """The parameters of searching `index`, defaults for those that are not given.

    Raises:
        UsageError: it has no such parameter, or the value is out of range.
    """
    defaults = _find_defaults(index, k)
    for name, value in given.items():
        if name not in defaults:
            has = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise UsageError(f"{factory} was given {name}={value}; expected only parameters of that index: {has}.")
        if value < 1:
            raise UsageError(f"{name} is {value}; expected at least 1.")
    n_lists = min((part.nlist for part in iterate_parts(index) if hasattr(part, "nlist")), default=0)
    if given.get("nprobe", 0) > n_lists:
        raise UsageError(f"nprobe is {given['nprobe']}; expected at most {n_lists}, the lists of {factory}.")
    return {**defaults, **given}


def apply_search(index: Any, search: Mapping[str, int]) -> None:
    """Sets the parameters that `complete_search` has completed."""
    for part in iterate_parts(index):
        if hasattr(part, "nprobe"):
            part.nprobe = search["nprobe"]
        if hasattr(part, "hnsw"):
            part.hnsw.efSearch = search["ef"]
        if hasattr(part, "k_factor"):
            part.k_factor = float(search["k_factor"])


def say_briefly(error: BaseException) -> str:
    """What faiss said, on one line and without its sources' names."""
    said = _CONDITION.sub("", _WHERE.sub("", " ".join(str(error).split())))
    return (said or type(error).__name__).rstrip(". ")


def _find_defaults(index: Any, k: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in iterate_parts(index):
        if hasattr(part, "nprobe"):
            found["nprobe"] = min(DEFAULT_NPROBE, part.nlist)
        if hasattr(part, "hnsw"):
            found["ef"] = DEFAULT_EF
        if hasattr(part, "k_factor"):
            found["k_factor"] = -(-N_CANDIDATES // k)
    return found


def _check_usable(part: Any, factory: str) -> None:
    """Refuses what faiss builds without a word: indexes that it quietly gives another metric, or cannot fill."""
    faiss = load_faiss()
    name = type(part).__name__
    if part.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UsageError(
            f"{factory} has a part, {name}, that faiss only has for Euclidean distances; expected inner products. "
            f"{_INSTANCES}"
        )
    if isinstance(part, (faiss.IndexIDMap, faiss.IndexNSG)):
        raise UsageError(
            f"{factory} has a part, {name}, to which items cannot be added shard by shard; expected an index that "
            f"grows. {_INSTANCES}"
        )
