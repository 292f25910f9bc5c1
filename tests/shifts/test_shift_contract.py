"""What every shift of the catalogue promises, whatever it does."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo

from shifts.catalogue import CATALOGUE, Shift, apply_shift, find_missing, shift_captions

CELLS = [pytest.param(shift, severity, id=shift.id(severity)) for shift in CATALOGUE for severity in shift.severities]
SHIFTS = [pytest.param(shift, id=shift.name) for shift in CATALOGUE]
IMAGE_SHIFTS = [pytest.param(shift, id=shift.name) for shift in CATALOGUE if shift.modality.endswith("image")]
TEXT_SHIFTS = [pytest.param(shift, id=shift.name) for shift in CATALOGUE if shift.modality.endswith("text")]
CAPTION = "A man in a blue shirt is cleaning the window of an old house, near the sea, and a dog is watching him."
CAPTIONS = {
    "sentence_active": "A ball is being chased by two dogs on the beach.",
    "word_synonym_replace": "Small children, large dogs, a person and a baby near couches, cars, rocks, phones, "
    "bushes and airplanes outside huge buildings.",
    "word_stopword_drop": "There is a man in a shirt and he is on the top of a house that was not his, by the sea, "
    "with a dog that is at the foot of it and which does not go to him.",
    "sentence_back_translation_pt": "A large building with a metal clock on the front.",
}
ORDERED_BY_OTHER_MEANS = {
    "saturate",
    "elastic_transform",
    "glass_blur",
    "snow",
    "frost",
    "fog",
    "checkerboard_cutout",
    "pixelate",
}
Item = np.ndarray | tuple[np.ndarray, np.ndarray] | str


@pytest.fixture(autouse=True)
def _runnable(request: pytest.FixtureRequest) -> None:
    shift = getattr(request.node, "callspec", None) and request.node.callspec.params.get("shift")
    if shift and (reason := find_missing(shift.name)):
        pytest.skip(reason)


def sample(shift: Shift, height: int = 96, width: int = 128) -> Item:
    if shift.modality.endswith("text"):
        return CAPTIONS.get(shift.name, CAPTION)
    photo = synthetic_photo(height, width)
    return (photo, synthetic_photo(80, 120, seed=1)) if shift.modality == "gallery_image" else photo


def paired(shift: Shift, pixels: np.ndarray) -> Item:
    return (pixels, synthetic_photo(80, 120, seed=1)) if shift.modality == "gallery_image" else pixels


def digest(item: Item) -> str:
    if isinstance(item, tuple):
        return "".join(digest(part) for part in item)
    data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item.tobytes()
    return hashlib.sha256(data).hexdigest()


def change(before: Item, after: np.ndarray | str) -> float:
    if isinstance(before, str):
        return edit_distance(before, str(after))
    own = before[0] if isinstance(before, tuple) else before
    return float(np.abs(own.astype(int) - after).mean())


def edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_names_are_unique_and_every_line_is_complete() -> None:
    assert len({shift.name for shift in CATALOGUE}) == len(CATALOGUE)
    for shift in CATALOGUE:
        assert shift.severities == tuple(range(1, len(shift.severities) + 1))
        assert shift.version >= 1
        assert shift.summary


@pytest.mark.parametrize("shift", SHIFTS)
def test_it_survives_the_way_to_a_worker_process(shift: Shift) -> None:
    assert pickle.loads(pickle.dumps(shift)) == shift


@pytest.mark.parametrize(("shift", "severity"), CELLS)
def test_same_inputs_give_the_same_bytes(shift: Shift, severity: int) -> None:
    first, second = (apply_shift(shift, severity, sample(shift), "a", seed=3) for _ in range(2))
    assert digest(first) == digest(second)
    assert digest(first) != digest(sample(shift))


@pytest.mark.parametrize(("shift", "severity"), CELLS)
def test_draws_belong_to_the_sample_and_the_seed(shift: Shift, severity: int) -> None:
    keys = [("a", 0), ("b", 0), ("a", 1)]
    digests = {digest(apply_shift(shift, severity, sample(shift), name, seed)) for name, seed in keys}
    assert len(digests) == (len(keys) if shift.seeded else 1)


@pytest.mark.parametrize("shift", SHIFTS)
def test_order_and_threads_do_not_matter(shift: Shift) -> None:
    names = [f"{i}.jpg" for i in range(6)]

    def shifted(name: str) -> str:
        return digest(apply_shift(shift, shift.severities[-1], sample(shift), name, seed=0))

    one_by_one = {name: shifted(name) for name in names}
    backwards = names[::-1]
    with ThreadPoolExecutor(4) as pool:
        assert dict(zip(backwards, pool.map(shifted, backwards), strict=True)) == one_by_one


@pytest.mark.parametrize("shift", IMAGE_SHIFTS)
def test_opencv_threads_and_place_in_memory_do_not_matter(shift: Shift) -> None:
    photo = synthetic_photo(96, 128)
    threads = cv2.getNumThreads()
    digests = set()
    try:
        for n_threads, offset in itertools.product((1, 2, 4), (0, 1, 16, 32)):
            cv2.setNumThreads(n_threads)
            moved = np.empty(photo.size + offset, np.uint8)[offset:].reshape(photo.shape)
            moved[...] = photo
            item = paired(shift, moved)
            digests.add("".join(digest(apply_shift(shift, severity, item, "a", 0)) for severity in shift.severities))
    finally:
        cv2.setNumThreads(threads)
    assert len(digests) == 1


@pytest.mark.parametrize(("shift", "severity"), CELLS)
def test_input_and_global_random_state_stay_untouched(shift: Shift, severity: int) -> None:
    item = sample(shift)
    for part in item if isinstance(item, tuple) else (item,):
        if isinstance(part, np.ndarray):
            part.setflags(write=False)
    python_state, numpy_state = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    before = digest(item)
    apply_shift(shift, severity, item, "a", seed=0)
    assert digest(item) == before
    assert random.getstate() == python_state
    assert pickle.dumps(np.random.get_state()) == numpy_state  # noqa: NPY002


@pytest.mark.parametrize("shift", SHIFTS)
def test_each_severity_changes_more_than_the_one_below(shift: Shift) -> None:
    if shift.name in ORDERED_BY_OTHER_MEANS:
        pytest.skip("its published constants are not ordered by how much they change")
    changes = [
        np.mean([change(sample(shift), apply_shift(shift, severity, sample(shift), str(i), 0)) for i in range(8)])
        for severity in shift.severities
    ]
    if shift.modality == "gallery_image":  # a distractor is the harder, the more it is like the sample
        changes.reverse()
    assert changes == sorted(set(changes))
    assert changes[0] > 0


@pytest.mark.parametrize("size", [(32, 32), (33, 517), (517, 33), (32, 4000), (384, 512)])
@pytest.mark.parametrize("shift", IMAGE_SHIFTS)
def test_pixels_keep_size_and_type(shift: Shift, size: tuple[int, int]) -> None:
    photo = synthetic_photo(*size)
    for severity in shift.severities:
        shifted = apply_shift(shift, severity, paired(shift, photo), "a", seed=0)
        assert shifted.shape == photo.shape
        assert shifted.dtype == np.uint8
        assert shifted.flags.writeable
        assert not np.shares_memory(shifted, photo)


@pytest.mark.parametrize("shift", IMAGE_SHIFTS)
def test_any_view_and_any_content_pass(shift: Shift) -> None:
    photo = synthetic_photo(64, 80)
    grey = np.repeat(photo[..., :1], 3, axis=2)
    flat = [np.full((40, 40, 3), level, np.uint8) for level in (0, 127, 255)]
    for pixels in (grey, *flat, photo[::-1, ::2], np.asfortranarray(photo), photo[..., ::-1]):
        for severity in shift.severities:
            shifted = apply_shift(shift, severity, paired(shift, pixels), "a", seed=0)
            same_content = apply_shift(shift, severity, paired(shift, np.ascontiguousarray(pixels)), "a", seed=0)
            np.testing.assert_array_equal(shifted, same_content)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "a",
        "7",
        "?!",
        "A dog.",
        "naïve café",
        "كلب يركض",
        "שלום עולם",
        "犬が走る",
        "🐕‍🦺 runs",
        "a\0b",
        "\ud800x",
        "ab " * 3334,
    ],
    ids=lambda caption: ascii(caption[:12]),
)
@pytest.mark.parametrize("shift", TEXT_SHIFTS)
def test_any_string_passes(shift: Shift, caption: str) -> None:
    for severity in shift.severities:
        assert isinstance(apply_shift(shift, severity, caption, "a", seed=0), str)


@pytest.mark.parametrize("shift", TEXT_SHIFTS)
def test_many_captions_at_once_give_what_each_gives_alone(shift: Shift) -> None:
    captions, ids = [CAPTION, "", "Two dogs chase a red ball.", CAPTION], ["a", "b", "c#0", "ü"]
    for severity in shift.severities:
        alone = [apply_shift(shift, severity, text, name, seed=4) for text, name in zip(captions, ids, strict=True)]
        assert shift_captions(shift, severity, captions, ids, seed=4) == alone
