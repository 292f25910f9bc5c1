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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from bench.errors import InputError
from bench.metrics import Ranks
from bench.parquet_pages import Pages, check_footer, measure_pages
from bench.records import read_plain, without_control
from bench.types import Direction

MAX_BYTES = 64 << 20
MAX_ROWS = 1 << 20
MAX_VALUES = 8 << 20
_MAX_UNPACKED_BYTES = 256 << 20
_MAX_THRIFT = 1 << 16
_MAX_ROW_GROUPS = 8
_NAME = r"^[a-z0-9 ]{3,20}$"
Variant = Literal["", "clean", "unrounded"]
_PER_POSITIVE = ("items", "pessimistic", "optimistic")
_SCHEMA = pa.schema(
    [("direction", pa.string()), ("query", pa.int32()), ("image", pa.int32())]
    + [(name, pa.list_(pa.int32())) for name in (*_PER_POSITIVE, "top")]
)
_READ_SCHEMA = _SCHEMA.set(0, pa.field("direction", pa.dictionary(pa.int32(), pa.string())))


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

    @property
    def rows(self) -> Int[np.ndarray, " n_pairs"]:
        """The row among `queries` that each positive belongs to."""
        return np.repeat(np.arange(len(self.queries)), self.ranks.n_positives)

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        ranks = self.ranks
        arrays = (self.queries, self.images, self.items, self.top, ranks.offsets, ranks.pessimistic, ranks.optimistic)
        return sum(array.nbytes for array in arrays)

    def pairs(self, by_item: bool) -> Int[np.ndarray, "n_pairs 2"]:
        """Every query with each of its positives, or the other way round, in order, int64."""
        sides = (self.items, self.queries[self.rows]) if by_item else (self.queries[self.rows], self.items)
        pairs = np.stack(sides, axis=1).astype(np.int64)
        return pairs[np.lexsort(pairs.T[::-1])]


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
    pq.write_table(table, buffer, compression="zstd", data_page_version="1.0")
    return buffer.getvalue()


def read_evidence(path: Path, max_rows: int = MAX_ROWS) -> dict[str, Evidence]:
    """A cell's evidence, by the names that `pack_evidence` was given; sizes are looked at before anything is unpacked.

    Args:
        max_rows: how many queries there can be, all directions together.

    Raises:
        InputError: the file is missing, too large, not such a file, or its ranks are impossible; names the file.
    """
    try:
        raw = read_plain(path, MAX_BYTES)
        check_footer(raw)
        source = pq.ParquetFile(
            pa.BufferReader(raw),
            read_dictionary=["direction"],
            thrift_string_size_limit=_MAX_THRIFT,
            thrift_container_size_limit=_MAX_THRIFT,
        )
        _check_head(source, raw, max_rows)
        return _split(source.read(use_threads=False))
    except (OSError, MemoryError, LookupError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as evidence: {without_control(str(error)[:500])}.") from None
    except InputError as error:
        raise InputError(f"{path} is no evidence: {error}") from None


def _check_head(source: pq.ParquetFile, raw: bytes, max_rows: int) -> None:
    """Nothing, if a file's columns are those of evidence, and what they unpack to is of the size of one cell's."""
    found = source.schema_arrow.remove_metadata()
    if found != _READ_SCHEMA:
        names = without_control(", ".join(found.names[:10])[:200])
        raise InputError(f"the columns are {names}; expected {_describe(_READ_SCHEMA)}.")
    head = source.metadata
    if head.num_row_groups > _MAX_ROW_GROUPS or not 0 < head.num_rows <= min(max_rows, MAX_ROWS):
        rows = f"{head.num_rows} rows in {head.num_row_groups} groups"
        raise InputError(f"it has {rows}; expected 1 to {max_rows} rows in at most {_MAX_ROW_GROUPS} groups.")
    n_bytes = 0
    for place in range(head.num_columns):
        pages = [_measure(raw, head.row_group(group).column(place)) for group in range(head.num_row_groups)]
        n_bytes += sum(part.n_bytes for part in pages)
        n_values = sum(part.n_values for part in pages)
        if n_values > MAX_VALUES or n_bytes > _MAX_UNPACKED_BYTES:
            limits = f"{MAX_VALUES} values a column and {_MAX_UNPACKED_BYTES} bytes"
            raise InputError(f"it unpacks to {n_values} values in a column; expected at most {limits}.")


def _measure(raw: bytes, column: pq.ColumnChunkMetaData) -> Pages:
    """A column's pages, from where Arrow begins to read."""
    first, dictionary = column.data_page_offset, column.dictionary_page_offset
    start = dictionary if column.has_dictionary_page and 0 < dictionary < first else first
    return measure_pages(raw, start, column.total_compressed_size)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _split(table: pa.Table) -> dict[str, Evidence]:
    """The evidence of each direction, in the order in which they stand in the table."""
    if any(column.null_count for column in table.columns):
        raise InputError("it has empty cells; expected one full row per query.")
    directions = table["direction"].unify_dictionaries().combine_chunks()
    if not pc.all(pc.match_substring_regex(directions.dictionary, _NAME)).as_py():
        raise InputError("a direction has a strange name; expected names such as 't2i' or 'clean t2i'.")
    names, codes = directions.dictionary.to_pylist(), directions.indices.to_numpy()
    found, firsts = np.unique(codes, return_index=True)
    return {names[code]: _from_table(table.filter(pa.array(codes == code))) for code in found[np.argsort(firsts)]}


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


def check_evidence(direction: Direction, part: Evidence, n_images: int, n_captions: int, n_distractors: int) -> None:
    """Nothing, if a ranking of so many items can have left this behind: what is certain, whatever the scores were.

    Raises:
        InputError: it cannot; the message names what is wrong, not where.
    """
    n_own = n_captions if direction == "i2t" else n_images
    n_queries = n_captions if direction == "t2i" else n_images
    _check_queries(direction, part, n_queries)
    if part.items.min() < 0 or part.items.max() >= n_own:
        raise InputError(f"{direction} has a positive outside 0 to {n_own - 1}.")
    keys = np.sort(part.rows * n_own + part.items)
    if (keys[1:] == keys[:-1]).any():
        raise InputError(f"{direction} has a query with one positive twice.")
    _check_images(direction, part)
    n_ranked = n_own + n_distractors - (direction == "i2i")
    n_irrelevant = np.repeat(n_ranked - part.ranks.n_positives, part.ranks.n_positives)
    if (part.ranks.pessimistic - 1 - part.ranks.places > n_irrelevant).any():
        raise InputError(f"{direction} has a rank behind more items than there are.")
    _check_top(direction, part, n_own + n_distractors, n_ranked)


def _check_queries(direction: Direction, part: Evidence, n_queries: int) -> None:
    """Every item asks; of images that look for their like only those that are not alone with their label."""
    queries = part.queries
    rises = queries[0] >= 0 and queries[-1] < n_queries and (queries[1:] > queries[:-1]).all()
    if not rises or (direction != "i2i" and len(queries) != n_queries):
        raise InputError(f"the queries of {direction} are not the collection's {n_queries}, each once and in order.")


def _check_images(direction: Direction, part: Evidence) -> None:
    """A query's image is itself, or the first that its caption goes with; images with one label find one another."""
    firsts = np.minimum.reduceat(part.items, part.ranks.offsets[:-1])
    if not np.array_equal(part.images, firsts if direction == "t2i" else part.queries):
        raise InputError(f"{direction} names another image for a query than its positives do.")
    if direction != "i2i":
        return
    own = np.minimum(firsts, part.queries)
    labels = np.full(max(part.items.max(), part.queries.max()) + 1, -1)
    labels[part.queries] = own
    sizes = np.bincount(own, minlength=len(labels))
    alike = (labels[part.items] == own[part.rows]) & (part.items != part.queries[part.rows])
    if not alike.all() or (sizes[own] != part.ranks.n_positives + 1).any():
        raise InputError("the positives of i2i are no classes: expected all others of an image's label, not itself.")


def _check_top(direction: Direction, part: Evidence, n_items: int, n_ranked: int) -> None:
    """Ten different items, or all; among them the positives whose ranks say so, at a place within those ranks."""
    top, n_top = part.top.astype(np.int64), part.top.shape[1]
    filled = np.arange(n_top) < min(n_top, n_ranked)
    ordered = np.sort(top[:, filled], axis=1)
    strange = (ordered[:, 1:] == ordered[:, :-1]).any() or (direction == "i2i" and (top == part.queries[:, None]).any())
    if strange or ordered.min() < 0 or ordered.max() >= n_items or (top[:, ~filled] != -1).any():
        raise InputError(f"the best items of {direction} are not {filled.sum()} different ones of its gallery.")
    places = _places_in_top(part, n_items)
    inside = places > 0
    wrong = inside & ((places < part.ranks.optimistic) | (places > part.ranks.pessimistic))
    wrong |= ~inside & (part.ranks.pessimistic <= n_top)
    follows = part.rows[1:] == part.rows[:-1]
    wrong[1:] |= follows & inside[1:] & (~inside[:-1] | (places[1:] <= places[:-1]))
    if wrong.any():
        query = part.queries[part.rows[np.argmax(wrong)]]
        raise InputError(f"the ranks of query {query} of {direction} are not those at which its best items stand.")


def _places_in_top(part: Evidence, n_items: int) -> Int[np.ndarray, " n_pairs"]:
    """The place of each positive among its query's best items, from 1; 0 where it is not among them."""
    keys = part.rows * n_items + part.items
    order = np.argsort(keys)
    best = np.arange(len(part.top))[:, None] * n_items + part.top
    found = order[np.minimum(np.searchsorted(keys, best, sorter=order), len(keys) - 1)]
    is_positive = (keys[found] == best) & (part.top >= 0)
    places = np.zeros(len(keys), np.int64)
    places[found[is_positive]] = np.nonzero(is_positive)[1] + 1
    return places


def pairs_within(pairs: Int[np.ndarray, "n_pairs 2"], n_images: int, of_captions: bool) -> Int[np.ndarray, "n_part 2"]:
    """The pairs that a collection's first images have: what `Collection.head` leaves of its positives.

    Args:
        pairs: (image, caption) in order, or (image, image) of one label.
        of_captions: which of the two; captions are numbered anew, in their order.
    """
    if not of_captions:
        return pairs[(pairs < n_images).all(axis=1)]
    part = pairs[pairs[:, 0] < n_images]
    return np.stack([part[:, 0], np.unique(part[:, 1], return_inverse=True)[1].reshape(-1)], axis=1)
