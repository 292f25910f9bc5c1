"""How long a site of many submissions takes to build, what its first page weighs, and when it can be used.

    python tests/benchmarks/bench_site.py BUNDLE [N_ROWS] [N_CELLS]

The rows are made from one real bundle by moving its figures; they are summarised before the clock starts, as the cache
has them. The first page is opened from disk in headless Chromium, three times.
"""

from __future__ import annotations

import gzip
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "leaderboard"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from made_boards import made_board

from leaderboard.boards import Boards
from leaderboard.entries import read_entry, read_reference
from leaderboard.site import write_site


def main() -> None:
    bundle = Path(sys.argv[1])
    n_rows, n_cells = (int(text) for text in (*sys.argv[2:], "1000", "300")[:2])
    board = made_board(read_entry(bundle, read_reference(bundle)), n_rows, bundle, n_cells)
    with tempfile.TemporaryDirectory() as folder:
        started, processed = time.perf_counter(), time.process_time()
        write_site(Boards((board,), ()), Path(folder) / "site")
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - processed
        sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
        print(f"{n_rows} submissions x {n_cells} cells: built in {wall_s:.1f} s ({cpu_s:.1f} s of one core)")
        print(f"site: {len(sizes):,} files, {sum(sizes) / 1e6:,.0f} MB")
        page = Path(folder) / "site" / "index.html"
        print(f"first page: {weigh(page) / 1e6:.2f} MB gzip-compressed, with all that it loads")
        print("ready for use after", ", ".join(f"{ready_ms:.0f} ms" for ready_ms in open_thrice(page)))


def weigh(page: Path) -> int:
    """Bytes of a page and of the scripts and styles that it names, each compressed."""
    names = re.findall(r'(?:src|href)="([^"#?:]+\.(?:js|css))"', page.read_text())
    return sum(len(gzip.compress(path.read_bytes(), 9)) for path in (page, *(page.parent / name for name in names)))


def open_thrice(page: Path) -> list[float]:
    """Milliseconds from the start of navigation until the table is sorted and answers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found = []
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            tab.goto(page.as_uri())
            tab.locator("table.ready").wait_for()
            found.append(tab.evaluate("rove.readyAfterMs"))
            tab.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
