"""Where an index lies: in memory, or on a GPU, for which faiss has only some kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.errors import UsageError
from bench.retrieval.index_spec import load_faiss

MAX_NPROBE = 2048
PQ_CODE_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Sizes of a code for which faiss has kernels. Source: GpuIndexIVFPQ and IVFPQ of facebookresearch/faiss."""
MAX_FLOAT32_CODE_BYTES = 48
"""Above, a query's table of 256 float32 a byte is more than 48 KiB of shared memory; float16 halves it."""
KINDS = "Flat, IVFn,Flat and IVFn,PQm of 8 bits"


def parse_device(device: str, index: Any, factory: str, search: Mapping[str, int]) -> int | None:
    """The number of the GPU; None for the processor.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        index: an empty one, which shall lie there.
        factory: its name.
        search: its parameters.

    Raises:
        UsageError: there is no such device, or faiss cannot put the index on it.
    """
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise UsageError(f"--index-device is {device!r}; expected cpu, cuda or cuda:N.")
    problem = find_gpu_problem(index, search)
    if problem:
        raise UsageError(f"{factory} cannot be searched on a GPU: {problem}. Choose --index-device cpu.")
    gpu, n_gpus = int(match[1] or 0), load_faiss().get_num_gpus()
    if gpu >= n_gpus:
        raise UsageError(
            f"--index-device is {device}, but this faiss sees {n_gpus} GPUs; expected rove-bench[gpu] in place of "
            "rove-bench[cpu], and such a device."
        )
    return gpu


def find_gpu_problem(index: Any, search: Mapping[str, int]) -> str | None:
    """Why faiss cannot search an index on a GPU; None if it can."""
    kind = type(index).__name__
    if kind not in ("IndexFlat", "IndexFlatIP", "IndexIVFFlat", "IndexIVFPQ"):
        return f"faiss has {KINDS} there; found {kind}"
    if search.get("nprobe", 1) > MAX_NPROBE:
        return f"nprobe is {search['nprobe']}; expected at most {MAX_NPROBE}"
    if kind != "IndexIVFPQ":
        return None
    if index.pq.nbits != 8 or not index.by_residual:
        return f"codes have {index.pq.nbits} bits; expected 8, of residuals"
    if index.pq.M not in PQ_CODE_BYTES:
        return f"a code has {index.pq.M} bytes; expected one of {', '.join(map(str, PQ_CODE_BYTES))}"
    return None


def move_to_gpu(index: Any, gpu: int) -> Any:
    """A copy of the index on a GPU, with tables of float16 where those of float32 would be too large for it."""
    faiss = load_faiss()
    options = faiss.GpuClonerOptions()
    options.useFloat16 = needs_float16_tables(index)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index, options)


def needs_float16_tables(index: Any) -> bool:
    """Whether the tables of an index of product codes only fit as float16."""
    return type(index).__name__ == "IndexIVFPQ" and index.pq.M > MAX_FLOAT32_CODE_BYTES
