"""The cluster that does the work, where one is asked for: only then is Ray imported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from bench.types import ClusterSettings

if TYPE_CHECKING:
    from bench.ray_cluster import Cluster


def connect_cluster(settings: ClusterSettings | None, device: str) -> AbstractContextManager[Cluster | None]:
    """The cluster of `settings`, for as long as the context lasts; None where this machine does the work.

    Raises:
        UsageError: Ray is not installed, no cluster answers, or it has not the room that is asked for.
    """
    if settings is None:
        return nullcontext()
    from bench.ray_cluster import connect

    return connect(settings, device)
