"""Places, tie groups, win rates and effective robustness: against loops that take every definition literally."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_entries import made_entry, made_resamples

from bench.errors import InputError
from bench.records import Estimate
from leaderboard.entries import Entry, Resamples
from leaderboard.ranking import Standing, find_dominators, pareto, rank

N = 400
FAMILIES = ("noise", "blur", "typo")
Field = tuple[list[Entry], list[Resamples]]


def constant(entry: Entry, **changes: float) -> Resamples:
    """Resamples that all equal the entry's own values, but for families that are named."""
    r1 = [changes.get(name, held.r1.value) for name, held in entry.families.items()]
    lost = [held.lost.value for held in entry.families.values()]
    tables = [np.tile(np.float32(values)[:, None], N) for values in (r1, lost, [entry.clean().r1.value])]
    return Resamples(*tables[:2], tables[2][0])


def made_field(n_rows: int, seed: int, grid: float) -> Field:
    """Rows whose figures lie on a grid, so that some of them tie, in the sample and in resamples."""
    rng = np.random.Generator(np.random.Philox(seed))
    entries, resamples = [], []
    for row in range(n_rows):
        values = (grid * np.round(rng.uniform(0.35, 0.55, len(FAMILIES)) / grid)).tolist()
        clean = float(np.round(rng.uniform(0.5, 0.8), 3))
        families = {name: (value, 0.2) for name, value in zip(FAMILIES, values, strict=True)}
        entries.append(made_entry(f"row-{row}", families=families, clean=clean))
        drawn = made_resamples(entries[-1], rng, n_resamples=N)
        resamples.append(replace(drawn, r1=np.float32(grid * np.round(drawn.r1 / grid))))
    return entries, resamples


def naive_places(scores: Sequence[float]) -> list[int]:
    return [1 + sum(other > score for other in scores) for score in scores]


def naive_win_rates(table: Sequence[Sequence[float]]) -> list[float]:
    """From one row of figures per submission, one figure per family."""
    rates = []
    for i, ours in enumerate(table):
        shares = []
        for family, value in enumerate(ours):
            others = [row[family] for j, row in enumerate(table) if j != i]
            shares.append(sum(1.0 if value > other else 0.5 if value == other else 0.0 for other in others))
        rates.append(sum(shares) / len(shares) / (len(table) - 1))
    return rates


def naive_residuals(clean: Sequence[float], shifted: Sequence[float]) -> list[float]:
    x, y = ([math.log(share / (1 - share)) for share in shares] for shares in (clean, shifted))
    slope, intercept = np.polyfit(x, y, 1)
    return [value - 1 / (1 + math.exp(-(intercept + slope * a))) for value, a in zip(shifted, x, strict=True)]


def naive_interval(values: Sequence[float], value: float) -> tuple[float, float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return value, min(low, value), max(high, value)


def naive_place_interval(places: Sequence[int], place: int) -> tuple[int, int, int]:
    """The innermost places outside which at most 2.5 % of the resamples lie on either side."""
    ordered, cut = sorted(places), math.floor(0.025 * len(places))
    return place, min(place, ordered[cut]), max(place, ordered[len(places) - 1 - cut])


def figures(value: Estimate | None) -> tuple[float, float, float]:
    assert value is not None
    return value.value, value.low, value.high


@pytest.fixture(params=[(2, 0.01), (7, 0.05), (9, 0.001)], ids=["two", "many ties", "few ties"])
def field(request: pytest.FixtureRequest) -> Field:
    n_rows, grid = request.param
    return made_field(n_rows, n_rows, grid)


def scores_of(field: Field, r: int) -> list[float]:
    return [sum(float(row.r1[f, r]) for f in (1, 0, 2)) / 3 for row in field[1]]


def values_of(field: Field, read: Callable[[Entry], float]) -> list[float]:
    return [read(entry) for entry in field[0]]


def test_places_are_those_of_counting(field: Field) -> None:
    places = naive_places(values_of(field, lambda entry: entry.overall.r1.value))
    resampled = [naive_places(scores_of(field, r)) for r in range(N)]
    for row, standing in enumerate(rank(*field)):
        expected = naive_place_interval([places[row] for places in resampled], places[row])
        assert (standing.place, standing.first, standing.last) == expected


def test_win_rates_are_those_of_counting(field: Field) -> None:
    rates = naive_win_rates([[held.r1.value for held in entry.families.values()] for entry in field[0]])
    resampled = [naive_win_rates([row.r1[:, r].tolist() for row in field[1]]) for r in range(N)]
    for row, standing in enumerate(rank(*field)):
        expected = naive_interval([rates[row] for rates in resampled], rates[row])
        assert figures(standing.win_rate) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_rows", [3, 8])
def test_effective_robustness_is_the_residual_of_a_fit_on_logits(n_rows: int) -> None:
    field = made_field(n_rows, 1, 0.001)
    residuals = naive_residuals(
        values_of(field, lambda entry: entry.clean().r1.value), values_of(field, lambda entry: entry.overall.r1.value)
    )
    resampled = [naive_residuals([float(row.clean[r]) for row in field[1]], scores_of(field, r)) for r in range(N)]
    for row, standing in enumerate(rank(*field)):
        expected = naive_interval([residuals[row] for residuals in resampled], residuals[row])
        assert figures(standing.effective_robustness) == pytest.approx(expected, abs=1e-9)


def test_three_rows_by_hand() -> None:
    """B and C have one score, but C wins two families of three; in a quarter of the resamples B overtakes A."""
    values = {"A": (0.6, 0.5, 0.4), "B": (0.55, 0.35, 0.3), "C": (0.35, 0.45, 0.4)}
    entries = [
        made_entry(label, families={name: (r1, 0.2) for name, r1 in zip(FAMILIES, row, strict=True)})
        for label, row in values.items()
    ]
    resamples = [constant(entry) for entry in entries]
    resamples[1].r1[1, : N // 4] = 0.75
    a, b, c = rank(entries, resamples)
    assert (a.place, a.first, a.last) == (1, 1, 2)
    assert (b.place, b.first, b.last) == (2, 1, 2)
    assert (c.place, c.first, c.last) == (2, 2, 3)
    assert (a.order, b.order, c.order) == (1, 3, 2)
    # noise: A beats both, B beats C; blur: A, then C; typo: A and C tie, both beat B.
    assert a.win_rate.value == pytest.approx((1 + 1 + 0.75) / 3)
    assert b.win_rate.value == pytest.approx((0.5 + 0 + 0) / 3)
    assert c.win_rate.value == pytest.approx((0 + 0.5 + 0.75) / 3)
    # C is always behind A and opens a group; B, of the same score but third in order, is compared with C alone.
    assert (a.tie_group, c.tie_group, b.tie_group) == (1, 2, 2)


def test_groups_are_of_those_that_the_leader_is_not_surely_ahead_of() -> None:
    """The second is behind the first in all resamples but a few, the third of the second's group as well."""
    entries = [made_entry(label, families={"noise": (r1, 0)}) for label, r1 in (("a", 0.6), ("b", 0.5), ("c", 0.45))]
    resamples = [constant(entry) for entry in entries]
    few = round(0.024 * N)
    resamples[1].r1[0, :few] = 0.7
    resamples[2].r1[0, -2 * few :] = 0.6
    assert [standing.tie_group for standing in rank(entries, resamples)] == [1, 2, 2]
    resamples[1].r1[0, : 2 * few] = 0.6
    assert [standing.tie_group for standing in rank(entries, resamples)] == [1, 1, 1]
    # Now the third is as good as the second in as many resamples, but never as good as the leader.
    resamples[2].r1[0, -2 * few :] = 0.5
    assert [standing.tie_group for standing in rank(entries, resamples)] == [1, 1, 2]


def test_a_difference_that_is_no_more_than_rounding_is_a_tie() -> None:
    """The mean of 0.1 and 0.3 is that of 0.2 and 0.2, but not in floats."""
    entries = [
        made_entry(label, families={"noise": (first, 0), "blur": (second, 0)})
        for label, first, second in (("a", 0.1, 0.3), ("b", 0.2, 0.2), ("c", 0.09, 0.19))
    ]
    standings = rank(entries, [constant(entry) for entry in entries])
    assert [standing.tie_group for standing in standings] == [1, 1, 2]


def test_the_order_of_entries_and_families_changes_nothing(field: Field) -> None:
    entries, resamples = field
    expected = {entry.label: standing for entry, standing in zip(entries, rank(*field), strict=True)}
    order = [*range(1, len(entries), 2), *range(0, len(entries), 2)][::-1]
    turned = [2, 0, 1]
    others = [
        entries[i].model_copy(update={"families": {FAMILIES[f]: entries[i].families[FAMILIES[f]] for f in turned}})
        for i in order
    ]
    standings = rank(others, [replace(resamples[i], r1=resamples[i].r1[turned]) for i in order])
    assert {entry.label: standing for entry, standing in zip(others, standings, strict=True)} == expected
    assert sorted(standing.order for standing in standings) == [*range(1, len(entries) + 1)]


def test_residuals_that_are_all_but_zero_are_the_same_in_any_order() -> None:
    """Rows on the line itself leave nothing but rounding, which the order of a sum decides."""
    clean = [0.51, 0.57, 0.66, 0.71, 0.83]
    entries = [
        made_entry(f"row-{i}", families={"noise": (1 / (1 + math.e * (1 - x) / x), 0.2)}, clean=x)
        for i, x in enumerate(clean)
    ]
    found = []
    for order in itertools.permutations(entries):
        standings = rank(order, [constant(entry) for entry in order])
        found.append({entry.label: standing for entry, standing in zip(order, standings, strict=True)})
    assert all(standings == found[0] for standings in found)
    assert all(abs(standing.effective_robustness.value) < 1e-9 for standing in found[0].values())


def test_the_same_submission_twice_shares_all_but_the_order(field: Field) -> None:
    entries, resamples = field
    twin = entries[1].model_copy(update={"manifest": entries[1].manifest.model_copy(update={"label": "twin"})})
    standings = rank([*entries, twin], [*resamples, resamples[1]])
    assert replace(standings[1], order=0) == replace(standings[-1], order=0)
    assert abs(standings[1].order - standings[-1].order) == 1


def test_the_interval_of_a_place_holds_the_place() -> None:
    """Of eighty rows that noise alone tells apart, the first is seldom the first of a resample."""
    _, resamples = made_field(80, 3, 1e-6)
    best = 0.4 + 1e-5 * np.arange(80)
    entries = [made_entry(f"row-{i}", families={"noise": (value, 0.2)}) for i, value in enumerate(best)]
    resamples = [replace(row, r1=row.r1[:1] - row.r1[:1].mean() + best[i]) for i, row in enumerate(resamples)]
    for standing in rank(entries, resamples):
        assert standing.first <= standing.place <= standing.last
        assert standing.win_rate.low <= standing.win_rate.value <= standing.win_rate.high


def test_a_row_alone_beats_nobody() -> None:
    entry = made_entry("alone")
    expected = Standing(1, 1, 1, 1, 1, None, None)
    assert rank([entry], [constant(entry)]) == [expected]
    assert rank([], []) == []


def residuals_of(*rows: tuple[float, float]) -> list[Estimate | None]:
    """Of rows with a clean and a shifted R@1."""
    entries = [
        made_entry(f"row-{i}", families={"noise": (shifted, 0.1)}, clean=clean)
        for i, (clean, shifted) in enumerate(rows)
    ]
    return [standing.effective_robustness for standing in rank(entries, [constant(entry) for entry in entries])]


def test_no_line_no_effective_robustness() -> None:
    assert residuals_of((0.6, 0.5), (0.7, 0.4)) == [None] * 2
    assert residuals_of((0.6, 0.5), (0.6, 0.4), (0.6, 0.3)) == [None] * 3
    assert residuals_of((0.6, 0.5), (0.7, 0.4), (1.0, 0.9)) == [None] * 3


def test_rows_without_a_logit_are_left_out_of_the_line() -> None:
    rest = [(0.6, 0.5), (0.7, 0.4), (0.8, 0.75)]
    expected = residuals_of(*rest)
    assert residuals_of(*rest, (0.5, 0.0), (1.0, 0.9)) == [*expected, None, None]
    assert expected[0] is not None


def test_an_entry_without_a_clean_canvas_is_left_out_of_the_line() -> None:
    entries, resamples = made_field(4, 5, 0.001)
    scores = tuple(score for score in entries[0].scores if score.cell.shift != "clean_canvas")
    blind = entries[0].model_copy(update={"scores": scores})
    alone = [standing.effective_robustness for standing in rank(entries[1:], resamples[1:])]
    found = [standing.effective_robustness for standing in rank([blind, *entries[1:]], resamples)]
    assert found == [None, *alone]


def test_what_cannot_be_ranked_together_is_refused() -> None:
    entry, other = made_entry("a"), made_entry("b", families={"noise": (0.4, 0.1), "fog": (0.3, 0.2)})
    with pytest.raises(InputError, match="b and a differ in the families blur, fog, typo"):
        rank([entry, other], [constant(entry), constant(other)])
    elsewhere = made_entry("b", suite="other-v1")
    with pytest.raises(InputError, match="other-v1 and made-v1"):
        rank([entry, elsewhere], [constant(entry), constant(elsewhere)])
    with pytest.raises(InputError, match="resamples of 1 entries"):
        rank([entry, entry], [constant(entry)])
    with pytest.raises(InputError, match="a are not finite"):
        rank([entry], [constant(entry, blur=math.nan)])
    with pytest.raises(InputError, match=r"have shape \(2, 400\)"):
        rank([entry], [replace(constant(entry), r1=constant(entry).r1[:2])])
    with pytest.raises(InputError, match="no shifted cell"):
        rank([entry.model_copy(update={"overall": None})], [constant(entry)])


coordinates = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda d: arrays(float, st.tuples(st.integers(0, 9), st.just(d)), elements=coordinates))
)
def test_pareto_keeps_what_nothing_dominates(points: np.ndarray) -> None:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    dominators = [[j for j, other in enumerate(points) if dominates(other, point)] for point in points]
    assert pareto(points).tolist() == [not found for found in dominators]
    assert [find_dominators(points, point).tolist() for point in points] == dominators


def test_pareto_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(InputError, match="point 1 is NaN in column 0"):
        pareto(np.array([[0.0, 1.0], [math.nan, 2.0]]))
    with pytest.raises(InputError, match="shape"):
        pareto(np.zeros(3))
