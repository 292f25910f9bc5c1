"""Small files that ask for much, lie about themselves or are cut, and the plain ones that they are made from."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

WIDTH, HEIGHT = 12, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BLOCK = tarfile.BLOCKSIZE


def encode(image: PIL.Image.Image | None = None, form: str = "PNG", **options: object) -> bytes:
    """An image, PIXELS unless given, as a file."""
    buffer = io.BytesIO()
    (image or PIL.Image.fromarray(PIXELS)).save(buffer, form, **options)
    return buffer.getvalue()


def frames(form: str) -> bytes:
    """Two frames, red and blue."""
    red, blue = (PIL.Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    return encode(red, form, save_all=True, append_images=[blue], **({"lossless": True} if form == "WEBP" else {}))


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG, with a right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int = 8, colour: int = 2, body: bytes = b"\0", extra: bytes = b"") -> bytes:
    """A PNG that declares a size, whatever it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def png_with(extra: bytes) -> bytes:
    """A good PNG with more parts in front of its pixels."""
    whole = encode()
    at = whole.index(b"IDAT") - 4
    return whole[:at] + extra + whole[at:]


def zeros(n_megabytes: int) -> bytes:
    """So many megabytes, compressed to a thousandth."""
    return zlib.compress(bytes(n_megabytes << 20), 9)


def gif(width: int, height: int, left: int = 0, top: int = 0) -> bytes:
    """A GIF of one pixel that declares a size for its first frame."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    """A BMP without pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def webp(width: int, height: int) -> bytes:
    """An animation of two small frames on a canvas of the given size."""
    data = bytearray(frames("WEBP"))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header declares a size."""
    data = bytearray(encode(form="JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(n_scans: int) -> bytes:
    """A progressive JPEG that sends its last scan over and over."""
    data = encode(form="JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * n_scans + data[-2:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A good JPEG with more segments at its beginning, and without its own first one."""
    data = encode(form="JPEG")
    own = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:2] + b"".join(bytes((255, m)) + struct.pack(">H", len(b) + 2) + b for m, b in segments) + data[own:]


def exif(n_tags: int, n_bytes: int) -> bytes:
    """Tags that all point at the same bytes: read one by one they come to their product."""
    start = 8 + 2 + 12 * n_tags + 4
    tags = b"".join(struct.pack("<HHII", 1000 + i, 7, n_bytes, start) for i in range(n_tags))
    return b"II*\0" + struct.pack("<IH", 8, n_tags) + tags + bytes(4 + n_bytes)


def exif_segments(data: bytes) -> list[tuple[int, bytes]]:
    """EXIF data over as many segments of a JPEG as they need."""
    return [(0xE1, b"Exif\0\0" + data[at : at + 65_000]) for at in range(0, len(data), 65_000)]


FOREIGN: dict[str, bytes] = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>',
    "html": b"<!DOCTYPE html><script>alert(1)</script>",
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100000 100000\n",
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
    "tiff": b"II*\0\x08\0\0\0" + bytes(200),
    "ico": b"\0\0\1\0\1\0" + bytes(40),
    "avif": b"\0\0\0\x1cftypavif" + bytes(100),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "pickle": pickle.dumps({"a": 1}),
    "zip": b"PK\3\4" + bytes(100),
    "gzip": gzip.compress(bytes(1000)),
    "program": b"\x7fELF" + bytes(100),
    "zeros": bytes(1 << 20),
    "nothing": b"",
}


def write_folder(root: Path, data: bytes, name: str = "a.jpg", captions: object = ("a caption",)) -> str:
    """A data set of one image."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    return describe_folder(root, name, json.dumps(captions))


def describe_folder(root: Path, name: str, captions: str) -> str:
    """The `metadata.jsonl` of a data set of one image."""
    root.mkdir(parents=True, exist_ok=True)
    line = f'{{"file_name": {json.dumps(name)}, "captions": {captions}}}\n'
    (root / "metadata.jsonl").write_text(line, encoding="utf-8")
    return f"folder:{root}"


def write_sparse(path: Path, n_bytes: int, start: bytes = b"") -> None:
    """A file that is as long as it says and takes no space."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(n_bytes)


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """The header of a tar's member in the oldest form, with whatever size it is to state."""
    head = bytearray(BLOCK)
    raw = name.encode("utf-8", errors="surrogateescape")[:100]
    head[: len(raw)] = raw
    head[100:108] = b"0000644\0"
    head[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else b"\xff" + (size % 2**88).to_bytes(11, "big")
    head[136:148] = b"%011o\0" % 0
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[157 : 157 + len(link)] = link.encode()
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A member of a tar, header and contents."""
    return entry(name, len(data), kind, link) + data + bytes(-len(data) % BLOCK)


def tar(*members: bytes) -> bytes:
    """Members with an end mark behind them."""
    return b"".join(members) + bytes(2 * BLOCK)


def row(key: str, text: bytes = b"a caption") -> bytes:
    """The two members of a good row."""
    return member(f"{key}.png", encode()) + member(f"{key}.txt", text)


def write_tar(root: Path, data: bytes) -> str:
    """A data set of one shard."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "0.tar").write_bytes(data)
    return f"wds:{root}"


def pax(records: Sequence[tuple[str, str]]) -> bytes:
    """An extended header with records for the next member."""
    body = b""
    for key, value in records:
        text = f" {key}={value}\n".encode("utf-8", errors="surrogateescape")
        length = len(text)
        while length != len(str(length)) + len(text):
            length = len(str(length)) + len(text)
        body += str(length).encode() + text
    return member("pax", body, tarfile.XHDTYPE)


def safetensors(header: bytes, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file of tensors with whatever header, and whatever length it states."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data
