"""Payload files: what comes back, what repeats, what is refused, and that a failure leaves the old file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.errors import InputError, RoveError
from bench.retrieval import payload as payload_module
from bench.retrieval.page_cache import drop_from_page_cache
from bench.retrieval.payload import open_payload, write_payload


def tokens(n: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 5)).astype(np.float32)


def test_rows_come_back_in_order_and_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "CHUNK_BYTES", 130)
    write_payload(tmp_path / "deep" / "tokens.npy", tokens())
    payload = open_payload(tmp_path / "deep" / "tokens.npy")
    fetched = payload.fetch(np.array([[6, 0], [7, 2_000_000_003]]))
    assert fetched.dtype == np.float16
    assert fetched.flags.c_contiguous
    assert type(fetched) is np.ndarray
    assert (fetched == tokens().astype(np.float16)[[6, 0, 0, 2_000_000_003 % 7]]).all()
    assert (payload.n_items, payload.item_shape, payload.item_bytes) == (7, (3, 5), 30)
    assert payload.n_bytes == (tmp_path / "deep" / "tokens.npy").stat().st_size
    assert (np.load(tmp_path / "deep" / "tokens.npy") == tokens().astype(np.float16)).all()
    assert payload.fetch(np.array([], np.int64)).shape == (0, 3, 5)


def test_half_precision_is_kept_and_a_copy_is_returned(tmp_path: Path) -> None:
    halves = tokens().astype(np.float16)
    write_payload(tmp_path / "tokens.npy", halves[:, :, ::-1])
    payload = open_payload(tmp_path / "tokens.npy")
    payload.fetch(np.arange(7))[:] = 0
    assert (payload.fetch(np.arange(7)) == halves[:, :, ::-1]).all()


@pytest.mark.parametrize(("value", "words"), [(70000.0, "item 5 reach 70000"), (np.nan, "item 5 reach nan")])
def test_values_that_do_not_fit_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, words: str
) -> None:
    monkeypatch.setattr(payload_module, "CHUNK_BYTES", 130)
    write_payload(tmp_path / "tokens.npy", tokens(4))
    wrong = tokens()
    wrong[5, 1, 2] = value
    with pytest.raises(InputError, match=words):
        write_payload(tmp_path / "tokens.npy", wrong)
    assert open_payload(tmp_path / "tokens.npy").n_items == 4
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]
    for unusable in (tokens().astype(np.float64), tokens()[:0], tokens()[:, 0, 0]):
        with pytest.raises(InputError, match="expected float16 or float32"):
            write_payload(tmp_path / "tokens.npy", unusable)
    with pytest.raises(RoveError, match="below"):
        write_payload(tmp_path / "tokens.npy" / "below", tokens())


def test_rows_that_are_none(tmp_path: Path) -> None:
    write_payload(tmp_path / "tokens.npy", tokens())
    payload = open_payload(tmp_path / "tokens.npy")
    with pytest.raises(InputError, match="row -1"):
        payload.fetch(np.array([3, -1]))
    with pytest.raises(InputError, match="float64"):
        payload.fetch(np.array([0.5]))


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    write_payload(path, tokens())
    whole = path.read_bytes()
    for damaged in (whole[:-2], whole[:40], b"", b"\x93NUMPX" + whole[6:], whole + b"\0\0"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"tokens\.npy.*encode the collection again"):
            open_payload(path)
    np.save(path, tokens())
    with pytest.raises(InputError, match="holds no tokens"):
        open_payload(path)
    np.save(path, np.asfortranarray(tokens().astype(np.float16)))
    with pytest.raises(InputError, match=r"tokens\.npy"):
        open_payload(path)
    with pytest.raises(InputError, match="No such file"):
        open_payload(tmp_path / "absent.npy")


def test_dropping_it_from_the_cache_loses_nothing(tmp_path: Path) -> None:
    write_payload(tmp_path / "tokens.npy", tokens())
    payload = open_payload(tmp_path / "tokens.npy")
    payload.fetch(np.arange(7))
    payload.drop_cached()
    drop_from_page_cache(tmp_path / "tokens.npy")
    assert (payload.fetch(np.arange(7)) == tokens().astype(np.float16)).all()
