"""Suites: their id follows what decides a score, and a wrong file says where it is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.errors import InputError, RoveError
from bench.records import CLEAN
from bench.suites import list_suites, read_suite
from shifts.attacks.catalogue import CATALOGUE as ATTACKS
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import CATALOGUE, parse_shift

NEED_A_FETCHED_MODEL = {"word_insert", "sentence_back_translation", "sentence_back_translation_pt"}


@pytest.mark.parametrize("name", ["demo", "flickr8k", "flickr30k", "coco"])
def test_a_core_suite_is_small_spread_and_runs_everywhere(name: str) -> None:
    suite = list_suites()[f"{name}-core"]
    attacked = [cell for cell in suite.cells if cell.is_attack]
    shifts = [cell.shift for cell in suite.cells if not cell.is_clean and not cell.baseline and not cell.is_attack]
    modalities = Counter(parse_shift(shift)[0].modality for shift in shifts)
    assert {cell.shift for cell in suite.cells if cell.is_clean} == {"clean", "clean_canvas"}
    assert modalities["image"] <= 25
    assert modalities["text"] <= 12
    assert modalities["gallery_image"] + modalities["gallery_text"] <= 2
    families = {parse_shift(shift)[0].family for shift in shifts}
    assert families == {shift.family for shift in CATALOGUE}
    assert not {shift.partition(":")[0] for shift in shifts} & NEED_A_FETCHED_MODEL
    assert suite.seeds == (0,)
    assert len(attacked) == 8
    assert {parse_attack(cell.shift)[0].modality for cell in attacked} == {"image", "text", "joint"}
    assert "black" in {parse_attack(cell.shift)[0].access for cell in attacked if cell.directions == ("i2t",)}
    assert all(cell.n_images for cell in attacked)


@pytest.mark.parametrize("name", ["demo", "flickr8k", "flickr30k", "coco"])
def test_a_full_suite_holds_the_catalogue_under_three_seeds(name: str) -> None:
    suite = list_suites()[f"{name}-full"]
    main = next(cell.collection for cell in suite.cells if cell.shift == "clean")
    whole = [cell for cell in suite.cells if cell.collection == main]
    found = {(cell.shift, cell.seed) for cell in whole if cell.shift not in CLEAN and not cell.is_attack}
    expected = {
        (shift.id(severity), seed)
        for shift in CATALOGUE
        for severity in shift.severities
        for seed in (range(3) if shift.seeded else range(1))
    }
    assert found == expected
    core = [cell for cell in list_suites()[f"{name}-core"].cells if cell.collection == main]
    assert {(cell.shift, cell.seed) for cell in core if not cell.is_attack} <= found | {(c, 0) for c in CLEAN}
    attacks = {(cell.shift, cell.threat_model) for cell in whole if cell.is_attack}
    assert {(cell.shift, cell.threat_model) for cell in core if cell.is_attack} <= attacks
    assert {shift for shift, _ in attacks} == {a.id(budget) for a in ATTACKS for budget in a.budgets}


def test_an_attack_asks_what_it_can_change(tmp_path: Path, suite_file: Path) -> None:
    path = tmp_path / "attacks.toml"
    table = '\n[[cells]]\ncollection = "scenes/test"\nattacks = ["{}"]\n{}\nreason = "For a test."\n'
    head = suite_file.read_text()
    path.write_text(head + "".join(table.format(name, "") for name in ("pgd", "charmer", "sga")))
    cells = [cell for cell in read_suite(path).cells if cell.is_attack]
    directions = {(cell.shift, cell.threat_model): cell.directions for cell in cells}
    assert len(directions) == 4 * 4 + 2 * 3 + 4
    assert directions["pgd:1", "query"] == directions["charmer:2", "gallery_target"] == ("i2t",)
    assert directions["pgd:8", "distractor"] == directions["charmer:1", "query"] == ("t2i",)
    assert directions["sga:4", "both"] == ("t2i", "i2t")
    assert len({cell.slug for cell in cells}) == len(cells)
    for wrong, words in (
        ("budgets = [3]", "budgets 1, 2, 4, 8"),
        ('threat_models = ["both"]', "threat models"),
        ('shifts = ["fog"]', "either shifts or attacks"),
        ("severities = [1]", "no severities"),
    ):
        path.write_text(head + table.format("pgd", wrong))
        with pytest.raises(RoveError, match=words):
            read_suite(path)


def test_distractors_are_asked_for_in_the_direction_that_they_touch(suite_file: Path, tmp_path: Path) -> None:
    directions = {cell.shift: cell.directions for cell in read_suite(suite_file).cells}
    assert directions["gallery_mix:4"] == ("t2i",)
    assert directions["gallery_danger:1"] == ("i2t",)
    path = tmp_path / "wrong.toml"
    path.write_text(
        suite_file.read_text().replace('["gallery_danger"]', '["gallery_danger"]\ndirections = ["t2i", "i2t"]')
    )
    with pytest.raises(InputError, match="touch i2t alone"):
        read_suite(path)


def test_seeds_multiply_only_what_is_seeded(suite_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "seeds.toml"
    path.write_text(suite_file.read_text().replace("seeds = [0]", "seeds = [0, 7]"))
    ids = [cell.id for cell in read_suite(path).cells]
    assert "scenes/test gaussian_noise:5 seed 7" in ids
    assert len(ids) == len(read_suite(suite_file).cells) + 4
    assert len({cell.slug for cell in read_suite(path).cells}) == len(ids)


def test_rewording_keeps_the_id_and_changing_a_cell_does_not(suite_file: Path, tmp_path: Path) -> None:
    text, copy = suite_file.read_text(), tmp_path / "small.toml"
    copy.write_text(text.replace("For a test.", "For another reason."))
    assert read_suite(copy).id == read_suite(suite_file).id
    for old, new in (("severities = [3]", "severities = [4]"), ("seeds = [0]", "seeds = [1]"), ("= 24", "= 23")):
        copy.write_text(text.replace(old, new))
        assert read_suite(copy).id != read_suite(suite_file).id


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("typo_keyboard", "typo_kyboard", "Did you mean 'typo_keyboard'"),
        ("severities = [3]", "severities = [6]", "severities"),
        ("typo_keyboard", "Typo Keyboard", "shift"),
        ("severities = [1, 5]", "severities = [1, 1]", "stands twice"),
        ('baseline = "scenes/test"', 'baseline = "scenes/val"', "no clean_canvas cell"),
        ('"scenes-night/test" = 24', "", "no entry in"),
        ("version = 1", "version = 'one'", "field version"),
        ("[collections]", "[collection]", "field"),
        ("seeds = [0]", "seeds = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_says_where(old: str, new: str, words: str, suite_file: Path, tmp_path: Path) -> None:
    text = suite_file.read_text()
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(RoveError, match=words):
        read_suite(path)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml"):
        read_suite(tmp_path / "nothing.toml")
