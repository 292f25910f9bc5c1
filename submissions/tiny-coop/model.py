"""tiny-coop: made by `rove fit coop`."""

from __future__ import annotations

from submissions.coop.model import load

__all__ = ["load"]
