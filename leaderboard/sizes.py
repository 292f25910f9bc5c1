"""Bytes as people read them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB")


def name_size(n_bytes: int) -> str:
    """`2.0 GB` for 2,048,000,000: in the largest decimal unit of which there is one, to a tenth, cut off.

    Integers alone, so that no number that a record may state is too large.
    """
    power = min((len(str(n_bytes)) - 1) // 3, len(_UNITS) - 1)
    whole, tenth = divmod(10 * n_bytes // 1000**power, 10)
    return f"{whole:,}.{tenth} {_UNITS[power]}" if power else f"{n_bytes} B"
