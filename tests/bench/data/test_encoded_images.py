"""Decoding: conventions, refusals, and that nothing is read before it is asked for."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from bench.data.images import PIXEL_LIMIT, EncodedImage, decode_image
from bench.errors import InputError

GRADIENT = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def encoded(image: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_nothing_is_read_before_it_is_asked_for_and_the_digest_is_kept() -> None:
    reads = []
    image = EncodedImage("a.png", lambda: reads.append(1) or encoded(PIL.Image.fromarray(GRADIENT)))
    assert image.id == "a.png"
    assert not reads
    assert image.sha256 == image.sha256
    assert len(reads) == 1
    image.decode()
    image.decode()
    assert len(reads) == 3


def test_an_image_on_disk_survives_pickling(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PIL.Image.fromarray(GRADIENT)))
    copy = pickle.loads(pickle.dumps(EncodedImage("a.png", path.read_bytes)))
    np.testing.assert_array_equal(np.asarray(copy.decode()), GRADIENT)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_same_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode_image(encoded(PIL.Image.fromarray(GRADIENT), form, **options), "a")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: GRADIENT,
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.swapaxes(0, 1),
        6: np.rot90(GRADIENT, -1),
        7: np.rot90(GRADIENT, 2).swapaxes(0, 1),
        8: np.rot90(GRADIENT),
    }[orientation]
    image = decode_image(encoded(PIL.Image.fromarray(GRADIENT), "PNG", exif=exif), "a")
    np.testing.assert_array_equal(np.asarray(image), turned)


def test_greyscale_is_repeated() -> None:
    grey = GRADIENT[:, :, 0]
    np.testing.assert_array_equal(
        np.asarray(decode_image(encoded(PIL.Image.fromarray(grey)), "a")), np.repeat(grey[:, :, None], 3, axis=2)
    )


def test_transparency_is_dropped_without_blending() -> None:
    rgba = np.dstack([GRADIENT, np.zeros(GRADIENT.shape[:2], np.uint8)])
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(PIL.Image.fromarray(rgba)), "a")), GRADIENT)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_a_palette_is_looked_up(transparency: object) -> None:
    image = PIL.Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [10, 20, 30]]]
    assert np.asarray(decode_image(encoded(image, **options), "a")).tolist() == expected


def test_cmyk_and_the_first_frame_of_an_animation() -> None:
    cmyk = decode_image(encoded(PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), "a")
    assert np.asarray(cmyk)[0, 0, 0] > 240
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(animation, "a").getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_is_refused_instead_of_clipped_to_white() -> None:
    deep = encoded(PIL.Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    with pytest.raises(InputError, match=r"image deep\.png has pixel mode I;16"):
        decode_image(deep, "deep.png")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (PIXEL_LIMIT // 8000 + 1, 8000), (9_000, 9_900)])
def test_a_bomb_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(InputError, match=r"image bomb\.png is too large"):
        decode_image(png_header(width, height), "bomb.png")


def test_the_limit_itself_is_allowed_past_the_size_check() -> None:
    with pytest.raises(InputError, match="corrupt"):
        decode_image(png_header(100, 100), "empty.png")


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_by_name(form: str) -> None:
    data = encoded(PIL.Image.new("RGB", (16, 16)), form)
    with pytest.raises(
        InputError, match=r"image odd\.jpg is corrupt or of another format; expected an intact one of JPEG"
    ):
        decode_image(data, "odd.jpg")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
def test_a_truncated_file_is_refused_never_padded(form: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(PIL.Image.fromarray(noise), form)
    with pytest.raises(InputError, match=r"image cut\.jpg"):
        decode_image(data[: int(len(data) * keep)], "cut.jpg")


def outcome_of(data: bytes) -> str:
    try:
        return decode_image(data, "flipped").mode
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_flipped_byte_gives_an_image_or_an_error_that_names_it(form: str) -> None:
    data = encoded(PIL.Image.fromarray(GRADIENT), form)
    flipped = [data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :] for i in range(len(data))]
    outcomes = [outcome_of(damaged) for damaged in flipped]
    refusals = [outcome for outcome in outcomes if outcome != "RGB"]
    assert refusals
    assert all(refusal.startswith("image flipped ") for refusal in refusals)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    image = EncodedImage("gone.jpg", (tmp_path / "gone.jpg").read_bytes)
    with pytest.raises(InputError, match=r"image gone\.jpg cannot be read"):
        image.decode()
    with pytest.raises(InputError, match=r"image gone\.jpg cannot be read"):
        _ = image.sha256
