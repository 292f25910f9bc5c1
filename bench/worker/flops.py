"""Floating-point operations, counted in the submission's process while torch carries them out.

Torch's counter sees the operators of matrix products, convolutions and attention, two operations for each product
that is added up. On a CPU it misses fused attention, products with a single vector and recurrent layers, which are
added here. Nothing sees what is computed in other threads, outside torch, with quantised weights or in kernels that a
package brings along; element-wise work is not counted by anyone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Shape = Sequence[int]


def count_flops(compute: Callable[[], object]) -> int | None:
    """The floating-point operations of `compute()`; None if torch has none to tell of.

    Source: torch.utils.flop_counter, whose formulae for attention count causal ones as if nothing were masked.
    """
    if "torch" not in sys.modules:
        return None
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_missing_formulae())
    with _no_fused_layers(), counter:
        compute()
    return counter.get_total_flops() or None


@contextmanager
def _no_fused_layers() -> Iterator[None]:
    """Torch's own transformer layers in their parts: at inference they are one operator, which nobody can count."""
    from torch.backends import mha

    enabled = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(enabled)


def _missing_formulae() -> dict[Any, Callable[..., int]]:
    import torch

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_fused_attention_overrideable: _attention,
        aten.mv: _matrix_vector,
        aten.addmv: lambda _, matrix, *rest, **options: _matrix_vector(matrix),
        aten.dot: _matrix_vector,
        aten.mkldnn_rnn_layer: lambda inputs, *weights, **options: _recurrent(inputs, weights[:2]),
        aten._cudnn_rnn: lambda inputs, weights, *rest, **options: _recurrent(inputs, weights),
    }


def _attention(queries: Shape, keys: Shape, values: Shape, *rest: object, **options: object) -> int:
    n_queries, n_keys = math.prod(queries[:-1]), keys[-2]
    return 2 * n_queries * n_keys * (queries[-1] + values[-1])


def _matrix_vector(matrix: Shape, *rest: object, **options: object) -> int:
    return 2 * math.prod(matrix)


def _recurrent(inputs: Shape, weights: Sequence[Shape]) -> int:
    """Each step multiplies its input and its state with a matrix; biases are shapes of one side."""
    n_steps = math.prod(inputs[:-1])
    return 2 * n_steps * sum(math.prod(weight) for weight in weights if len(weight) == 2)
