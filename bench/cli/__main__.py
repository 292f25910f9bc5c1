"""`python -m bench.cli` is `rove`."""

from bench.cli import main

main()
