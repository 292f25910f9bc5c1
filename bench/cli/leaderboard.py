"""`rove site`: the static leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.console import print_data, print_note
from bench.errors import UsageError

site = typer.Typer(help="Build or serve the leaderboard.", no_args_is_help=True)


@site.command()
def build(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Bundles, folders of bundles, or trees of results; default: leaderboard/results."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The site's folder.")] = Path("site"),
) -> None:
    """Build the site from bundles; those that do not validate are left out, and the protocol page says why."""
    from leaderboard.boards import RESULTS
    from leaderboard.site import build_site

    built = build_site(places or [RESULTS], output)
    for name, reason in built.rejected:
        print_note(f"left out {name}: {reason}")
    print_data(str(built.page))


@site.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A built site.", exists=True, file_okay=False)] = Path("site"),
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
) -> None:
    """Serve a built site on this machine (it also opens by double-click)."""
    import functools
    import http.server

    if not (folder / "index.html").is_file():
        raise UsageError(f"{folder} holds no index.html; `rove site build -o {folder}` makes a site.")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print_note(f"http://127.0.0.1:{server.server_port}/ (stop with Ctrl-C)")
        server.serve_forever()


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.add_typer(site, name="site")
