"""The software versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("mea-graph", "torch", "torch-geometric", "torch-scatter", "lightning", "torchmetrics", "numpy")


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that a result depends on, by name; `None` if a package is not installed.

    >>> sorted(versions())[:3]
    ['lightning', 'mea-graph', 'numpy']
    """
    return {"python": platform.python_version()} | {package: _installed(package) for package in PACKAGES}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
