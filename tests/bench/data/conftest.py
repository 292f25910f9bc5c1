"""What the tests of `bench.data` share."""

from __future__ import annotations

import pytest
from made_data import Photo, make_photos


@pytest.fixture
def photos() -> list[Photo]:
    """Five photos with 1, 2, 7, 1 and 2 captions."""
    return make_photos(5)
