"""Where a run keeps its configuration, logs, checkpoints and results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mea_graph.data import DataError

RUNS = Path("runs")
LAUNCHED = "MEA_GRAPH_RUN_DIR"  # how the first process tells the ones it launches which folder it chose


class RunFolder:
    """Names the files of one run: ``config.yaml``, ``logs``, ``checkpoints/best.ckpt`` and ``last.ckpt``, and what evaluation writes.

    Args:
        path: the folder; made when the first file is written.

    Example:
        >>> RunFolder("runs/mosi/0").checkpoint("best").as_posix()
        'runs/mosi/0/checkpoints/best.ckpt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def choose(cls, given: str | None, configs: Sequence[Path], fresh: bool) -> RunFolder:
        """Returns the folder given, that of a run whose configuration is given, or ``runs/<config>/<number>``.

        The number is a new one for a fresh run, else the latest.

        Args:
            given: a folder that the user asks for.
            configs: configuration files; the last one names the run.
            fresh: whether a new run begins.

        Raises:
            DataError: where a fresh run would overwrite another, or there is no run to go on with.
        """
        launched = os.environ.get(LAUNCHED) if "LOCAL_RANK" in os.environ else None
        if launched is not None:
            return cls(launched)
        if given is not None:
            folder = cls(given)
        elif configs and cls(configs[-1].parent).checkpoint("last").exists():
            folder = cls(configs[-1].parent)
        else:
            folder = cls._numbered(configs[-1].stem if configs else "default", fresh)
        if fresh and folder.checkpoint("last").exists():
            raise DataError(f"run_dir: {folder.path} holds a run; resume it with --ckpt_path last, or give another --run_dir")
        os.environ[LAUNCHED] = str(folder.path)
        return folder

    @classmethod
    def _numbered(cls, name: str, fresh: bool) -> RunFolder:
        parent = RUNS / name
        numbers = sorted(int(path.name) for path in parent.glob("*") if path.name.isdigit())
        if fresh:
            return cls(parent / str(numbers[-1] + 1 if numbers else 0))
        if not numbers:
            raise DataError(f"run_dir: there is no run in {parent} yet; start one with `mea-graph fit`, or give --run_dir")
        return cls(parent / str(numbers[-1]))

    def checkpoint(self, name: str) -> Path:
        """Returns the path of the checkpoint ``best`` or ``last``."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def find_checkpoint(self, wanted: str | None) -> Path:
        """Returns the checkpoint of a name or path; the best one where none is asked for.

        Args:
            wanted: ``best``, ``last`` or a path.

        Raises:
            DataError: where it does not exist.
        """
        path = self.checkpoint(wanted or "best") if wanted in (None, "best", "last") else Path(str(wanted))
        if not path.is_file():
            raise DataError(f"ckpt_path: there is no checkpoint {path}")
        return path
