"""tiny-ia3: made by `rove fit ia3`."""

from __future__ import annotations

from submissions.ia3.model import load

__all__ = ["load"]
