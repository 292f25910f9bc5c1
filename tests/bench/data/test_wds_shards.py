"""Tars: what is read and when, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from made_data import Photo, make_photos, tar_files, write_tar, write_wds

from bench.data import wds
from bench.data.registry import load_collection
from bench.errors import InputError, UsageError


def test_shards_are_read_in_numerical_order(tmp_path: Path) -> None:
    photos = make_photos(12)
    dataset = write_wds(tmp_path / "made", photos, shards=12)
    assert [image.id for image in load_collection(dataset).images] == [photo.stem for photo in photos]


def test_image_bytes_are_read_only_when_asked_for(tmp_path: Path, photos: list[Photo]) -> None:
    collection = load_collection(write_wds(tmp_path / "made", photos, shards=1))
    shard = tmp_path / "made" / "test" / "0.tar"
    flipped = photos[1].data[::-1]
    shard.write_bytes(shard.read_bytes().replace(photos[1].data, flipped))
    assert collection.images[1].read() == flipped  # type: ignore[attr-defined]
    assert collection.images[0].decode().size == (12, 8)


def test_members_are_read_from_their_own_span(
    tmp_path: Path, photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(wds.Member, "read", lambda member: read.append(member.name) or b"a caption")
    load_collection(write_wds(tmp_path / "made", photos))
    assert read == [f"{photo.stem}.txt" for photo in photos]


@pytest.mark.parametrize("place", ["", "/test", "/train"])
def test_path_may_be_the_folder_of_splits_or_of_tars(place: str, tmp_path: Path, photos: list[Photo]) -> None:
    write_wds(tmp_path / "made", photos)
    write_wds(tmp_path / "made", photos[:2], split="train")
    collection = load_collection(f"wds:{tmp_path}/made{place}")
    assert collection.name == f"made{place or '/test'}"
    assert len(collection.images) == (2 if place == "/train" else 5)


def test_a_plain_folder_of_tars(tmp_path: Path, photos: list[Photo]) -> None:
    write_wds(tmp_path, photos, split="shards")
    assert wds.load(tmp_path / "shards").name == "shards"


def test_an_unknown_split_gets_the_nearest(tmp_path: Path, photos: list[Photo]) -> None:
    dataset = write_wds(tmp_path / "made", photos, split="validation")
    with pytest.raises(UsageError, match=r"'valid'. Did you mean 'validation'"):
        load_collection(f"{dataset}/valid")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("one", ["one"]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\n\ntwo", ["one", "", "two"]),
        (" one \r\ntwo\u2028x", [" one \r", "two\u2028x"]),
        ("", []),
    ],
)
def test_captions_are_lines_verbatim(text: str, captions: list[str]) -> None:
    assert wds.split_captions(text) == captions


def test_other_members_are_ignored_and_folders_are_part_of_the_key(tmp_path: Path, photos: list[Photo]) -> None:
    files = [(f"deep/{name}", data) for name, data in tar_files(photos)]
    write_tar(tmp_path / "0.tar", [*files, ("deep/photo_0000.json", b"{}"), ("README", b"hello")])
    assert wds.load(tmp_path).images[0].id == "deep/photo_0000"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_are_refused(kind: bytes, tmp_path: Path, photos: list[Photo]) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        entry = tarfile.TarInfo("photo_0009.jpg")
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(InputError, match=r"member photo_0009\.jpg is a link or special file"):
        wds.load(tmp_path)


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(name, b"x")])
    with pytest.raises(InputError, match="leads out of its folder"):
        wds.load(tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("photo_0009.jpg", b"x"), r"key photo_0009 has 0 \.txt members"),
        (("photo_0009.txt", b"x"), "key photo_0009 has 0 image members"),
        (("photo_0000.png", b"x"), "key photo_0000 has 2 image members"),
        (("photo_0000.txt", b"x"), r"key photo_0000 has 2 \.txt members"),
    ],
)
def test_an_incomplete_or_doubled_row_is_named(
    extra: tuple[str, bytes], message: str, tmp_path: Path, photos: list[Photo]
) -> None:
    write_tar(tmp_path / "0.tar", [*tar_files(photos), extra])
    with pytest.raises(InputError, match=message):
        wds.load(tmp_path)


def test_a_key_in_two_shards_is_named(tmp_path: Path, photos: list[Photo]) -> None:
    for shard in ("0.tar", "1.tar"):
        write_tar(tmp_path / shard, tar_files(photos))
    with pytest.raises(InputError, match="image id 'photo_0000' stands twice"):
        wds.load(tmp_path)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"x" * (wds.TEXT_LIMIT_BYTES + 1)])
def test_text_that_is_not_utf8_or_too_long_is_named(text: bytes, tmp_path: Path, photos: list[Photo]) -> None:
    write_tar(tmp_path / "0.tar", [("photo_0009.jpg", photos[0].data), ("photo_0009.txt", text)])
    with pytest.raises(InputError, match=r"photo_0009\.txt"):
        wds.load(tmp_path)


def test_a_missing_shard_is_noticed(tmp_path: Path, photos: list[Photo]) -> None:
    dataset = write_wds(tmp_path / "made", photos, shards=2)
    (tmp_path / "made" / "test" / "1.tar").unlink()
    with pytest.raises(InputError, match=r"nshards\.txt states b'2' shards, got 1"):
        load_collection(dataset)


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, photos: list[Photo]) -> None:
    write_tar(tmp_path / "0.tar", tar_files(photos))
    whole = (tmp_path / "0.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end, 256):
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"0\.tar is no whole tar"):
            wds.load(tmp_path)


def test_a_damaged_header_is_refused_not_taken_for_the_end(tmp_path: Path, photos: list[Photo]) -> None:
    write_tar(tmp_path / "0.tar", tar_files(photos))
    whole = bytearray((tmp_path / "0.tar").read_bytes())
    whole[whole.index(b"photo_0003.jpg")] ^= 0x01
    (tmp_path / "0.tar").write_bytes(whole)
    with pytest.raises(InputError, match="no end mark"):
        wds.load(tmp_path)


def test_a_compressed_tar_is_refused(tmp_path: Path, photos: list[Photo]) -> None:
    write_tar(tmp_path / "plain", tar_files(photos))
    with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
        tar.add(tmp_path / "plain", "photo_0000.jpg")
    with pytest.raises(InputError, match="compressed tars are not read"):
        wds.load(tmp_path)


def test_a_shard_that_shrank_after_loading_is_named(tmp_path: Path, photos: list[Photo]) -> None:
    write_tar(tmp_path / "0.tar", tar_files(photos))
    image = wds.load(tmp_path).images[-1]
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"image photo_0004 cannot be read: .* ends within"):
        image.decode()


def test_long_names_and_pax_headers_are_understood(tmp_path: Path, photos: list[Photo]) -> None:
    stem = "long" * 60
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in ((f"{stem}.jpg", photos[0].data), (f"{stem}.txt", "ünï".encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    collection = wds.load(tmp_path)
    assert collection.images[0].id == stem
    assert list(collection.captions) == ["ünï"]
