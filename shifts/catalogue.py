"""Every shift there is, one line each, and the way from an id such as `gaussian_noise:3` to a shifted sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

import numpy as np

from bench.errors import InputError, UsageError, unknown_name
from shifts.seeding import sample_rng

Modality = Literal["image", "text", "gallery"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shift:
    """A named change of a sample at a severity; an id names one severity of it.

    Args:
        name: as in the literature; with the family in front for text (`typo_keyboard`).
        family: what it is averaged with: noise, blur, digital, domain, typo, ...
        modality: what it changes, and so what `apply` takes.
        severities: those that exist, weakest first.
        version: raised whenever the same inputs would give other bytes.
        apply: `(item, severity, rng) -> item`, pure. Images are (height, width, 3) uint8 pixels and keep their size,
            captions are strings. It trusts its arguments: `apply_shift` is the checked way in.
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


@dataclass(frozen=True)
class _Lazy:
    """A function of `shifts.<module>` that is imported when first called: listing shifts must not load OpenCV."""

    module: str
    name: str

    def __call__(self, item: Any, severity: int, rng: np.random.Generator) -> Any:
        return getattr(import_module(f"shifts.{self.module}"), self.name)(item, severity, rng)


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
    return Shift(name, family, modality, severities, version, _Lazy(module, name), summary, seeded)


FIVE = (1, 2, 3, 4, 5)

CATALOGUE: tuple[Shift, ...] = (
    _shift("gaussian_noise", "noise", "image", FIVE, 1, "image.noise", "sensor noise in low light"),
    _shift("defocus_blur", "blur", "image", FIVE, 1, "image.blur", "a lens out of focus", seeded=False),
    _shift("jpeg_compression", "digital", "image", FIVE, 1, "image.digital", "saved as a small JPEG", seeded=False),
    _shift("sketch", "domain", "image", FIVE, 1, "image.style", "drawn in pencil, ever more sparely", seeded=False),
    _shift("typo_keyboard", "typo", "text", FIVE, 1, "text.typo", "letters of neighbouring keys"),
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


def apply_shift(shift: Shift, severity: int, item: Item, sample_id: str, seed: int) -> Item:
    """The item shifted, a function of the arguments and the shift's version alone; the item itself stays untouched.

    Args:
        shift: from the catalogue.
        severity: one of the shift's.
        item: (height, width, 3) uint8 pixels or a caption, by the shift's modality.
        sample_id: the item's stable id within its collection.
        seed: the suite's seed.

    Raises:
        UsageError: the shift has no such severity.
        InputError: the item is not what the shift's modality takes; the message names the sample.
    """
    if severity not in shift.severities:
        raise _bad_severity(shift, severity)
    _check_item(shift, item, sample_id)
    shifted: Item = shift.apply(item, severity, sample_rng(seed, shift.name, shift.version, severity, sample_id))
    return shifted


def _bad_severity(shift: Shift, severity: object) -> UsageError:
    known = ", ".join(map(str, shift.severities))
    got = f"'{severity}'" if str(severity) else "none"
    return UsageError(f"{shift.name} exists at severity {known}; got {got}. Write {shift.id(shift.severities[-1])}.")


def _check_item(shift: Shift, item: object, sample_id: str) -> None:
    if shift.modality == "text" and not isinstance(item, str):
        raise InputError(f"{shift.name} got {type(item).__name__} for caption {sample_id}; expected a string.")
    if shift.modality == "image" and not _is_pixels(item):
        got = f"{item.dtype} {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
        raise InputError(f"{shift.name} got {got} for image {sample_id}; expected (height, width, 3) uint8 pixels.")


def _is_pixels(item: object) -> bool:
    return (
        isinstance(item, np.ndarray)
        and item.dtype == np.uint8
        and item.ndim == 3
        and item.shape[2] == 3
        and item.size > 0
    )
