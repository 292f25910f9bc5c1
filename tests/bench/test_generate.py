"""Generated data sets: what lies in them, that nothing but the inputs decides a byte, and what goes wrong clearly."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.data.registry import load_collection
from bench.errors import IncompleteError, InputError, MissingError, RoveError, UsageError
from bench.generate import GenerateSettings, estimate_size, generate, generate_again
from bench.generated import verify_generated
from bench.run import RunResult
from bench.shifted import Change, caption_ids, find_partners
from bench.store import proof_of
from shifts.canvas import canonical_canvas
from shifts.catalogue import apply_shift, parse_shift

IDS = ("gaussian_noise:1", "gaussian_noise:5", "typo_keyboard:3", "gallery_mix:4", "gallery_danger:1")


class Counted:
    def __init__(self) -> None:
        self.rows, self.total = 0, 0

    def planned(self, n_rows: int) -> None:
        self.total = n_rows

    def shard_done(self, shift_id: str, n_rows: int) -> None:
        self.rows += n_rows


def settings(*ids: str, dataset: str = "scenes/test", **more: object) -> GenerateSettings:
    defaults = {"limit": 24, "workers": 1}
    return GenerateSettings(dataset, tuple(parse_shift(name) for name in ids), **(defaults | more))


def file_digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "copy"
    counted = Counted()
    generate(settings(*IDS, workers=2), folder, counted)
    assert counted.rows == counted.total == 24 * (1 + len(IDS))
    return folder


def rows_of(folder: Path, config: str) -> list[dict]:
    return pq.read_table(sorted((folder / "data" / config).glob("*.parquet"))[0]).to_pylist()


def test_rows_hold_the_shifted_pixels_and_everything_that_goes_with_them(made: Path) -> None:
    collection = load_collection("scenes/test").head(24)
    rows = rows_of(made, "gaussian_noise-5")
    assert [row["image_id"] for row in rows] == [image.id for image in collection.images]
    pairs = {(row["image_id"], caption) for row in rows for caption in row["captions"]}
    expected = {(collection.images[i].id, collection.captions[j]) for i, j in collection.positives}
    assert pairs == expected
    for row, image in zip(rows, collection.images, strict=True):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(row["image"]["bytes"])))
        canvas = np.asarray(canonical_canvas(image.decode()))
        np.testing.assert_array_equal(pixels, apply_shift(*parse_shift("gaussian_noise:5"), canvas, image.id, 0))
        assert (row["shift"], row["severity"], row["seed"]) == ("gaussian_noise", 5, 0)


def test_caption_rows_state_how_far_they_are_from_the_original(made: Path) -> None:
    changed = 0
    for row in rows_of(made, "typo_keyboard-3"):
        columns = ("captions", "original_captions", "edit_distance", "similarity", "meaning_kept", "caption_ids")
        for text, original, distance, similarity, _kept, name in zip(*(row[c] for c in columns), strict=True):
            assert text == apply_shift(*parse_shift("typo_keyboard:3"), original, name, 0)
            assert distance == sum(a != b for a, b in zip(text, original, strict=True))
            assert -1 <= similarity <= 1
            assert (similarity == 1) == (text == original)
            changed += text != original
    assert changed > 100


def test_distractors_name_what_they_were_made_of(made: Path) -> None:
    collection = load_collection("scenes/test").head(24)
    sources = dict(zip(caption_ids(collection), collection.captions, strict=True))
    texts = rows_of(made, "gallery_danger-1")
    assert texts
    for row in texts:
        assert row["source_caption"] == sources[row["source_caption_id"]]
        assert row["caption"] not in ("", row["source_caption"])
    images = rows_of(made, "gallery_mix-4")
    assert len(images) == 24
    assert all(row["source_image_id"] != row["partner_image_id"] for row in images)
    assert len({row["distractor_id"] for row in images}) == 24


def test_a_process_that_makes_images_loads_no_torch() -> None:
    code = "import bench.generate, sys; print(*{'torch', 'numba', 'datasets', 'transformers'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_partners_do_not_depend_on_severity() -> None:
    collection = load_collection("scenes/test").head(24)
    drawn = [
        [
            find_partners(Change(*parse_shift(f"gallery_mix:{s}"), 0), collection)(image).id
            for image in collection.images
        ]
        for s in (1, 5)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 8


def test_the_datasets_library_opens_it(made: Path, tmp_path: Path) -> None:
    import datasets

    files = [str(path) for path in (made / "data" / "gaussian_noise-1").glob("*.parquet")]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded[0]["image"].size == (256, 256)
    by_config = datasets.load_dataset(str(made), "gallery_danger-1", split="train", cache_dir=str(tmp_path))
    assert by_config[0]["shift"] == "gallery_danger"


def test_one_worker_and_another_order_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    generate(settings(*IDS, workers=1), tmp_path / "one", Counted())
    assert file_digests(tmp_path / "one") == file_digests(made)
    generate(settings(*IDS[2::-1]), tmp_path / "other", Counted())
    ours, theirs = file_digests(tmp_path / "other"), file_digests(made)
    data = {name for name in ours if name.startswith("data")}
    assert data
    assert {name: ours[name] for name in data} == {name: theirs[name] for name in data}


def test_a_run_is_fed_the_same_items(finished_run: RunResult, made: Path) -> None:
    parts = {part.shift: part.content_sha256 for part in verify_generated(made).parts}
    records = {r.cell.shift: r.data for r in finished_run.records if r.cell.collection == "scenes/test"}
    assert parts["gaussian_noise:5"] == records["gaussian_noise:5"].images_sha256
    assert parts["clean_canvas"] == records["clean_canvas"].images_sha256
    assert parts["typo_keyboard:3"] == records["typo_keyboard:3"].captions_sha256
    assert parts["gallery_mix:4"] == records["gallery_mix:4"].distractors_sha256
    assert parts["gallery_danger:1"] == records["gallery_danger:1"].distractors_sha256


def is_running(pid: str) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_it_goes_on_after_a_kill(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shifts = [argument for name in IDS for argument in ("--shift", name)]
    command = [
        sys.executable,
        "-m",
        "bench.cli",
        "generate",
        "scenes/test",
        "--limit",
        "24",
        *shifts,
        "-o",
        str(folder),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("data/*/*.parquet")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) >= 2
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]
    assert not (folder / "manifest.json").exists()
    with pytest.raises(IncompleteError, match="unfinished"):
        verify_generated(folder)
    (folder / "data" / "gaussian_noise-5").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "gaussian_noise-5" / ".00000.parquet.x1y2.tmp").write_bytes(b"half a sh")
    generate(settings(*IDS), folder, Counted())
    assert file_digests(folder) == file_digests(made)
    verify_generated(folder)


def test_a_finished_folder_is_verified_and_left_alone(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    counted = Counted()
    generate(settings(*IDS), made, counted)
    assert counted.rows == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.name != ".lock"} == before


def test_coming_out_different_names_the_part_and_the_version(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    manifest = generate(settings("gaussian_noise:1", "sketch:1", limit=4, workers=1), copy, Counted())
    generate_again(manifest, "scenes/test", {}, Counted())
    changed = json.loads((copy / "manifest.json").read_text())
    changed["plan"]["versions"]["numpy"] = "1.0"
    changed["parts"][1]["content_sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"1 of 3 parts come out different, first gaussian_noise-1.*numpy 1\.0 then"):
        generate_again(verify_generated(copy), "scenes/test", {}, Counted())


@pytest.mark.parametrize("damage", ["flip", "remove", "add"])
def test_a_changed_copy_is_found_out(made: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    victim = copy / "data" / "gaussian_noise-5" / "00000.parquet"
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "remove":
        victim.unlink()
    else:
        (copy / "data" / "stray.parquet").write_bytes(b"")
    words = {"flip": "does not have the sha256", "remove": "is missing", "add": "does not belong"}
    with pytest.raises(InputError, match=words[damage]):
        verify_generated(copy)


def test_what_is_damaged_is_set_aside_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    asked = settings("gaussian_noise:1", "negative:1", limit=4, workers=1)
    generate(asked, folder, Counted())
    whole = file_digests(folder)
    flipped, removed = (folder / "data" / name / "00000.parquet" for name in ("gaussian_noise-1", "negative-1"))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    removed.unlink()
    generate(asked, folder, Counted())
    aside = flipped.with_name("00000.parquet.bad")
    assert aside.read_bytes() == data
    assert {name: digest for name, digest in file_digests(folder).items() if not name.endswith(".bad")} == whole
    verify_generated(folder)


def test_killed_behind_its_manifest_it_is_finished_by_the_same_command(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    plan = json.loads((copy / "manifest.json").read_text())["plan"]
    (copy / "plan.json").write_text(json.dumps(plan))
    proof_of(copy / "data" / "gaussian_noise-5" / "00000.parquet").write_text("0" * 64)
    counted = Counted()
    generate(settings(*IDS), copy, counted)
    assert counted.rows == 0
    assert file_digests(copy) == file_digests(made)


def photo_folder(folder: Path, n_images: int = 6) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i in range(n_images):
        PIL.Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a noisy picture with number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_data_set_that_changed_before_the_second_half_is_refused(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos")
    dataset, output = f"folder:{photos}", tmp_path / "out"
    generate(settings("gaussian_noise:1", dataset=dataset), output, Counted())
    (output / "manifest.json").rename(output / "plan.json")
    plan = json.loads((output / "plan.json").read_text())["plan"]
    (output / "plan.json").write_text(json.dumps(plan))
    PIL.Image.new("RGB", (40, 50)).save(photos / "3.png")
    with pytest.raises(UsageError, match="source_sha256"):
        generate(settings("gaussian_noise:1", dataset=dataset), output, Counted())


def test_an_image_that_changes_while_it_is_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photo_folder(tmp_path / "photos")

    def planned(self: Counted, n_rows: int) -> None:
        PIL.Image.new("RGB", (40, 50)).save(photos / "3.png")

    monkeypatch.setattr(Counted, "planned", planned)
    with pytest.raises(InputError, match=r"image 3\.png changed while"):
        generate(settings("gaussian_noise:1", dataset=f"folder:{photos}"), tmp_path / "out", Counted())


def test_other_inputs_and_other_folders_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed"):
        generate(settings(*IDS, seed=1), made, Counted())
    with pytest.raises(UsageError, match="n_images"):
        generate(settings(*IDS, limit=23), made, Counted())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        generate(settings(*IDS), tmp_path / "mine", Counted())
    with pytest.raises(UsageError, match="is a file"):
        generate(settings(*IDS), tmp_path / "mine" / "thesis.txt", Counted())
    with pytest.raises((RoveError, OSError), match=r"/proc"):
        generate(settings(*IDS), Path("/proc/rove"), Counted())


def test_a_shift_that_lacks_its_model_is_an_error_or_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.generate.find_missing", lambda name: "no model" * (name == "typo_keyboard"))
    with pytest.raises(MissingError, match="no model"):
        generate(settings("typo_keyboard:1"), tmp_path / "a", Counted())
    optional = settings("typo_keyboard:1", "gaussian_noise:1", optional=frozenset({"typo_keyboard"}), limit=2)
    manifest = generate(optional, tmp_path / "b", Counted())
    assert manifest.skipped == {"typo_keyboard": "no model"}
    assert [part.shift for part in manifest.parts] == ["clean_canvas", "gaussian_noise:1"]
    assert "no model" in (tmp_path / "b" / "README.md").read_text()


def test_many_images_make_several_shards_of_the_same_content(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", n_images=130)
    manifest = generate(
        settings("jpeg_compression:1", dataset=f"folder:{photos}", limit=None), tmp_path / "out", Counted()
    )
    part = manifest.parts[1]
    assert len(part.files) == 2
    tables = pa.concat_tables([pq.read_table(tmp_path / "out" / name) for name in sorted(part.files)])
    assert tables["image_id"].to_pylist() == [image.id for image in load_collection(f"folder:{photos}").images]
    digests = bytes.fromhex("".join(tables["pixels_sha256"].to_pylist()))
    assert part.content_sha256 == hashlib.sha256(digests).hexdigest()


def test_the_estimate_is_of_the_right_order(made: Path) -> None:
    size = estimate_size(settings("gaussian_noise:1", "gaussian_noise:5"))
    configs = ("clean_canvas", "gaussian_noise-1", "gaussian_noise-5")
    real = sum(path.stat().st_size for config in configs for path in (made / "data" / config).iterdir())
    assert size.bytes == pytest.approx(real, rel=0.3)
    assert size.n_images == 24
