"""The collections of a fit: what is learnt from, what choices are made on, and whether a test split is among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.data.registry import DATASETS, load_collection, parse_dataset
from bench.errors import RoveError
from bench.records import Manifest
from bench.types import Collection

TEST_SPLIT, VALIDATION_SPLIT = "test", "val"
_MAYBE_WHOLE = ("classes", "folder", "wds")


@dataclass(frozen=True)
class FitData:
    """What a fit is given to learn from.

    Args:
        train: the collection to learn from.
        validation: for choices; None lets the recipe hold out a part of `train`.
        test: the test split of the data set that `train` is of, if it is at hand and not `train` itself.
        license: of that data set; empty where it is not known.
        generic: what the base knows already and is not to forget, with its own validation and test split; None where
            nothing of the kind is given.
    """

    train: Collection
    validation: Collection | None = None
    test: Collection | None = None
    license: str = ""
    generic: FitData | None = None

    @property
    def parts(self) -> tuple[FitData, ...]:
        """What is learnt from, and behind it what is not to be forgotten."""
        return (self,) if self.generic is None else (self, self.generic)


def load_fit_data(
    train: str,
    validation: str | None,
    own_validation: bool,
    data_dirs: Mapping[str, str],
    offline: bool,
    say: Callable[[str], None],
    generic: str | None = None,
) -> FitData:
    """The collections that the command line names, and those beside them that are here already.

    Args:
        train: DATASET; its split is `train` unless it names one.
        validation: DATASET, split `val` unless it names one; None where none is given.
        own_validation: whether the split `val` of `train`'s data set is taken where none is given.
        data_dirs: as `load_collection` takes them.
        offline: fetch nothing; splits that were not asked for are never fetched.
        say: takes lines for a person.
        generic: DATASET, split `train` unless it names one; its own split `val` is taken with it. None is none.

    Raises:
        UsageError: an unknown data set, format or split.
        InputError: what was asked for is absent or damaged.
    """
    named = _with_split(train, "train")
    learnt = load_collection(named, data_dirs=data_dirs, offline=offline)
    chosen = None
    if validation is not None:
        chosen = load_collection(_with_split(validation, VALIDATION_SPLIT), data_dirs=data_dirs, offline=offline)
    elif own_validation:
        chosen = _load_beside(named, VALIDATION_SPLIT, data_dirs)
        say(f"choosing by {chosen.name}." if chosen else f"{named} has no split val here: a part of it is held out.")
    kept = None if generic is None else load_fit_data(generic, None, True, data_dirs, offline, say)
    return FitData(learnt, chosen, _load_beside(named, TEST_SPLIT, data_dirs), _license_of(learnt), kept)


def saw_evaluation_data(data: FitData, base: Manifest | None) -> bool:
    """Whether images of a test split are known to be among what the weights have seen, or were chosen by.

    It is so if a collection's split is called `test`, if an image has the same bytes (sha256) as one of the test split
    of the same data set, or if the base has seen such data. What it cannot know: test images that were encoded anew,
    test splits of other data sets, a test split that is not on this machine (then names alone decide), and what a base
    has learnt from that does not say so.
    """
    if base is not None and _says_so(base):
        return True
    used = [collection for part in data.parts for collection in (part.train, part.validation) if collection]
    if any(is_test_split(collection.name) for collection in used):
        return True
    test = {image.sha256 for part in data.parts if part.test for image in part.test.images}
    return any(image.sha256 in test for collection in used for image in collection.images) if test else False


def is_test_split(name: str) -> bool:
    """Whether a collection's name says that it is a test split."""
    return name.rpartition("/")[2] == TEST_SPLIT


def _says_so(base: Manifest) -> bool:
    return any(is_test_split(name) for name in base.trained_on) or (
        base.fit is not None and base.fit.saw_evaluation_data
    )


def _load_beside(dataset: str, split: str, data_dirs: Mapping[str, str]) -> Collection | None:
    """Another split of the same data set, if it is on this machine."""
    spec = parse_dataset(dataset)
    if spec.split == split:
        return None
    root = f"{spec.source}:{spec.path}" if spec.path else spec.source
    try:
        return load_collection(f"{root}/{split}", data_dirs=data_dirs, offline=True)
    except RoveError:
        return None


def _license_of(collection: Collection) -> str:
    known = DATASETS.get(collection.name.partition("/")[0])
    return known.license if known else ""


def _with_split(dataset: str, split: str) -> str:
    """`dataset` as it is, unless it names no split and has some; what lies in one folder need not have any."""
    spec = parse_dataset(dataset)
    is_whole = spec.path is not None and spec.source in _MAYBE_WHOLE and not (spec.path / split).is_dir()
    return dataset if spec.split or is_whole else f"{dataset}/{split}"
