"""The chart of recall against latency: what it says, where it says it, and that it says it twice alike."""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_timings import GALLERY, STREAM, latency, point, sweep_of

from bench.errors import InputError
from bench.timing_records import Sweep
from leaderboard.tradeoff import draw_tradeoff, find_family, find_reading_ms, write_tradeoff


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return sweep_of(
        point("Flat", 139.0, 1.0, best=True),
        point("HNSW32", 0.3, 0.9, best=True, ef=64),
        point("HNSW32", 0.2, 0.8, best=True, ef=32),
        point("IVF4096,PQ64", 0.9, 0.7, nprobe=128),
        point("PQ128x4fs,Refine(SQfp16)", 2.8, 0.9995, best=True, k_factor=100),
        flags=("noisy",),
    )


def rows_of(spec: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    """The data of the first layer with that mark."""
    layer = next(layer for layer in spec["layer"] if layer["mark"]["type"] == mark)
    return spec["datasets"][layer["data"]["name"]]


def texts_of(spec: dict[str, Any]) -> list[list[str]]:
    return [layer["mark"]["text"] for layer in spec["layer"] if layer["mark"]["type"] == "text"]


@pytest.mark.parametrize(
    ("factory", "family"),
    [
        ("Flat", "Flat"),
        ("IDMap2,Flat", "Flat"),
        ("HNSW32", "HNSW"),
        ("HNSW32,Flat", "HNSW"),
        ("HNSW32_SQ8", "HNSW-SQ"),
        ("IVF4096,Flat", "IVF-Flat"),
        ("IVF65536_HNSW32,Flat", "IVF-Flat"),
        ("IVF4096_HNSW32(nope),PQ64", "IVF-PQ"),
        ("IVF1024,PQ128x4fs,Refine(SQfp16)", "IVF-PQ refined"),
        ("OPQ64_128,IVF4096,PQ64x4fsr,RFlat", "IVF-PQ refined"),
        ("PQ128x4fs,Refine(SQfp16)", "PQ refined"),
        ("SQfp16", "SQ"),
        ("PCAR64,SQ8", "SQ"),
        ("IVF256,SQ4", "IVF-SQ"),
        ("IVF256,RaBitQ", "IVF-RaBitQ"),
        ("NSG32,Flat", "NSG"),
        ("Something", "other"),
    ],
)
def test_the_family_is_read_from_the_factory_string(factory: str, family: str) -> None:
    assert find_family(factory) == family


def test_reading_once_takes_the_bytes_over_the_bandwidth() -> None:
    bandwidth = STREAM.work / STREAM.median_ms
    assert find_reading_ms(sweep_of()) == pytest.approx(1_000_000 * 512 * 4 / bandwidth)
    assert find_reading_ms(sweep_of(references={})) is None


def test_points_lie_at_their_latency_and_lost_recall(sweep: Sweep) -> None:
    rows = rows_of(draw_tradeoff(sweep).to_dict(), "point")
    placed = {(row["index"], row["setting"]): (row["p50_ms"], row["lost"], row["best"]) for row in rows}
    assert placed.keys() == {
        ("Flat", ""), ("HNSW32", "ef 64"), ("HNSW32", "ef 32"), ("IVF4096,PQ64", "nprobe 128"),
        ("PQ128x4fs,Refine(SQfp16)", "k_factor 100"),
    }  # fmt: skip
    assert placed["HNSW32", "ef 64"] == (0.3, pytest.approx(10), True)
    assert placed["IVF4096,PQ64", "nprobe 128"] == (0.9, pytest.approx(30), False)
    for row in rows:
        assert 0 <= row["least_lost"] <= row["lost"] <= row["most_lost"]
        assert row["recall"].startswith(f"{100 - row['lost']:.2f} %")


def test_the_line_joins_the_best_points_alone(sweep: Sweep) -> None:
    spec = draw_tradeoff(sweep).to_dict()
    assert [row["p50_ms"] for row in rows_of(spec, "line")] == [0.2, 0.3, 2.8, 139.0]
    labels = list(itertools.chain(*texts_of(spec)))
    assert labels.count("HNSW32") == 1
    assert {"ef 32", "ef 64", "Flat"} <= set(labels)
    assert not {"IVF4096,PQ64", "nprobe 128"} & set(labels)


def test_it_says_what_was_searched_on_what(sweep: Sweep) -> None:
    title = draw_tradeoff(sweep).to_dict()["title"]
    assert title["text"] == "pocket: 1,000,000 items, 999,000 synthetic"
    assert title["subtitle"][0].split(" · ")[1:] == ["x86-64, 2 cores", "noisy"]


def test_the_order_of_points_and_earlier_charts_change_no_byte(sweep: Sweep, tmp_path: Path) -> None:
    written = []
    for number, points in enumerate(itertools.islice(itertools.permutations(sweep.points), 0, 120, 59)):
        picture, text = write_tradeoff(sweep.model_copy(update={"points": points}), tmp_path / str(number))
        written.append(text.read_bytes())
    assert len(set(written)) == 1
    assert json.loads(written[0])["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert 1400 <= width <= 1800
    assert 900 <= height <= 1100


@pytest.mark.parametrize(
    "alone",
    [
        sweep_of(point("Flat", 139.0, 1.0, best=True)),
        sweep_of(point("HNSW32", 0.1, 0.0, best=True, ef=1), references={}),
        sweep_of(point("LSH", 62.0, 0.5), point("Strange9", 62.0, 0.5), gallery=GALLERY.model_copy(update={"dim": 8})),
    ],
)
def test_sweeps_of_next_to_nothing_are_drawn(alone: Sweep, tmp_path: Path) -> None:
    picture, _ = write_tradeoff(alone, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_points_without_a_median_are_left_out(sweep: Sweep) -> None:
    untimed = sweep.points[0].model_copy(update={"latency": latency(1.0).model_copy(update={"p50_ms": None})})
    rows = rows_of(draw_tradeoff(sweep_of(untimed, *sweep.points[1:])).to_dict(), "point")
    assert "Flat" not in {row["index"] for row in rows}
    with pytest.raises(InputError, match="no median"):
        draw_tradeoff(sweep_of(untimed))


def test_importing_it_imports_neither_altair_nor_a_model() -> None:
    code = (
        "import sys, leaderboard.tradeoff\n"
        "wrong = {'altair', 'vl_convert', 'torch', 'faiss', 'shifts'} & set(sys.modules)\n"
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
