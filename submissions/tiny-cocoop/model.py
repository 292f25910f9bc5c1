"""tiny-cocoop: made by `rove fit cocoop`."""

from __future__ import annotations

from submissions.cocoop.model import load

__all__ = ["load"]
