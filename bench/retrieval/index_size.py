"""How large an index will be, and whether this machine has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.retrieval.index_spec import IndexSpec, load_faiss, make_empty

WORKING_ITEMS = 300_000
"""Vectors that are held beside the codes while an index is built: for training, of the shard, and in faiss's blocks."""
_SLACK = 1.05
_ID_BYTES = 8
_FLOAT_BYTES = 4
_UNLIMITED = 1 << 60


def estimate_bytes(spec: IndexSpec, n_items: int, dim: int) -> int:
    """Size of the finished index: codes, ids, lists, graph, centroids.

    Raises:
        UsageError: as `parse_index`.
    """
    empty = make_empty(spec.factory, dim)
    return round(_count_bytes(empty, n_items))


def check_fits(spec: IndexSpec, n_items: int, dim: int, folder: Path) -> None:
    """Sees to it that an index can be built in this machine's free memory and written to `folder`'s disk.

    Raises:
        InputError: it cannot; says what it would need, what there is, and names a smaller index.
    """
    n_bytes = estimate_bytes(spec, n_items, dim)
    needed, available = _needed_memory(n_bytes, dim), available_memory()
    if available is not None and needed > available:
        smaller = _find_smaller(n_items, dim, available)
        remedy = f"Choose --index '{smaller}' or a smaller --gallery." if smaller else "Choose a smaller --gallery."
        raise InputError(
            f"{spec.factory} over {n_items:,} x {dim} needs {_gib(needed)} of memory while it is built; available are "
            f"{_gib(available)}. {remedy}"
        )
    free = shutil.disk_usage(_existing(folder)).free
    if n_bytes > free:
        raise InputError(
            f"{spec.factory} over {n_items:,} x {dim} needs {_gib(n_bytes)} on the disk of {folder}; free are "
            f"{_gib(free)}. Free space, set ROVE_CACHE to another disk, or choose a smaller --index."
        )


def available_memory(processes: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can still take: what the machine has free, or its control group leaves it, whichever is
    less; None where the system does not tell.

    Args:
        processes: where proc(5) is mounted.
        groups: where cgroups(7) are mounted, of version 1 or 2.
    """
    try:
        lines = (processes / "meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([free, *_iterate_group_rooms(processes, groups)])


def _iterate_group_rooms(processes: Path, groups: Path) -> Iterator[int]:
    """What every control group that this process is in leaves it; files that are only cached can make way."""
    for folder, limit, used, kinds in _iterate_groups(processes, groups):
        try:
            most = (folder / limit).read_text().strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text())
        except (OSError, ValueError):
            continue
        if most != "max" and int(most) < _UNLIMITED:
            yield max(0, int(most) - taken + sum(int(stat.get(kind, 0)) for kind in kinds))


def _iterate_groups(processes: Path, groups: Path) -> Iterator[tuple[Path, str, str, tuple[str, str]]]:
    """The folders of the groups, from the innermost out, with the names of limit, usage and cached files."""
    try:
        lines = (processes / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            if not controllers:
                yield groups / part, "memory.max", "memory.current", ("active_file", "inactive_file")
            elif "memory" in controllers.split(","):
                folder = groups / "memory" / part
                kinds = ("total_active_file", "total_inactive_file")
                yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", kinds


def _needed_memory(n_bytes: int, dim: int) -> int:
    return round(_SLACK * n_bytes) + WORKING_ITEMS * dim * _FLOAT_BYTES


def _find_smaller(n_items: int, dim: int, available: int) -> str | None:
    """The most exact of some smaller indexes that would fit; None if none does."""
    n_codes = max(size for size in range(1, dim // 4 + 1) if dim % size == 0) if dim >= 4 else 1
    for ending in ("x4fs,Refine(SQfp16)", "x4fs,Refine(SQ8)", "x4fs"):
        spec = IndexSpec(f"IVF1024,PQ{n_codes}{ending}", {})
        if _needed_memory(estimate_bytes(spec, n_items, dim), dim) <= available:
            return spec.factory
    return None


def _count_bytes(index: Any, n_items: float) -> float:
    """Bytes of an index with `n_items`, given an empty one."""
    part = load_faiss().downcast_index(index)
    if hasattr(part, "refine_index"):
        return _count_bytes(part.base_index, n_items) + _count_bytes(part.refine_index, n_items)
    if hasattr(part, "chain"):
        return _count_transform_bytes(part) + _count_bytes(part.index, n_items)
    if hasattr(part, "hnsw"):
        return _count_bytes(part.storage, n_items) + n_items * _graph_bytes_per_item(part.hnsw)
    codes = _code_bytes(part)
    if hasattr(part, "nlist"):
        # The last block of every list of fast scan is half full on average.
        n_padding = part.nlist * part.bbs / 2 if hasattr(part, "bbs") else 0
        lists = n_items * (codes + _ID_BYTES) + n_padding * codes + part.nlist * 8
        return lists + _count_bytes(part.quantizer, part.nlist) + _count_codebook_bytes(part)
    return n_items * codes + _count_codebook_bytes(part)


def _code_bytes(index: Any) -> float:
    """Bytes of one item's code; fast scan rounds the number of its halves up."""
    return max(index.code_size, index.M2 / 2) if hasattr(index, "M2") else index.code_size


def _count_codebook_bytes(index: Any) -> float:
    if hasattr(index, "pq"):
        return index.pq.d * index.pq.ksub * _FLOAT_BYTES
    return 2 * index.d * _FLOAT_BYTES if hasattr(index, "sq") else 0


def _count_transform_bytes(index: Any) -> float:
    """Matrices; a PCA keeps the whole of its own beside the rows that it uses."""
    faiss, total = load_faiss(), 0
    for place in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(place))
        if isinstance(transform, faiss.LinearTransform):
            total += transform.d_in * transform.d_out
        if isinstance(transform, faiss.PCAMatrix):
            total += transform.d_in * transform.d_in
    return total * _FLOAT_BYTES


def _graph_bytes_per_item(hnsw: Any) -> float:
    """Neighbours of the ground level and, with one item in nb_neighbors(1) on each next level, those above; a place
    and a level beside them.
    """
    n_upper = hnsw.nb_neighbors(1)
    n_neighbours = hnsw.nb_neighbors(0) + n_upper / (n_upper - 1) if n_upper > 1 else hnsw.nb_neighbors(0)
    return 4 * n_neighbours + 8 + 4


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
