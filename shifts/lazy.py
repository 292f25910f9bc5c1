"""Functions that are imported when first called: a catalogue must list them without loading OpenCV or torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Lazy:
    """The function `name` of `shifts.<module>`."""

    module: str
    name: str

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself; a look-up at every call would cost a typo a tenth of its time."""
        return getattr(import_module(f"shifts.{self.module}"), self.name)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)
