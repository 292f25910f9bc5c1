"""tiny-lora: made by `rove fit lora`."""

from __future__ import annotations

from submissions.lora.model import load

__all__ = ["load"]
