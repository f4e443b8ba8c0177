"""The real recordings, where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recording() -> Callable[[str], Path]:
    """The path of a real recording; skips where it is absent."""
    folder = Path(os.environ.get("MEA_GRAPH_DATA", Path(__file__).parents[4] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).is_file():
            pytest.skip(f"{name} is not at hand (set MEA_GRAPH_DATA to its folder)")
        return folder / name

    return find
