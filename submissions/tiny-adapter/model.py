"""tiny-adapter: made by `rove fit adapter`."""

from __future__ import annotations

from submissions.adapter.model import load

__all__ = ["load"]
