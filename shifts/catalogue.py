"""Every shift there is, one line each, and the way from an id such as `gaussian_noise:3` to a shifted sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Literal

import numpy as np

from bench.errors import InputError, UsageError, unknown_name
from shifts.lazy import Lazy
from shifts.resources import find_missing_packages
from shifts.seeding import SampleStreams, sample_rng

Modality = Literal["image", "text", "gallery_image", "gallery_text"]


@dataclass(frozen=True)
class Shift:
    """A named change of a sample at a severity; an id names one severity of it.

    Args:
        name: as in the literature; with the family in front for text (`typo_keyboard`).
        family: what it is averaged with: noise, blur, digital, domain, typo, ...
        modality: what it changes. An `image` or `text` shift replaces the sample; a `gallery_...` shift leaves it and
            adds to the gallery one distractor made from it.
        severities: those that exist, weakest first.
        version: raised whenever the same inputs would give other bytes.
        apply: `(item, severity, rng) -> item`, pure. Images are (height, width, 3) uint8 pixels and keep their size,
            captions are strings; a `gallery_image` shift takes a pair of images, the sample and its partner. It
            trusts its arguments: `apply_shift` is the checked way in.
        summary: one line for people.
        seeded: False if `apply` ignores `rng`, so that other seeds give the same sample.
    """

    name: str
    family: str
    modality: Modality
    severities: tuple[int, ...]
    version: int
    apply: Callable[[Any, int, np.random.Generator], Any]
    summary: str
    seeded: bool = True

    def id(self, severity: int) -> str:
        """The id of this shift at `severity`, such as "gaussian_noise:3"."""
        return f"{self.name}:{severity}"


def _shift(
    name: str,
    family: str,
    modality: Modality,
    severities: tuple[int, ...],
    version: int,
    module: str,
    summary: str,
    seeded: bool = True,
) -> Shift:
    """A line of the catalogue; its function stands in `shifts.<module>` and is named as the shift is."""
    return Shift(name, family, modality, severities, version, Lazy(module, name), summary, seeded)


_OWN_MODELS = {
    "word_insert": "text.masked_lm",
    "sentence_back_translation": "text.translation",
    "sentence_back_translation_pt": "text.translation",
}
FIVE = (1, 2, 3, 4, 5)
ONE = (1,)

CATALOGUE: tuple[Shift, ...] = (
    _shift("gaussian_noise", "noise", "image", FIVE, 2, "image.noise", "sensor noise in low light"),
    _shift("shot_noise", "noise", "image", FIVE, 1, "image.noise", "photon noise: too few of them"),
    _shift("impulse_noise", "noise", "image", FIVE, 1, "image.noise", "salt and pepper: dead and stuck values"),
    _shift("speckle_noise", "noise", "image", FIVE, 1, "image.noise", "noise in proportion to the light"),
    _shift("gaussian_blur", "blur", "image", FIVE, 1, "image.blur", "smoothed", seeded=False),
    _shift("defocus_blur", "blur", "image", FIVE, 2, "image.blur", "a lens out of focus", seeded=False),
    _shift("glass_blur", "blur", "image", FIVE, 1, "image.blur", "seen through frosted glass"),
    _shift("motion_blur", "blur", "image", FIVE, 1, "image.blur", "the camera moved"),
    _shift("zoom_blur", "blur", "image", FIVE, 1, "image.blur", "moved towards while exposed", seeded=False),
    _shift("snow", "weather", "image", FIVE, 1, "image.weather", "falling snow in a whitened scene"),
    _shift("frost", "weather", "image", FIVE, 1, "image.weather", "ice crystals on the lens"),
    _shift("fog", "weather", "image", FIVE, 1, "image.weather", "fog in drifts"),
    _shift("brightness", "weather", "image", FIVE, 1, "image.weather", "overexposed", seeded=False),
    _shift("spatter", "weather", "image", FIVE, 1, "image.weather", "rain or mud on the lens"),
    _shift("contrast", "digital", "image", FIVE, 1, "image.digital", "little contrast", seeded=False),
    _shift("saturate", "digital", "image", FIVE, 1, "image.digital", "colours too weak or too strong", seeded=False),
    _shift("elastic_transform", "digital", "image", FIVE, 1, "image.digital", "stretched like rubber"),
    _shift("pixelate", "digital", "image", FIVE, 1, "image.digital", "too few pixels, enlarged", seeded=False),
    _shift("jpeg_compression", "digital", "image", FIVE, 1, "image.digital", "saved as a small JPEG", seeded=False),
    _shift("blue_noise_sample", "cbar", "image", FIVE, 1, "image.cbar", "scattered pixels turned black"),
    _shift("brownish_noise", "cbar", "image", FIVE, 1, "image.cbar", "large coloured blotches"),
    _shift("caustic_refraction", "cbar", "image", FIVE, 1, "image.cbar", "seen through moving water"),
    _shift("checkerboard_cutout", "cbar", "image", FIVE, 1, "image.cbar", "squares of a checkerboard cut out"),
    _shift("cocentric_sine_waves", "cbar", "image", FIVE, 1, "image.cbar", "concentric waves laid over"),
    _shift("inverse_sparkles", "cbar", "image", FIVE, 1, "image.cbar", "white all round a star-shaped window"),
    _shift("perlin_noise", "cbar", "image", FIVE, 1, "image.cbar", "grey clouds of several octaves laid over"),
    _shift("plasma_noise", "cbar", "image", FIVE, 1, "image.cbar", "a coloured fractal laid over"),
    _shift("single_frequency_greyscale", "cbar", "image", FIVE, 1, "image.cbar", "a grey grating laid over"),
    _shift("sparkles", "cbar", "image", FIVE, 1, "image.cbar", "bright star-shaped flares"),
    _shift("sketch", "domain", "image", FIVE, 1, "image.sketch", "drawn in pencil, ever more sparely", seeded=False),
    _shift("cartoon", "domain", "image", FIVE, 1, "image.cartoon", "flat colours inside dark outlines", seeded=False),
    _shift("painting", "domain", "image", FIVE, 1, "image.painting", "oil, in ever broader strokes", seeded=False),
    _shift("watercolour", "domain", "image", FIVE, 1, "image.watercolour", "washes on white paper", seeded=False),
    _shift("greyscale", "domain", "image", ONE, 1, "image.tone", "without colour", seeded=False),
    _shift("negative", "domain", "image", ONE, 1, "image.tone", "every value inverted", seeded=False),
    _shift("night", "domain", "image", FIVE, 1, "image.tone", "dark, bluish and grainy"),
    _shift("thermal_palette", "domain", "image", ONE, 1, "image.tone", "brightness as false colours", seeded=False),
    _shift("rotation", "domain", "image", FIVE, 1, "image.tone", "turned, to either side"),
    _shift("low_resolution", "domain", "image", FIVE, 1, "image.tone", "small and enlarged smoothly", seeded=False),
    _shift("typo_keyboard", "typo", "text", FIVE, 2, "text.typo", "letters of neighbouring keys"),
    _shift("typo_ocr", "typo", "text", FIVE, 1, "text.typo", "characters that scanners confuse"),
    _shift("typo_char_insert", "typo", "text", FIVE, 1, "text.typo", "letters too many"),
    _shift("typo_char_replace", "typo", "text", FIVE, 1, "text.typo", "letters for other letters"),
    _shift("typo_char_swap", "typo", "text", FIVE, 1, "text.typo", "neighbouring letters the wrong way round"),
    _shift("typo_char_delete", "typo", "text", FIVE, 1, "text.typo", "letters missing"),
    _shift("typo_misspelling", "typo", "text", FIVE, 1, "text.typo", "words as people misspell them"),
    _shift("typo_homoglyph", "typo", "text", FIVE, 1, "text.typo", "letters of other alphabets that look the same"),
    _shift("typo_casing", "typo", "text", FIVE, 1, "text.typo", "upper and lower case mixed up"),
    _shift("typo_whitespace", "typo", "text", FIVE, 1, "text.typo", "spaces lost, doubled and inside words"),
    _shift("word_synonym_replace", "word", "text", FIVE, 1, "text.word", "words replaced by synonyms"),
    _shift("word_insert", "word", "text", FIVE, 1, "text.word", "words added that a language model expects"),
    _shift("word_swap", "word", "text", FIVE, 1, "text.word", "neighbouring words the wrong way round"),
    _shift("word_delete", "word", "text", FIVE, 1, "text.word", "words missing"),
    _shift("word_insert_punctuation", "word", "text", FIVE, 1, "text.word", "punctuation between words"),
    _shift("word_stopword_drop", "word", "text", FIVE, 1, "text.word", "articles and other small words missing"),
    _shift(
        "sentence_passive", "sentence", "text", ONE, 1, "text.sentence", "active clauses turned passive", seeded=False
    ),
    _shift(
        "sentence_active", "sentence", "text", ONE, 1, "text.sentence", "passive clauses turned active", seeded=False
    ),
    _shift("sentence_formal", "sentence", "text", ONE, 1, "text.sentence", "in formal words"),
    _shift("sentence_casual", "sentence", "text", ONE, 1, "text.sentence", "in casual words"),
    _shift(
        "sentence_back_translation",
        *("sentence", "text", ONE, 1, "text.translation", "to German and back, by Marian models of the hub"),
        seeded=False,
    ),
    _shift(
        "sentence_back_translation_pt",
        *("sentence", "text", ONE, 1, "text.translation", "to Portuguese and back, by a packaged model"),
        seeded=False,
    ),
    _shift("sentence_template", "sentence", "text", ONE, 1, "text.sentence", "inside another phrase"),
    _shift(
        "gallery_same_concept",
        *("gallery", "gallery_text", ONE, 1, "gallery", "distractors: a noun for another of its kind"),
    ),
    _shift(
        "gallery_diff_concept",
        *("gallery", "gallery_text", ONE, 1, "gallery", "distractors: a noun for one of another kind"),
    ),
    _shift(
        "gallery_rand_voca",
        *("gallery", "gallery_text", ONE, 1, "gallery", "distractors: a noun for any word"),
    ),
    _shift(
        "gallery_danger",
        *("gallery", "gallery_text", ONE, 1, "gallery", "distractors: a noun for a dangerous thing"),
    ),
    _shift(
        "gallery_mix", "gallery", "gallery_image", FIVE, 1, "gallery", "distractors: two photos blended", seeded=False
    ),
    _shift("gallery_patch", "gallery", "gallery_image", FIVE, 1, "gallery", "distractors: a patch of another photo"),
)


def find_shift(name: str) -> Shift:
    """The shift of that name, without a severity.

    Raises:
        UsageError: there is none; the message offers the nearest.
    """
    for shift in CATALOGUE:
        if shift.name == name:
            return shift
    raise unknown_name("shift", name, (shift.name for shift in CATALOGUE), "rove list shifts")


def parse_shift(shift_id: str) -> tuple[Shift, int]:
    """The shift and severity that an id names; an id always states its severity (`sentence_passive:1` too).

    Raises:
        UsageError: the name is unknown, or the severity is missing or not one of the shift's.
    """
    name, _, severity = shift_id.partition(":")
    shift = find_shift(name)
    for known in shift.severities:
        if str(known) == severity:
            return shift, known
    raise _bad_severity(shift, severity)


def apply_shift(shift: Shift, severity: int, item: Any, sample_id: str, seed: int) -> Any:
    """The item shifted, a function of the arguments and the shift's version alone; the item itself stays untouched.

    Args:
        shift: from the catalogue.
        severity: one of the shift's.
        item: (height, width, 3) uint8 pixels, a pair of those, or a caption, by the shift's modality.
        sample_id: the item's stable id within its collection.
        seed: the suite's seed.

    Raises:
        UsageError: the shift has no such severity.
        InputError: the item is not what the shift's modality takes; the message names the sample.
    """
    if severity not in shift.severities:
        raise _bad_severity(shift, severity)
    _check_item(shift, item, sample_id)
    return shift.apply(item, severity, sample_rng(seed, shift.name, shift.version, severity, sample_id))


def shift_captions(shift: Shift, severity: int, captions: Sequence[str], ids: Sequence[str], seed: int) -> list[str]:
    """What `apply_shift` makes of each caption, several times faster: one generator is re-keyed for every sample."""
    if severity not in shift.severities:
        raise _bad_severity(shift, severity)
    streams = SampleStreams(seed, shift.name, shift.version, severity)
    return [shift.apply(caption, severity, streams.of(name)) for caption, name in zip(captions, ids, strict=True)]


def find_missing(name: str) -> str:
    """Why the shift of that name cannot run here, "" if it can: a package or a model of the hub may be missing."""
    shift = find_shift(name)
    if shift.family in ("word", "sentence") or shift.modality == "gallery_text":
        missing = find_missing_packages()
        if missing:
            return missing
    return import_module(f"shifts.{_OWN_MODELS[name]}").find_missing(name) if name in _OWN_MODELS else ""


def match_shifts(pattern: str) -> list[Shift]:
    """The shifts that a name or a pattern such as `typo_*` names, in the catalogue's order; `all` is all.

    Raises:
        UsageError: there are none; the message offers the nearest name.
    """
    found = [shift for shift in CATALOGUE if pattern == "all" or fnmatchcase(shift.name, pattern)]
    return found or [find_shift(pattern)]


def _bad_severity(shift: Shift, severity: object) -> UsageError:
    known = ", ".join(map(str, shift.severities))
    got = f"'{severity}'" if str(severity) else "none"
    return UsageError(f"{shift.name} exists at severity {known}; got {got}. Write {shift.id(shift.severities[-1])}.")


def _check_item(shift: Shift, item: object, sample_id: str) -> None:
    if shift.modality in ("text", "gallery_text"):
        if not isinstance(item, str):
            raise InputError(f"{shift.name} got {type(item).__name__} for caption {sample_id}; expected a string.")
        return
    images = item if shift.modality == "gallery_image" and isinstance(item, tuple) else (item,)
    wrong = next((image for image in images if not _is_pixels(image)), None)
    if wrong is not None or len(images) != 1 + (shift.modality == "gallery_image"):
        got = f"{wrong.dtype} {wrong.shape}" if isinstance(wrong, np.ndarray) else type(item).__name__
        wanted = "(height, width, 3) uint8 pixels" + (", twice" if shift.modality == "gallery_image" else "")
        raise InputError(f"{shift.name} got {got} for image {sample_id}; expected {wanted}.")


def _is_pixels(item: object) -> bool:
    return (
        isinstance(item, np.ndarray)
        and item.dtype == np.uint8
        and item.ndim == 3
        and item.shape[2] == 3
        and item.size > 0
    )
