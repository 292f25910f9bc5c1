"""Evidence: per query, the ranks of all its positives and the ten best items; every published metric follows from it.

One Parquet file per cell, one row per query and direction. It is a check of consistency, not of honesty: only scoring
again shows that the ranks are real.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from bench.errors import InputError
from bench.types import Direction

MAX_BYTES = 512 << 20
_LISTS = ("items", "pessimistic", "optimistic", "top")
_SCHEMA = pa.schema(
    [("direction", pa.dictionary(pa.int8(), pa.string())), ("query", pa.int32()), ("image", pa.int32())]
    + [(name, pa.list_(pa.int32())) for name in _LISTS]
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one direction's ranking left behind.

    Args:
        queries: index of each query in the collection, (n_queries,) int32.
        images: index of the image that each query belongs to, the unit of resampling, (n_queries,) int32.
        n_images: images of the collection.
        offsets: where each query's positives start in the next three, (n_queries + 1,) int64.
        items: the positives, best first, (n_positives,) int32.
        pessimistic: rank of each, counting ties against it, (n_positives,) int32.
        optimistic: rank of each, counting ties for it, (n_positives,) int32.
        top: the ten best items of each query, -1 where there are fewer, (n_queries, 10) int32.
    """

    queries: Int[np.ndarray, " n_queries"]
    images: Int[np.ndarray, " n_queries"]
    offsets: Int[np.ndarray, " n_queries+1"]
    items: Int[np.ndarray, " n_positives"]
    pessimistic: Int[np.ndarray, " n_positives"]
    optimistic: Int[np.ndarray, " n_positives"]
    top: Int[np.ndarray, "n_queries 10"]


def pack_evidence(evidence: Mapping[Direction, Evidence]) -> bytes:
    """The Parquet file of a cell; the same evidence gives the same bytes."""
    tables = [_to_table(direction, part) for direction, part in evidence.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables, promote_options="none"), buffer, compression="zstd")
    return buffer.getvalue()


def read_evidence(path: Path) -> dict[Direction, Evidence]:
    """A cell's evidence by direction.

    Raises:
        InputError: the file is missing, too large, not such a file, or its ranks contradict each other.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes; expected the evidence of one cell.")
        table = pq.read_table(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None
    except pa.ArrowException as error:
        raise InputError(f"{path} is no Parquet file: {error}.") from None
    if table.schema.names != _SCHEMA.names:
        raise InputError(f"{path} has the columns {table.schema.names}; expected {_SCHEMA.names}.")
    try:
        table = table.cast(_SCHEMA)
    except pa.ArrowException as error:
        raise InputError(f"{path}: {error}.") from None
    if any(column.null_count for column in table.columns):
        raise InputError(f"{path} has empty cells; expected none.")
    directions = np.array(table["direction"].to_pylist())
    return {
        name: _from_table(path, table.filter(pa.array(directions == name)))
        for name in dict.fromkeys(directions.tolist())
    }


def _to_table(direction: Direction, part: Evidence) -> pa.Table:
    offsets = pa.array(part.offsets, pa.int32())
    top = np.arange(0, part.top.size + 1, part.top.shape[1])
    columns = [
        pa.array([direction] * len(part.queries)).dictionary_encode().cast(_SCHEMA.field("direction").type),
        pa.array(part.queries, pa.int32()),
        pa.array(part.images, pa.int32()),
        *(
            pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
            for values in (part.items, part.pessimistic, part.optimistic)
        ),
        pa.ListArray.from_arrays(pa.array(top, pa.int32()), pa.array(part.top.reshape(-1), pa.int32())),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _from_table(path: Path, table: pa.Table) -> Evidence:
    table = table.combine_chunks()
    counts = table["items"].combine_chunks().value_lengths().to_numpy()
    flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in _LISTS}
    part = Evidence(
        queries=table["query"].to_numpy(),
        images=table["image"].to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        items=flat["items"],
        pessimistic=flat["pessimistic"],
        optimistic=flat["optimistic"],
        top=flat["top"].reshape(table.num_rows, -1),
    )
    _check_ranks(path, part, counts)
    return part


def _check_ranks(path: Path, part: Evidence, counts: np.ndarray) -> None:
    sizes = {len(part.items), len(part.pessimistic), len(part.optimistic)}
    if counts.min() < 1 or len(sizes) > 1 or part.images.min() < 0:
        raise InputError(f"{path}: every query needs an image, at least one positive, and both ranks of each.")
    place = np.arange(len(part.items)) - np.repeat(part.offsets[:-1], counts)
    if (part.optimistic < place + 1).any() or (part.pessimistic < part.optimistic).any():
        raise InputError(f"{path}: ranks contradict each other; expected place + 1 <= optimistic <= pessimistic.")
    within = place[1:] > 0
    if (np.diff(part.pessimistic)[within] < 1).any() or (np.diff(part.optimistic)[within] < 1).any():
        raise InputError(f"{path}: the ranks of a query's positives do not rise; expected best first.")
