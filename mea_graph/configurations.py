"""The configurations that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "train" / "configs"


def packaged_configs() -> dict[str, Path]:
    """Returns the configurations in the package by name, so that `--config mosi` needs no path.

    >>> "mosi" in packaged_configs()
    True
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
