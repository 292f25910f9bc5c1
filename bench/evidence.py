"""Evidence: per query, the ranks of all its positives and the ten best items; every published metric follows from it.

One Parquet file per cell, one row per query and direction. It is a check of consistency, not of honesty: only scoring
again shows that the ranks are real.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from bench.errors import InputError
from bench.metrics import Ranks

MAX_BYTES = 512 << 20
Variant = Literal["", "clean", "unrounded"]
_PER_POSITIVE = ("items", "pessimistic", "optimistic")
_SCHEMA = pa.schema(
    [("direction", pa.string()), ("query", pa.int32()), ("image", pa.int32())]
    + [(name, pa.list_(pa.int32())) for name in (*_PER_POSITIVE, "top")]
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one direction's ranking left behind.

    Args:
        queries: index of each query in the collection, (n_queries,) int32.
        images: index of the image that each query belongs to, the unit of resampling, (n_queries,) int32.
        ranks: the ranks of each query's positives.
        items: which items those are, (n_pairs,) int32.
        top: the ten best items of each query, -1 where there are fewer, (n_queries, 10) int32.
    """

    queries: Int[np.ndarray, " n_queries"]
    images: Int[np.ndarray, " n_queries"]
    ranks: Ranks
    items: Int[np.ndarray, " n_pairs"]
    top: Int[np.ndarray, "n_queries 10"]


def in_variant(variant: Variant, direction: str) -> str:
    """What the evidence of `direction` is called in a cell's file: `t2i`, `clean t2i`, `unrounded t2i`."""
    return f"{variant} {direction}".strip()


def pack_evidence(evidence: Mapping[str, Evidence]) -> bytes:
    """The Parquet file of a cell; the same evidence gives the same bytes.

    Args:
        evidence: by direction; an attacked cell has the same queries besides without the attack, and before rounding
            (see `in_variant`).
    """
    table = pa.concat_tables([_to_table(direction, part) for direction, part in evidence.items()])
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_evidence(path: Path) -> dict[str, Evidence]:
    """A cell's evidence, by the names that `pack_evidence` was given.

    Raises:
        InputError: the file is missing, too large, not such a file, or its ranks are impossible; names the file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes; expected the evidence of one cell.")
        table = pq.read_table(path)
        if table.schema.names != _SCHEMA.names:
            raise InputError(f"{path} has the columns {table.schema.names}; expected {_SCHEMA.names}.")
        table = table.cast(_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as evidence: {error}.") from None
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise InputError(f"{path} has no rows or empty cells; expected one full row per query.")
    directions = np.array(table["direction"].to_pylist())
    try:
        return {
            name: _from_table(table.filter(pa.array(directions == name))) for name in dict.fromkeys(directions.tolist())
        }
    except (InputError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is no evidence: {error}") from None


def _to_table(direction: str, part: Evidence) -> pa.Table:
    offsets = pa.array(part.ranks.offsets, pa.int32())
    tops = pa.array(np.arange(0, part.top.size + 1, part.top.shape[1]), pa.int32())
    columns = [
        pa.array([direction] * len(part.queries), pa.string()),
        pa.array(part.queries, pa.int32()),
        pa.array(part.images, pa.int32()),
        *(
            pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
            for values in (part.items, part.ranks.pessimistic, part.ranks.optimistic)
        ),
        pa.ListArray.from_arrays(tops, pa.array(part.top.reshape(-1), pa.int32())),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _from_table(table: pa.Table) -> Evidence:
    columns = {name: table[name].combine_chunks() for name in (*_PER_POSITIVE, "top")}
    lengths = {name: column.value_lengths().to_numpy() for name, column in columns.items()}
    if any((lengths[name] != lengths["items"]).any() for name in _PER_POSITIVE) or (lengths["top"] != 10).any():
        raise InputError("a query's lists differ in length; expected both ranks of each positive, and ten best items.")
    flat = {name: column.flatten().to_numpy() for name, column in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(lengths["items"], dtype=np.int64)])
    return Evidence(
        queries=table["query"].to_numpy(),
        images=table["image"].to_numpy(),
        ranks=Ranks(offsets, flat["pessimistic"], flat["optimistic"]),
        items=flat["items"],
        top=flat["top"].reshape(-1, 10),
    )
