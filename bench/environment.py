"""The machine that scores, and the versions of what decides a result there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping

from bench.errors import InputError
from bench.records import Environment
from bench.shifted import PACKAGES, processor_name, version_of


def describe_environment(device: str, requires: list[str]) -> Environment:
    """This machine and the versions of what decides a result."""
    names = dict.fromkeys((*PACKAGES, *requires))
    return Environment(
        rove=importlib.metadata.version("rove-bench"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        device=device,
        versions={name: version for name in names if (version := version_of(name))},
    )


def surroundings_of(environment: Environment) -> dict[str, str]:
    """What decides a result beside a run's own settings."""
    return {**environment.versions, "processor": environment.processor}


def check_surroundings(here: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuses a node of a cluster on which something else would come out.

    Raises:
        InputError: a version or the processor is another one than expected.
    """
    for name in sorted({*here, *expected}):
        if here.get(name) != expected.get(name):
            raise InputError(
                f"node {platform.node()} has {name} {here.get(name)}; expected {expected.get(name)}, as on the first "
                "node: what belongs together comes from machines of one kind."
            )
