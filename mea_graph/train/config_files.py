"""Finding the configurations that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mea_graph.configurations import packaged_configs
from mea_graph.data import DataError
from mea_graph.suggestions import did_you_mean


def find_config(name: str) -> Path:
    """Returns the file of a configuration given by bare name or by path.

    Args:
        name: A name from `packaged_configs`, or a path.

    Raises:
        DataError: If there is neither.

    >>> find_config("mosi").name
    'mosi.yaml'
    """
    packaged = packaged_configs()
    if name in packaged:
        return packaged[name]
    if Path(name).is_file():
        return Path(name)
    raise DataError(f"config: expected a file or one of {', '.join(packaged)}, got {name!r}{did_you_mean(name, packaged)}")


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Returns command line arguments with every `--config NAME` replaced by the path of its file.

    Args:
        arguments: The words of the command line.

    >>> with_config_paths(["fit", "--config", "mosi"])[2].endswith("mosi.yaml")
    True
    """
    found = []
    expect_name = False
    for word in arguments:
        if expect_name:
            word = str(find_config(word))
        elif word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        expect_name = word in ("--config", "-c") and not expect_name
        found.append(word)
    return found
