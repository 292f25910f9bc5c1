"""Torch's automatic differentiation in the submission's process: the graph that is kept, and runs that are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float


class HeldGraph:
    """What a submission computed from pixels, kept until its gradient is asked for; the latest only."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._ends: tuple[Any, Any] | None = None

    def run(self, function: Callable[[Any], Any], pixels: Float[np.ndarray, "n 3 height width"], grad: bool) -> Any:
        """What `function` makes of `pixels`, a tensor on the device; with `grad` the way back is kept."""
        import torch

        leaf = torch.from_numpy(pixels).to(self._device).requires_grad_(grad)
        if grad:
            self._ends = None
        with _no_autocast(), torch.set_grad_enabled(grad or torch.is_grad_enabled()):
            output = function(leaf)
        if grad:
            self._ends = leaf, output
        return output

    def pull_back(self, cotangent: Float[np.ndarray, "n ..."]) -> tuple[Any, bool]:
        """The vector-Jacobian product, shaped as the pixels were, and whether the output depended on them at all.

        The graph is freed. A detached output has a gradient of zeros.
        """
        import torch

        if self._ends is None:
            raise RuntimeError("there is no graph to pull a gradient back through")
        (leaf, output), self._ends = self._ends, None
        gradient = None
        if output.requires_grad:
            weights = torch.from_numpy(cotangent).to(output.device)
            with _no_autocast():
                (gradient,) = torch.autograd.grad(output, leaf, weights, allow_unused=True)
        return (torch.zeros_like(leaf) if gradient is None else gradient), gradient is not None


class _CountingEngine:
    """Torch's backward engine, whose runs are counted.

    Everything in Python that differentiates backwards ends here and looks the engine up when it is called, so that
    it does not matter which functions a submission imported beforehand.
    """

    def __init__(self, engine: Any) -> None:
        self._engine, self.runs = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run_backward(self, *arguments: Any, **options: Any) -> Any:
        self.runs += 1
        return self._engine.run_backward(*arguments, **options)


def autograd_runs() -> int:
    """How often this process has differentiated backwards since this was first called with torch loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    variable = torch.autograd.Variable
    if not isinstance(variable._execution_engine, _CountingEngine):
        variable._execution_engine = _CountingEngine(variable._execution_engine)
    return int(variable._execution_engine.runs)


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Attacks compute in float32, whatever the submission left switched on around us."""
    import torch

    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
