"""The command line. Data goes to stdout, everything for a person to stderr.

Nothing heavy is imported here: each command imports what it needs when it is called.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from bench.cli import (
    catalogue,
    generating,
    leaderboard,
    publishing,
    recommending,
    repairing,
    reproducing,
    scoring,
    submitting,
    timing,
)
from bench.cli.console import print_error
from bench.errors import InputError, RoveError

app = typer.Typer(
    name="rove",
    help="Robustness of image-text retrieval: score a model, compare methods, generate shifted data sets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts have brackets of their own
)
for room in (
    catalogue,
    submitting,
    scoring,
    repairing,
    reproducing,
    timing,
    generating,
    recommending,
    leaderboard,
    publishing,
):
    room.register(app)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point of `rove`; ends with the exit code of the error, if there was one."""
    try:
        app()
    except RoveError as error:
        print_error(str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print_error(f"{error.filename or 'the system'}: {error.strerror or error}.")
        raise SystemExit(InputError.exit_code) from None


if __name__ == "__main__":
    main()
