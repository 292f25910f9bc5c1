"""tiny-maple: made by `rove fit maple`."""

from __future__ import annotations

from submissions.maple.model import load

__all__ = ["load"]
