"""What can go wrong, as exceptions that carry the command line's exit code.

    RoveError
    ├── UsageError              2  the command line or a name is wrong
    ├── InputError              3  a data set, suite, record or bundle is invalid
    │   └── MissingError           ... a package or model that a shift needs is not here
    ├── SubmissionError         4  the submission failed
    │   ├── SubmissionTimeout      ... ran past a wall-clock limit
    │   ├── SubmissionCrash        ... its process ended
    │   ├── SubmissionOutOfMemory  ... took more memory than it may
    │   └── ProtocolError          ... answered something that the interface does not allow
    └── IncompleteError         5  the run lacks cells

Every message says what was expected, what was found and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


_MOST_NAMES, _LONGEST_NAME = 1_000, 200


class RoveError(Exception):
    """The root: every error that Rove raises on purpose."""

    exit_code = 1


class UsageError(RoveError):
    """A name, flag or combination of flags that does not exist."""

    exit_code = 2


class InputError(RoveError):
    """Data that cannot be used; the message names the item."""

    exit_code = 3


class MissingError(InputError):
    """Something is not installed, or cannot be fetched; the message says how to get it."""


class SubmissionError(RoveError):
    """A submission that failed; `status` is what its cell's record says."""

    exit_code = 4
    status = "error"


class SubmissionTimeout(SubmissionError):
    status = "timeout"


class SubmissionCrash(SubmissionError):
    status = "crash"


class SubmissionOutOfMemory(SubmissionError):
    status = "oom"


class ProtocolError(SubmissionError):
    status = "protocol"


class IncompleteError(RoveError):
    """A run or bundle in which required cells are missing or failed."""

    exit_code = 5


def unknown_name(kind: str, name: str, known: Iterable[str], list_command: str) -> UsageError:
    """An error for `name` that offers the nearest known one and the command that lists them all."""
    near = difflib.get_close_matches(name[:_LONGEST_NAME], islice(known, _MOST_NAMES), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return UsageError(f"unknown {kind} '{shown}'.{hint} `{list_command}` shows what there is.")


def describe_validation(error: ValidationError) -> str:
    """The first problem that pydantic found, with the field's place, and how many more there are."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"field {place}: {first['msg']}{more}."
