"""What is recommended under limits, what is not and why, and the command's own reading of names and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from made_entries import NO_HITS, made_entry, made_resamples
from made_timings import GALLERY, latency, timing_of
from typer.testing import CliRunner

from bench.cli import recommending
from bench.errors import InputError, RoveError, UsageError
from bench.records import estimate
from bench.timing_records import TimingRecord
from leaderboard import boards
from leaderboard.boards import Board, Boards, Row, Source, Unranked
from leaderboard.entries import Entry
from leaderboard.ranking import rank
from leaderboard.recommend import Advice, Limits, Terms, find_nearest, find_terms, recommend

CPU, GPU = "Example CPU, 2 threads, cpu", "Example CPU, 2 threads, Example GPU"


def entry_of(
    label: str, r1: float, lost: float, parameters: int | None, *timings: dict[str, Any], rerank_k: int | None = None
) -> Entry:
    """An entry of one family, with timings as `timing` takes them."""
    entry = made_entry(label, families={"noise": (r1, lost)}, parameters=parameters, rerank_k=rerank_k)
    return entry.model_copy(update={"timings": tuple(timing(entry, **facts) for facts in timings)})


def timing(
    entry: Entry, p50_ms: float | None, n_items: int = 1_000, hardware: str = CPU, overlap: float = 1.0, **changes: Any
) -> TimingRecord:
    record = timing_of(
        entry.manifest, **{"rerank_k": entry.manifest.rerank_k or 0, "hardware_class": hardware} | changes
    )
    whole = latency(1.0).model_copy(update={"p50_ms": p50_ms})
    alone = record.served[0].model_copy(update={"stages": {"encode": latency(0.1), "end_to_end": whole}})
    return record.model_copy(
        update={
            "served": (record.served[1], alone),
            "gallery": GALLERY.model_copy(update={"n_real": 1_000, "n_synthetic": n_items - 1_000}),
            "recall": record.recall.model_copy(update={"overlap": estimate(overlap, overlap, overlap)}),
        }
    )


def by_label(advice: list[Advice]) -> dict[str, Advice]:
    return {one.label: one for one in advice}


def kept(advice: list[Advice]) -> list[str]:
    return [one.label for one in advice if one.kept]


@pytest.fixture
def entries() -> list[Entry]:
    """The large one is best and slow, the small one fast; the middle one finds no more than the small one."""
    return [
        entry_of("small", 0.40, 0.20, 20_000_000, {"p50_ms": 5.0}),
        entry_of("large", 0.60, 0.10, 900_000_000, {"p50_ms": 80.0}),
        entry_of("middle", 0.40, 0.25, 150_000_000, {"p50_ms": 9.0}),
        entry_of("untimed", 0.50, 0.15, 100_000_000),
    ]


def test_without_limits_only_what_is_dominated_falls_out(entries: list[Entry]) -> None:
    advice = recommend(entries, Limits())
    assert [one.label for one in advice] == ["large", "untimed", "small", "middle"]
    assert kept(advice) == ["large", "untimed", "small"]
    (reason,) = by_label(advice)["middle"].reasons
    # Not the small one, which dominates it too: of several the one that finds most is named.
    assert reason.startswith("dominated by untimed: R@1 under shift 50.00 % (47.50 to 52.50) against 40.00 %")
    assert "lost 15.00 % (12.50 to 17.50) against 25.00 %" in reason
    assert "parameters 100,000,000 against 150,000,000" in reason


def test_every_limit_that_is_missed_is_a_reason_with_figure_and_limit(entries: list[Entry]) -> None:
    limits = Limits(max_latency_ms=50, max_parameters=100_000_000, max_lost=0.18, min_r1=0.45)
    advice = by_label(recommend(entries, limits))
    assert not any(one.kept for one in advice.values())
    assert advice["large"].reasons == (
        "900,000,000 parameters; at most 100,000,000 are asked",
        "80.00 ms a query; at most 50 ms are asked",
    )
    assert advice["small"].reasons == (
        "loses 20.00 % (17.50 to 22.50) of its R@1; at most 18 % are asked",
        "R@1 under shift is 40.00 % (37.50 to 42.50); at least 45 % are asked",
    )
    assert advice["untimed"].reasons == (f"not timed over 1,000 items on {CPU}: `rove time untimed --gallery 1000`",)


@pytest.mark.parametrize(
    "limits", [Limits(max_latency_ms=80), Limits(max_parameters=900_000_000), Limits(max_lost=0.1), Limits(min_r1=0.6)]
)
def test_a_limit_that_is_just_kept_is_kept(entries: list[Entry], limits: Limits) -> None:
    assert not by_label(recommend(entries, limits))["large"].reasons


def test_strict_asks_it_of_the_intervals_far_end(entries: list[Entry]) -> None:
    for limits in ({"max_lost": 0.11}, {"min_r1": 0.59}):
        assert "large" in kept(recommend(entries, Limits(**limits)))
        assert "large" not in kept(recommend(entries, Limits(**limits, strict=True)))
    for limits in ({"max_lost": 0.13}, {"min_r1": 0.57}):
        assert kept(recommend(entries, Limits(**limits, strict=True))) == ["large"]


def test_nothing_is_dominated_by_what_finds_less_however_little_it_loses() -> None:
    advice = recommend([entry_of("guess", 0.01, 0.0, 1_000), entry_of("model", 0.5, 0.2, 10_000_000)], Limits())
    assert kept(advice) == ["model", "guess"]


def test_latency_counts_only_where_it_is_known_of_all_that_pass(entries: list[Entry]) -> None:
    fast = entry_of("fast", 0.35, 0.3, 30_000_000, {"p50_ms": 2.0})
    untimed = [*entries, fast]
    (reason,) = by_label(recommend(untimed, Limits()))["fast"].reasons
    assert reason.startswith("dominated by small")
    assert reason.endswith("latency left out because not all that pass were timed alike")
    assert kept(recommend(untimed, Limits(max_latency_ms=50))) == ["small", "fast"]


def test_equals_are_recommended_together_and_unknown_sizes_are_the_largest() -> None:
    twins = [entry_of(name, 0.5, 0.2, 1_000) for name in ("b", "a")]
    hidden = entry_of("hidden", 0.5, 0.2, None)
    advice = recommend([*twins, hidden], Limits())
    assert kept(advice) == ["a", "b"]
    assert "parameters 1,000 against unknown" in advice[-1].reasons[0]
    (reason,) = by_label(recommend([hidden], Limits(max_parameters=10)))["hidden"].reasons
    assert reason == "nobody knows its parameters; at most 10 are asked"


def test_what_is_not_ranked_is_not_recommended() -> None:
    limited = made_entry("limited", unranked="only 10 images")
    blank = made_entry("blank", families={})
    advice = by_label(recommend([limited, blank], Limits()))
    assert advice["limited"].reasons == ("not ranked: only 10 images",)
    assert advice["blank"].reasons == ("not ranked: no shifted cell was scored",)
    assert advice["limited"].held is advice["blank"].held is None


def test_terms_are_what_most_rows_were_timed_under() -> None:
    small, medium, large = ({"p50_ms": 1.0, "n_items": n_items} for n_items in (1_000, 10_000, 100_000))
    # Many timings of one row are one row's, and the GPU's sizes are not the CPU's.
    on_gpu = [{**medium, "hardware": GPU, "threads": threads} for threads in (1, 2, 4, 8)]
    rows = [[small, large], [small, medium, large], [large, small, *on_gpu], on_gpu]
    timed = [entry_of(f"row-{i}", 0.5, 0.2, 1_000, *facts) for i, facts in enumerate(rows)]
    assert find_terms(timed, Limits()) == Terms(1_000, CPU)
    assert find_terms(timed, Limits(hardware="example gpu")) == Terms(10_000, GPU)
    assert find_terms(timed, Limits(n_items=10_000)) == Terms(10_000, GPU)
    assert find_terms(timed, Limits(n_items=5_000)) == Terms(5_000, None)
    assert find_terms([], Limits()) == Terms(None, None)


def test_a_latency_under_other_terms_is_no_latency(entries: list[Entry]) -> None:
    other = [
        entry_of("elsewhere", 0.9, 0.01, 1_000, {"p50_ms": 1.0, "hardware": GPU}),
        entry_of("larger", 0.9, 0.01, 1_000, {"p50_ms": 1.0, "n_items": 100_000}),
        entry_of("other-stage", 0.9, 0.01, 1_000, {"p50_ms": 1.0}, rerank_k=20),
        entry_of("few-calls", 0.9, 0.01, 1_000, {"p50_ms": None}),
    ]
    second = other[2].timings[0].model_copy(update={"rerank_k": 0})
    other[2] = other[2].model_copy(update={"timings": (second,)})
    advice = by_label(recommend([*entries, *other], Limits(max_latency_ms=50)))
    for entry in other:
        assert advice[entry.label].reasons[0].startswith(f"not timed over 1,000 items on {CPU}: `rove time ")
    assert advice["other-stage"].reasons[0].endswith("--gallery 1000 --rerank-k 20`")


def test_of_several_timings_the_most_exact_counts_then_the_fastest() -> None:
    timings = [
        {"p50_ms": 1.0, "overlap": 0.8},
        {"p50_ms": 7.0, "overlap": 0.99},
        {"p50_ms": 6.0, "overlap": 0.99, "flags": ()},
    ]
    (advice,) = recommend([entry_of("row", 0.5, 0.2, 1_000, *timings)], Limits())
    assert advice.speed is not None
    assert (advice.speed.p50_ms, advice.speed.flags) == (6.0, ())


def test_the_command_to_time_a_row_is_one_that_a_shell_runs_as_it_stands() -> None:
    entry = made_entry("tuned-$(x)")
    submission = entry.manifest.submission.model_copy(update={"name": "tuned", "args": {"bits": "32", "size": "1"}})
    changes = {"submission": submission, "args": {"bits": "$(x)", "size": "1"}}
    entry = entry.model_copy(update={"manifest": entry.manifest.model_copy(update=changes)})
    (advice,) = recommend([entry], Limits(max_latency_ms=50))
    assert advice.reasons == ("not timed: `rove time tuned --model-arg 'bits=$(x)'`",)


def test_hardware_is_named_by_a_part_that_only_one_class_has(entries: list[Entry]) -> None:
    timed = [*entries, entry_of("on-gpu", 0.5, 0.1, 1_000, {"p50_ms": 1.0, "hardware": GPU})]
    assert find_terms(timed, Limits(hardware=CPU)).hardware_class == CPU
    for wrong in ("example", "tpu", f"{GPU}x"):
        with pytest.raises(UsageError, match=f"'{wrong}'; expected .* among: {GPU}; {CPU}."):
            recommend(timed, Limits(hardware=wrong))
    with pytest.raises(UsageError, match="no row was timed"):
        recommend([entries[-1]], Limits(hardware="tpu"))


def test_the_nearest_misses_its_worst_limit_by_least(entries: list[Entry]) -> None:
    limits = Limits(max_latency_ms=4, max_lost=0.15)
    # small: 20 % against 15 %; large: 80 ms against 4 ms; untimed may be anything.
    nearest = find_nearest(recommend(entries, limits))
    assert nearest is not None
    assert nearest.label == "small"
    assert nearest.excess == pytest.approx(0.20 / 0.15)
    assert find_nearest(recommend(entries, Limits())) is None
    assert find_nearest([]) is None
    assert find_nearest(recommend(entries[:1], Limits(max_lost=0.0))).label == "small"


@pytest.mark.parametrize("wrong", [{"max_lost": -0.1}, {"max_latency_ms": float("nan")}, {"min_r1": float("inf")}])
def test_limits_are_numbers(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a number of at least 0"):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("text", "count"),
    [("100M", 100_000_000), ("1.5B", 1_500_000_000), ("250k", 250_000), ("25_000_000", 25_000_000), ("0.3m", 300_000)],
)
def test_parameters_are_read(text: str, count: int) -> None:
    assert recommending.parse_parameters(text) == count


@pytest.mark.parametrize("text", ["", "M", "1.5", "-5M", "10 M", "1e6", "1.5G", "٣M", "9" * 5000])
def test_what_is_no_number_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number of parameters"):
        recommending.parse_parameters(text)


def board_of(label: str, entries: list[Entry], slug: str = "") -> Board:
    rng = np.random.Generator(np.random.Philox(0))
    resamples = [made_resamples(entry, rng, n_resamples=50) for entry in entries]
    rows = tuple(
        Row(entry.label, entry, table, NO_HITS, standing, Source(Path(entry.label), None))
        for entry, table, standing in zip(entries, resamples, rank(entries, resamples), strict=True)
    )
    return Board(label, slug or label, None, rows, (Unranked("partial", "limited"),), ())


@pytest.mark.parametrize("name", ["made-core-v1", "made-core", "made-v1", "made"])
def test_a_suite_has_several_names(name: str) -> None:
    wanted, other = board_of("made-core-v1", []), board_of("made-full-v1", [])
    assert recommending.choose_board([other, wanted], name) is wanted


def test_a_suite_must_be_one() -> None:
    one, two = board_of("made-core-v1", []), board_of("made-core-v2", [])
    twin = board_of("made-core-v1", [], "made-core-v1--2")
    assert recommending.choose_board([one], None) is one
    assert recommending.choose_board([one, twin], "made-core-v1--2") is twin
    assert recommending.choose_board([one, twin], "made-core-v1") is one
    with pytest.raises(UsageError, match="several suites here: made-core-v1, made-core-v2"):
        recommending.choose_board([one, two], None)
    with pytest.raises(UsageError, match="may be one of several here: made-core-v1, made-core-v2"):
        recommending.choose_board([one, two], "made")
    with pytest.raises(UsageError, match="Did you mean 'made-core-v2'"):
        recommending.choose_board([two], "made-core-v3")
    with pytest.raises(InputError, match="no bundle here is valid"):
        recommending.choose_board([], None)


@pytest.fixture
def app(entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command over the made entries."""
    found = Boards((board_of("made-v1", entries),), (("broken", "not valid"),))
    monkeypatch.setattr(boards, "read_boards", lambda places: found)
    application = typer.Typer()
    recommending.register(application)
    return application


def test_the_command_answers_in_json(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--max-drop", "21", "--max-latency-ms", "50", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["suite"], answer["n_items"], answer["hardware_class"]) == ("made-v1", 1_000, CPU)
    assert answer["nearest"] is None
    best, *rest = answer["rows"]
    assert (best["label"], best["kept"], best["parameters"]) == ("small", True, 20_000_000)
    assert best["lost"] == pytest.approx({"value": 0.2, "low": 0.175, "high": 0.225})
    assert best["latency"]["p50_ms"] == 5.0
    assert all(row["reasons"] and not row["kept"] for row in rest)
    assert "left out broken: not valid" in done.stderr
    assert "not ranked: partial: limited" in done.stderr


def test_the_command_names_the_nearest_where_nobody_passes(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--max-drop", "9", "--max-params", "1B"], terminal_width=200)
    assert done.exit_code == 0, done.output
    assert not done.stdout
    assert "no submission passes; the nearest is large: loses 10.00 % (7.50 to 12.50)" in done.stderr


def test_the_table_shows_figures_with_their_terms(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = CliRunner().invoke(app, ["--suite", "made", "--max-latency-ms", "100"])
    assert done.exit_code == 0, done.output
    shown = {line.split()[0]: " ".join(line.split()) for line in done.stderr.splitlines() if line.strip()}
    assert shown["large"] == "large 60.0 57.5 to 62.5 10.0 7.5 to 12.5 80 1.4 900,000,000"
    assert f"over 1,000 items on {CPU}" in done.stderr
    assert shown["middle"].split(maxsplit=1)[1].startswith("dominated by small")
    assert "5.00 ms against 9.00 ms" in shown["middle"]


def test_wrong_numbers_are_usage_errors(app: typer.Typer) -> None:
    for arguments in (["--max-params", "many"], ["--max-drop", "nan"], ["--suite", "other"]):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, RoveError)
        assert done.exception.exit_code == 2
