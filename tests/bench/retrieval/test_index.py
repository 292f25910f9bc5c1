"""Indexes against brute force in NumPy, their files against what was written, and the errors in between."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from bench.errors import InputError, MissingError, RoveError, UsageError
from bench.retrieval import index as index_module
from bench.retrieval import index_size
from bench.retrieval.index import (
    IndexSpec,
    Searcher,
    build_index,
    check_fits,
    default_index,
    estimate_bytes,
    open_index,
    parse_index,
    read_index_file,
    recover_index,
)
from bench.retrieval.index_device import find_gpu_problem, needs_float16_tables
from bench.retrieval.index_size import available_memory
from bench.retrieval.index_spec import make_empty

N_ITEMS, DIM, K = 6_000, 64, 10
RECALL_BY_FACTORY = {
    "Flat": 1.0,
    "HNSW32": 0.98,
    "HNSW32_SQ8": 0.95,
    "IVF32,Flat": 0.98,
    "IVF32,PQ32": 0.85,
    "IVF32,PQ32x4fs": 0.5,
    "IVF32,PQ32,RFlat": 0.98,
    "IVF32,PQ32x4fs,Refine(SQfp16)": 0.98,
    "PQ32x4fs,Refine(SQfp16)": 0.99,
    "HNSW32_SQ8,Refine(SQfp16)": 0.98,
    "SQ8": 0.95,
    "SQfp16": 0.99,
    "PCAR32,PQ16x4fs,Refine(SQ8)": 0.95,
    "OPQ16_32,IVF32,PQ16x4fs,RFlat": 0.95,
    "IVF32,RaBitQ,RFlat": 0.98,
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Clusters of unit vectors."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, DIM))
    return unit(centres[rng.integers(0, 40, N_ITEMS)] + 0.7 * rng.standard_normal((N_ITEMS, DIM)))


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return unit(vectors[::60] + 0.15 * rng.standard_normal((100, DIM)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def shards_of(vectors: np.ndarray, n: int = 1_700) -> Iterator[np.ndarray]:
    return (vectors[start : start + n] for start in range(0, len(vectors), n))


def build(factory: str, vectors: np.ndarray, folder: Path) -> IndexSpec:
    spec = parse_index(factory, vectors.shape[1])
    build_index(spec, vectors[:4000], shards_of(vectors), len(vectors), folder)
    return spec


@pytest.fixture(scope="module")
def built(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the index of that name; each is built once."""
    folders: dict[str, Path] = {}

    def find(factory: str) -> Path:
        if factory not in folders:
            folders[factory] = tmp_path_factory.mktemp("index")
            build(factory, vectors, folders[factory])
        return folders[factory]

    return find


def refuse_json(*_: object) -> None:
    raise RoveError("disk full")


@pytest.mark.parametrize("factory", RECALL_BY_FACTORY)
def test_every_family_finds_what_brute_force_finds(
    factory: str, built: Callable[[str], Path], vectors: np.ndarray, queries: np.ndarray
) -> None:
    searcher = open_index(built(factory), parse_index(factory, DIM).search)

    scores, rows = searcher.search(queries, K)

    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]
    overlap = np.mean([np.isin(found, best).mean() for found, best in zip(rows, exact, strict=True)])
    assert overlap >= RECALL_BY_FACTORY[factory]
    assert (rows.dtype, scores.dtype, rows.shape) == (np.int64, np.float32, (len(queries), K))
    assert (np.diff(scores, axis=1) <= 0).all()
    if "," not in factory or "R" in factory:
        true = np.take_along_axis(queries @ vectors.T, rows, axis=1)
        np.testing.assert_allclose(scores, true, atol=0.02)


@pytest.mark.parametrize("factory", RECALL_BY_FACTORY)
def test_a_file_is_estimated_within_a_tenth(factory: str, built: Callable[[str], Path]) -> None:
    n_bytes = (built(factory) / "index.faiss").stat().st_size

    assert estimate_bytes(parse_index(factory, DIM), N_ITEMS, DIM) == pytest.approx(n_bytes, rel=0.1)


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF32,PQ32", "IVF32,PQ32x4fs,Refine(SQfp16)", "PCAR32,SQ8"])
def test_an_opened_index_answers_as_faiss_does_in_memory(
    factory: str, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    build(factory, vectors, tmp_path)
    # Without the ordering of codebooks that is left out of a build because it changes no answer.
    name = factory.replace("PQ32", "PQ32np") if factory.endswith("PQ32") else factory
    reference = faiss.index_factory(DIM, name, faiss.METRIC_INNER_PRODUCT)
    reference.train(vectors[:4000])
    for shard in shards_of(vectors):
        reference.add(shard)
    parameters = {"nprobe": 4} if "IVF" in factory else {"ef": 40} if "HNSW" in factory else {}
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(reference, "efSearch" if name == "ef" else name, value)
    if "Refine" in factory:
        parameters["k_factor"], reference.k_factor = 7, 7

    scores, rows = open_index(tmp_path, parameters).search(queries, K)

    expected_scores, expected_rows = reference.search(queries, K)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_parameters_change_what_is_found(
    built: Callable[[str], Path], vectors: np.ndarray, queries: np.ndarray
) -> None:
    searcher = open_index(built("IVF32,PQ32x4fs,Refine(SQfp16)"), {"nprobe": 1, "k_factor": 50})
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]

    def overlap() -> float:
        rows = searcher.search(queries, K).rows
        return float(np.mean([np.isin(found, best).mean() for found, best in zip(rows, exact, strict=True)]))

    few_lists = overlap()
    searcher.set_parameters({"nprobe": 32, "k_factor": 1})
    few_candidates = overlap()
    searcher.set_parameters({})
    assert max(few_lists, few_candidates) < overlap() - 0.01
    with pytest.raises(UsageError, match="ef=3; expected only parameters of that index: it has"):
        searcher.set_parameters({"ef": 3})


@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "PQ32x4fs,Refine(SQfp16)"])
def test_more_than_there_is_leaves_rows_of_minus_one(
    factory: str, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    build(factory, vectors, tmp_path)

    rows = open_index(tmp_path, {}).search(queries[:2], N_ITEMS + 3).rows

    assert (rows[:, -3:] == -1).all()
    assert [len(np.unique(row[row >= 0])) for row in rows] == [N_ITEMS, N_ITEMS]


OPEN_AND_TELL = """
import sys
from pathlib import Path
import faiss
from bench.retrieval.index import open_index

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

faiss.omp_set_num_threads(1)
open_index(Path(sys.argv[1]), {})
before = anonymous_bytes()
searcher = open_index(Path(sys.argv[2]), {})
print(int(searcher.mapped), anonymous_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs proc(5)")
@pytest.mark.parametrize(
    ("factory", "mapped"),
    [("Flat", True), ("IVF4,Flat", True), ("HNSW8", True), ("PQ32x4fs,Refine(SQfp16)", True), ("PQ64x4fs", False)],
)
def test_what_is_called_mapped_takes_no_memory(
    factory: str, mapped: bool, vectors: np.ndarray, built: Callable[[str], Path], tmp_path: Path
) -> None:
    large = np.tile(vectors, (30 if factory != "HNSW8" else 3, 1))
    facts = build_index(parse_index(factory, DIM), vectors, shards_of(large, 20_000), len(large), tmp_path)

    arguments = [sys.executable, "-c", OPEN_AND_TELL, str(built("Flat")), str(tmp_path)]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()

    assert int(said[0]) == mapped
    assert (int(said[1]) < facts.n_bytes / 2) == mapped


def test_a_search_after_the_cache_was_dropped_finds_the_same(built: Callable[[str], Path], queries: np.ndarray) -> None:
    searcher = open_index(built("IVF32,Flat"), {"nprobe": 3})
    before = searcher.search(queries, K)

    searcher.drop_cached()

    np.testing.assert_array_equal(searcher.search(queries, K).rows, before.rows)


def test_what_is_known_of_an_index_is_kept(vectors: np.ndarray, tmp_path: Path) -> None:
    spec = parse_index("IVF32,PQ32", DIM)

    facts = build_index(spec, vectors, shards_of(vectors), N_ITEMS, tmp_path)

    assert read_index_file(tmp_path) == facts
    assert (facts.factory, facts.n_items, facts.dim, facts.faiss) == ("IVF32,PQ32", N_ITEMS, DIM, faiss.__version__)
    assert facts.n_bytes == (tmp_path / "index.faiss").stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["index.facts", "index.faiss"]
    searcher = open_index(tmp_path, spec.search)
    assert (searcher.n_items, searcher.dim, searcher.n_bytes) == (N_ITEMS, DIM, facts.n_bytes)


def test_the_same_vectors_give_the_same_file(vectors: np.ndarray, tmp_path: Path) -> None:
    factory = "IVF32,PQ32x4fs,Refine(SQfp16)"
    for name in ("a", "b"):
        build(factory, vectors, tmp_path / name)

    a, b = (read_index_file(tmp_path / name) for name in ("a", "b"))

    assert a is not None
    assert b is not None
    assert a.sha256 == b.sha256


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[-100:]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("how", "says"), [("truncated", "bytes; expected"), ("flipped", "sha256 .*; expected")])
def test_a_damaged_file_does_not_open(vectors: np.ndarray, tmp_path: Path, how: str, says: str) -> None:
    build("SQ8", vectors, tmp_path)
    spoil(tmp_path / "index.faiss", how)

    with pytest.raises(InputError, match=rf"index\.faiss has .*{says}.*--rebuild"):
        open_index(tmp_path, {})


@pytest.mark.parametrize("name", ["index.faiss", "index.facts"])
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_index_is_set_aside(
    vectors: np.ndarray, tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    build("SQ8", vectors, tmp_path)
    assert recover_index(tmp_path) == read_index_file(tmp_path)
    spoil(tmp_path / name, how)

    assert recover_index(tmp_path) is None

    assert (tmp_path / f"{name}.bad").exists()
    assert f"set aside as {name}.bad" in caplog.text
    assert read_index_file(tmp_path) is None


def test_a_folder_without_an_index_does_not_open(tmp_path: Path) -> None:
    assert read_index_file(tmp_path) is None
    with pytest.raises(InputError, match=r"holds no finished index.*--rebuild"):
        open_index(tmp_path, {})


def test_a_build_that_stops_leaves_nothing_that_opens(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("SQ8", vectors, tmp_path)
    monkeypatch.setattr(index_module, "write_atomic", refuse_json)

    with pytest.raises(RoveError, match="disk full"):
        build("SQ8", vectors, tmp_path)

    assert read_index_file(tmp_path) is None


@pytest.mark.parametrize("n_items", [N_ITEMS - 1, N_ITEMS + 1])
def test_rows_are_counted(vectors: np.ndarray, tmp_path: Path, n_items: int) -> None:
    with pytest.raises(InputError, match=rf"expected.*|{n_items:,}"):
        build_index(parse_index("SQ8", DIM), vectors, shards_of(vectors), n_items, tmp_path)

    assert os.listdir(tmp_path) == []


def test_a_shard_of_other_vectors_is_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the shard from row 6,000 on is float64 .*; expected float32 \(n_items, 64\)"
    ):
        build_index(parse_index("Flat", DIM), vectors, [vectors, vectors.astype(float)], 2 * N_ITEMS, tmp_path)


def test_a_sample_that_is_too_small_is_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be trained with 40 vectors"):
        build_index(parse_index("IVF64,Flat", DIM), vectors[:40], shards_of(vectors), N_ITEMS, tmp_path)


@pytest.fixture(scope="module")
def searcher(built: Callable[[str], Path]) -> Searcher:
    return open_index(built("Flat"), {})


@pytest.mark.parametrize(
    ("asked", "k", "says"),
    [
        (np.zeros((2, 63), np.float32), 1, "queries have 63 dimensions; expected 64"),
        (np.zeros((2, 64)), 1, "queries are float64"),
        (np.zeros(64, np.float32), 1, "expected contiguous float32"),
        (np.zeros((64, 2), np.float32).T, 1, "in pieces"),
        (np.zeros((2, 64), np.float32), 0, "the best 0 items"),
    ],
)
def test_wrong_queries_are_refused(searcher: Searcher, asked: np.ndarray, k: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        searcher.search(asked, k)


@pytest.mark.parametrize(
    ("factory", "given", "says"),
    [
        ("Flatt", {}, "could not parse index string Flatt. There are, for instance, 'Flat'"),
        ("", {}, "faiss knows no index ''"),
        ("PQ7", {}, "should be a multiple of the number of subquantizers"),
        ("Flat", {"nprobe": 4}, "Flat was given nprobe=4; expected only parameters of that index: it has none"),
        ("IVF16,Flat", {"ef": 4}, "it has nprobe"),
        ("IVF16,Flat", {"nprobe": 17}, "expected at most 16, the lists"),
        ("IVF16,Flat", {"nprobe": 0}, "nprobe is 0; expected at least 1"),
        ("HNSW16,PQ16", {}, "only has for Euclidean distances"),
        ("NSG16", {}, "items cannot be added"),
        ("IDMap,Flat", {}, "items cannot be added"),
    ],
)
def test_what_faiss_does_not_have_is_refused(factory: str, given: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_index(factory, DIM, **given)

    assert ".cpp" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_have_defaults_and_names() -> None:
    spec = parse_index("IVF4096,PQ64", 512, nprobe=32)

    assert spec.id == "IVF4096,PQ64 nprobe=32"
    assert parse_index("IVF4096,PQ64", 512).search == {"nprobe": 128}
    assert parse_index("IVF16,PQ64x4fs,RFlat", 128).search == {"nprobe": 16, "k_factor": 200}
    assert parse_index("IVF16,PQ64x4fs,RFlat", 128, 50).search == {"nprobe": 16, "k_factor": 40}
    assert parse_index("OPQ16_32,HNSW32,Refine(SQ8)", 64).search == {"ef": 128, "k_factor": 200}


@pytest.mark.parametrize("dim", [64, 128, 384, 512, 768, 1536, 2048, 301])
@pytest.mark.parametrize("n_items", [1_000, 1_000_000, 10_000_000])
def test_there_is_a_default_for_every_size(n_items: int, dim: int) -> None:
    spec = default_index(n_items, dim)

    assert (spec.factory == "Flat") == (n_items == 1_000)
    assert parse_index(spec.factory, dim) == spec


def test_ten_million_of_512_fit_twenty_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_size, "available_memory", lambda: 20 << 30)
    monkeypatch.setattr(index_size.shutil, "disk_usage", lambda _: Disk(1 << 50))

    check_fits(default_index(10_000_000, 512), 10_000_000, 512, tmp_path / "not" / "there")


class Disk:
    def __init__(self, free: int) -> None:
        self.free = free


def test_an_index_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_size, "available_memory", lambda: 8 << 30)

    with pytest.raises(InputError, match=r"Flat over .* 19\.\d\d|20\.\d\d") as caught:
        check_fits(parse_index("Flat", 512), 10_000_000, 512, tmp_path)

    assert "available are 8.00 GiB. Choose --index 'IVF1024,PQ128x4fs,Refine(SQ8)'" in str(caught.value)
    with pytest.raises(InputError, match="Choose a smaller --gallery"):
        check_fits(parse_index("Flat", 512), 1_000_000_000, 512, tmp_path)


def test_an_index_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_size.shutil, "disk_usage", lambda _: Disk(1 << 20))

    with pytest.raises(InputError, match=r"needs 0\.02 GiB on the disk .* free are 0\.00 GiB"):
        check_fits(parse_index("Flat", 512), 10_000, 512, tmp_path)


def write_files(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 1000000 kB\n"}
CACHED = "active_file 1000\ninactive_file 2000\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, 1_024_000_000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "groups/a/memory.max": "500000\n",
                "groups/a/memory.current": "400000\n",
                "groups/a/memory.stat": CACHED,
                "groups/a/b/memory.max": "max\n",
                "groups/a/b/memory.current": "1\n",
                "groups/a/b/memory.stat": CACHED,
            },
            103_000,
        ),
        (
            {
                "proc/self/cgroup": "9:cpu,cpuacct:/\n4:memory:/a\n",
                "groups/memory/a/memory.limit_in_bytes": "7000",
                "groups/memory/a/memory.usage_in_bytes": "5000",
                "groups/memory/a/memory.stat": "total_active_file 10\ntotal_inactive_file 20\n",
            },
            2030,
        ),
    ],
)
def test_available_memory_is_what_the_control_group_leaves(
    texts: dict[str, str], expected: int, tmp_path: Path
) -> None:
    write_files(tmp_path, MEMINFO | texts)

    assert available_memory(tmp_path / "proc", tmp_path / "groups") == expected


def test_memory_is_unknown_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("factory", "search", "problem"),
    [
        ("Flat", {}, None),
        ("IVF64,Flat", {"nprobe": 64}, None),
        ("IVF4096,Flat", {"nprobe": 2049}, "nprobe is 2049; expected at most 2048"),
        ("IVF64,PQ64", {"nprobe": 8}, None),
        ("IVF64,PQ128", {"nprobe": 8}, "a code has 128 bytes; expected one of 1, 2,"),
        ("IVF64,PQ64x6", {"nprobe": 8}, "6 bits; expected 8"),
        ("IVF64,PQ64x4fs", {"nprobe": 8}, "found IndexIVFPQFastScan"),
        ("HNSW32", {"ef": 8}, "found IndexHNSWFlat"),
        ("IVF64,PQ64,RFlat", {"nprobe": 8}, "found IndexRefineFlat"),
    ],
)
def test_what_a_gpu_cannot_do_is_known_without_one(factory: str, search: dict[str, int], problem: str | None) -> None:
    found = find_gpu_problem(make_empty(factory, 512), search)

    assert found is None if problem is None else problem in (found or "")


def test_large_codes_need_small_tables_on_a_gpu() -> None:
    factories = ("IVF64,PQ32", "IVF64,PQ64", "IVF64,Flat")

    assert [needs_float16_tables(make_empty(factory, 512)) for factory in factories] == [False, True, False]


@pytest.mark.parametrize(
    ("device", "factory", "says"),
    [
        ("cuda", "HNSW32", "cannot be searched on a GPU: faiss has Flat"),
        ("tpu", "Flat", "expected cpu, cuda or cuda:N"),
        ("cuda:99", "Flat", r"expected rove-bench\[gpu\] in place of rove-bench\[cpu\]"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(
    device: str, factory: str, says: str, built: Callable[[str], Path]
) -> None:
    with pytest.raises(UsageError, match=says):
        open_index(built(factory), {}, device)


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "IVF32,PQ32"])
def test_a_gpu_finds_what_the_processor_finds(factory: str, built: Callable[[str], Path], queries: np.ndarray) -> None:
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("this faiss sees no GPU")
    on_cpu, on_gpu = (open_index(built(factory), {}, device) for device in ("cpu", "cuda"))

    both = zip(on_gpu.search(queries, K).rows, on_cpu.search(queries, K).rows, strict=True)
    found = np.mean([np.isin(a, b).mean() for a, b in both])

    assert found > 0.95
    assert not on_gpu.mapped


def test_without_faiss_both_extras_are_named() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingError, match=r"rove-bench\[cpu\] or rove-bench\[gpu\]"):
            parse_index("Flat", DIM)
