"""Finding submissions: by name, folder, file and entry point; manifests that are wrong say where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.errors import InputError, UsageError
from bench.submission import find_submission, list_recipes, list_submissions, scaffold


def test_shipped_names_are_found() -> None:
    assert {"tiny", "openclip", "pocket"} <= set(list_submissions())
    assert {"tiny", "pocket"} <= set(list_recipes())
    assert all(list_recipes().values())
    found = find_submission("openclip", {"pretrained": "laion2b_s34b_b79k"})
    assert found.args == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "quick_gelu": "auto"}
    assert found.label == "openclip-laion2b_s34b_b79k"


def test_an_entry_point_is_found_with_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rove.py").write_text("def make(context): ...\n")
    (package / "submission.toml").write_text('name = "theirs"\n[args]\ndepth = "3"\n')
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rove.submissions]\ntheirs = their_package.rove:make\nbroken = nowhere_at_all.rove\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = find_submission("theirs", {"depth": "4"})
    assert (found.import_name, found.function, found.args) == ("their_package.rove", "make", {"depth": "4"})
    assert found.module == package / "rove.py"
    assert "not installed" in list_submissions()["broken"].summary
    sys.modules.pop("their_package", None)


def test_a_bare_folder_does_not_shadow_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_submission("tiny").folder != tmp_path / "tiny"
    scaffold("mine", tmp_path / "mine")
    assert find_submission("mine").folder == tmp_path / "mine"


def test_any_changed_byte_or_argument_is_another_submission(tmp_path: Path) -> None:
    folder = scaffold("mine", tmp_path / "mine")
    first = find_submission(str(folder)).fingerprint
    assert find_submission(str(folder)).fingerprint == first
    (folder / "notes.txt").write_text("x")
    second = find_submission(str(folder)).fingerprint
    assert second != first
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.pyc").write_bytes(b"x")
    assert find_submission(str(folder)).fingerprint == second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'\ncolour = 'red'\n", "field colour"),
        ("title = 'x'\n", "field name"),
        ("name = 'Has Spaces'\n", "field name"),
        ("name = 'x'\nurl = 'javascript:alert(1)'\n", "field url"),
        ("name = 'x'\nurl = 'http://example.org'\n", "field url"),
        ("name = 'x'\n[args]\ndepth = 3\n", "field args.depth"),
        ("name = 'x'\n[parameters]\ntotal = -1\n", "field parameters.total"),
        ("name = \n", "not valid TOML"),
    ],
)
def test_a_wrong_manifest_names_its_field(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "submission.toml").write_text(text)
    (tmp_path / "model.py").write_text("")
    with pytest.raises(InputError, match=words) as caught:
        find_submission(str(tmp_path))
    assert "submission.toml" in str(caught.value)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "submission.toml").write_text("name = 'x'\n")
    with pytest.raises(InputError, match=r"no model\.py"):
        find_submission(str(tmp_path))


@pytest.mark.parametrize("name", ["Upper", "with space", "../escape", ""])
def test_scaffold_refuses_odd_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name for a submission"):
        scaffold(name, tmp_path / "x")
