"""How large a Parquet file is when it is unpacked, by the headers of its pages.

What a file's footer says of its columns is only stated: a reader unpacks pages as large as their own headers say, so
that a few kilobytes can fill a machine's memory. The headers are read here before anything is unpacked, in the form
that Arrow writes them. Source: the Parquet format's `parquet.thrift`, and Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from bench.errors import InputError

_TAIL_BYTES = 8
_MAX_FOOTER_BYTES = 1 << 18
_MAX_DEPTH = 4
_DICTIONARY_PAGE, _DATA_PAGE = 2, 0
_PLAIN_OR_DICTIONARY = (0, 2, 8)  # others give long values from short ones
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12


class Pages(NamedTuple):
    """What the pages of one column of one row group come to."""

    n_values: int
    n_bytes: int


def check_footer(raw: bytes) -> None:
    """Nothing, if a file ends with a footer of the size that a few columns need.

    Raises:
        InputError: it does not.
    """
    size = struct.unpack("<I", raw[-_TAIL_BYTES:-4])[0] if len(raw) > _TAIL_BYTES else 0
    if raw[-4:] != b"PAR1" or not 0 < size <= min(_MAX_FOOTER_BYTES, len(raw) - _TAIL_BYTES):
        raise InputError(f"it is no Parquet file with a footer of at most {_MAX_FOOTER_BYTES} bytes.")


def measure_pages(raw: bytes, start: int, n_packed: int) -> Pages:
    """How many values a column's pages hold, and how many bytes they are unpacked; a dictionary's values count too.

    Args:
        start: where the first page's header begins.
        n_packed: bytes of all pages with their headers, as the footer states them; they must be just so many.

    Raises:
        InputError: they are not, or a page is of another kind than Arrow writes.
    """
    n_values, n_bytes, at, end = 0, 0, start, start + n_packed
    if not 0 < start < end <= len(raw):
        raise InputError("a column lies outside the file.")
    while at < end:
        header, at = _read_struct(raw, at)
        unpacked, packed = _whole_number(header, 2), _whole_number(header, 3)
        kind = _whole_number(header, 1)
        facts = header.get({_DATA_PAGE: 5, _DICTIONARY_PAGE: 7}.get(kind, -1), (None, None))[1]
        if not isinstance(facts, dict) or _whole_number(facts, 2) not in _PLAIN_OR_DICTIONARY:
            raise InputError("a page is of an unusual kind or encoding; expected pages as Arrow writes them.")
        n_values += _whole_number(facts, 1)
        n_bytes += unpacked
        at += packed
    if at != end:
        raise InputError("the pages of a column do not end where its footer says.")
    return Pages(n_values, n_bytes)


def _whole_number(fields: dict[int, tuple[int, Any]], number: int) -> int:
    """A field that is a 32-bit integer, and not negative."""
    kind, value = fields.get(number, (0, 0))
    if kind != _I32 or not 0 <= value < 2**31:
        raise InputError("a page's header lacks a size; expected pages as Arrow writes them.")
    return int(value)


def _read_struct(raw: bytes, at: int, depth: int = 0) -> tuple[dict[int, tuple[int, Any]], int]:
    """A struct's fields by number, each with its type, and where it ends; no field may stand twice."""
    fields: dict[int, tuple[int, Any]] = {}
    number = 0
    while raw[at]:
        kind, step = raw[at] & 15, raw[at] >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _read_integer(raw, at)
        if number in fields or depth > _MAX_DEPTH:
            raise InputError("a page's header has a field twice, or too deep; expected pages as Arrow writes them.")
        value, at = _read_value(raw, at, kind, depth)
        fields[number] = kind, value
    return fields, at + 1


def _read_value(raw: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in (_I16, _I32, _I64):
        return _read_integer(raw, at)
    if kind == _BINARY:
        size, at = _read_varint(raw, at)
        return None, at + size
    if kind == _STRUCT:
        return _read_struct(raw, at, depth + 1)
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    raise InputError("a page's header has a field of an unusual type; expected pages as Arrow writes them.")


def _read_integer(raw: bytes, at: int) -> tuple[int, int]:
    number, at = _read_varint(raw, at)
    return (number >> 1) ^ -(number & 1), at


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        number |= (raw[at] & 127) << shift
        at += 1
        if not raw[at - 1] & 128:
            return number, at
    raise InputError("a page's header has a number of more than ten bytes.")
