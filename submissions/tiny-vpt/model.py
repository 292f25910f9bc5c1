"""tiny-vpt: made by `rove fit vpt`."""

from __future__ import annotations

from submissions.vpt.model import load

__all__ = ["load"]
