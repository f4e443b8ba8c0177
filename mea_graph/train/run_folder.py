"""Where a run keeps its configuration, logs, checkpoints and results."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mea_graph.data import DataError
from mea_graph.train.whole_files import can_be_written

try:
    import fcntl
except ImportError:  # Windows, where nothing claims a folder
    fcntl = None  # type: ignore[assignment]

RUNS = Path("runs")
LAUNCHED = "MEA_GRAPH_RUN_DIR"  # how the first process tells the ones it launches which folder it chose
_claims: set[int] = set()  # descriptors of this process


def _forget_claims() -> None:
    """A fork, such as a worker that reads samples, would otherwise hold the claim of its parent, and may outlive the run."""
    while _claims:
        os.close(_claims.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_claims)


class RunFolder:
    """Names the files of one run: `config.yaml`, `logs`, `checkpoints/best.ckpt` and `last.ckpt`, and what evaluation writes.

    Args:
        path: The folder; made when the first file is written, or when it is claimed.

    >>> RunFolder("runs/mosi/0").checkpoint("best").as_posix()
    'runs/mosi/0/checkpoints/best.ckpt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._made: list[Path] = []  # by `claim`, the outermost first
        self._claim: int | None = None

    @classmethod
    def choose(cls, given: str | None, configs: Sequence[Path], fresh: bool, trains: bool = False) -> RunFolder:
        """Returns the folder given, that of a run whose configuration is given, or `runs/<config>/<number>`.

        The number is a new one for a fresh run, else the latest.

        Args:
            given: A folder that the user asks for.
            configs: Configuration files; the last one names the run.
            fresh: Whether a new run begins.
            trains: Whether this process is going to write checkpoints: it then claims the folder for itself, until `release`.

        Raises:
            DataError: If a fresh run would overwrite another, another process trains in the folder, or there is no run to go on with.
        """
        launched = os.environ.get(LAUNCHED) if "LOCAL_RANK" in os.environ else None
        if launched is not None:
            return cls(launched)
        numbered = False
        if given is not None:
            folder = cls(given)
        elif configs and cls(configs[-1].parent).checkpoint("last").exists():
            folder = cls(configs[-1].parent)
        else:
            folder, numbered = cls._numbered(configs[-1].stem if configs else "default", fresh), fresh
        while trains and not folder.claim(new=numbered):
            if not numbered:
                raise DataError(f"run_dir: another process is training in {folder.path}; wait for it, or give another --run_dir")
            folder = cls._numbered(folder.path.parent.name, fresh)  # another process was faster with this number
        if fresh and folder.checkpoint("last").exists():
            folder.release()
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

    def claim(self, new: bool = False, option: str = "run_dir") -> bool:
        """Makes the folder and claims it for this process; the system ends the claim with the process, however it ends.

        Args:
            new: Whether it must not exist yet.
            option: The user's option that gave the folder, for an error.

        Returns:
            Whether the folder is ours now.

        Raises:
            DataError: If the folder cannot be made or written.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)][::-1]
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            if not self.path.is_dir():
                raise DataError(f"{option}: expected a folder, got the file {self.path}") from None
            if new:
                return False
        except OSError as error:
            self._made = [folder for folder in missing if os.path.exists(folder)]
            self.release()
            raise DataError(f"{option}: expected a folder that can be made, got {self.path} ({error.strerror})") from error
        self._made = missing
        if not os.access(self.path, os.W_OK | os.X_OK):
            self.release()
            raise DataError(f"{option}: expected a folder that can be written, got {self.path}")
        if fcntl is None:
            return True
        self._claim = os.open(self.path, os.O_RDONLY)
        _claims.add(self._claim)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:  # a network disk without such claims
            pass
        return True

    def release(self) -> None:
        """Ends the claim; folders that it made go with it where they are still empty, so that a refused run leaves nothing behind."""
        if self._claim is not None:
            if self._claim in _claims:  # not in a fork
                _claims.remove(self._claim)
                os.close(self._claim)
            self._claim = None
        with contextlib.suppress(OSError):
            for folder in reversed(self._made):
                folder.rmdir()
        self._made = []

    def check_claim(self) -> None:
        """Refuses to go on in a place that is not the claimed folder any more: somebody else's run may be there.

        Raises:
            DataError: If the folder was moved, removed or replaced since it was claimed.
        """
        if self._claim is None:
            return
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self._claim))
        except OSError:
            there = False
        if not there:
            raise DataError(
                f"run_dir: {self.path} was moved, removed or replaced while this run trained in it; where it was moved, go on with the "
                "config.yaml that is in it and --ckpt_path last"
            )

    def check_results(self) -> None:
        """Refuses a folder that would not take a result, before anything is computed for it.

        Raises:
            DataError: If it is none, or cannot be made or written.
        """
        if not can_be_written(self.result("metrics.json")):
            raise DataError(f"run_dir: expected a folder that can be written, got {self.path}")

    def checkpoint(self, name: str) -> Path:
        """Returns the path of the checkpoint `best` or `last`."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def find_checkpoint(self, wanted: str | None) -> Path:
        """Returns the checkpoint of a name or path; the best one where none is requested.

        Args:
            wanted: `best`, `last` or a path.

        Raises:
            DataError: If it does not exist.
        """
        path = self.checkpoint(wanted or "best") if wanted in (None, "best", "last") else Path(str(wanted))
        if not path.is_file():
            there = wanted is None and self.checkpoint("last").is_file()
            raise DataError(f"ckpt_path: there is no checkpoint {path}" + ("; there is --ckpt_path last" if there else ""))
        return path

    def result(self, name: str, part: str = "test", source: str | None = None, digest: str | None = None) -> Path:
        """Returns where a result goes: nothing but the same samples may ever replace it.

        Args:
            name: The name of the file for the test samples of the run's own data, such as `predictions.csv`.
            part: The part of the data.
            source: File or folder of other data than the run was trained on.
            digest: SHA-256 of other data.

        >>> RunFolder("runs/mine/0").result(
        ...     "predictions.csv", "all", "new/take 2.npz", "0123456789abcdef"
        ... ).name
        'predictions_take-2_01234567_all.csv'
        """
        stem, suffix = os.path.splitext(name)
        other = [] if digest is None else [re.sub(r"[^\w.]+", "-", Path(source or "events").stem), digest[:8]]
        return self.path / ("_".join([stem, *other, *([] if part == "test" else [part])]) + suffix)


def find_checkpoint(option: str, path: str | os.PathLike[str], checkpoint: str = "best") -> Path:
    """Returns the file of a checkpoint.

    Args:
        option: The name that the user knows `path` by, for an error.
        path: The file, or the folder of a run.
        checkpoint: Of a folder, `best` or `last`.

    Raises:
        DataError: If there is none.

    >>> find_checkpoint("ckpt", "runs/none")
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: ckpt: there is no checkpoint runs/none
    """
    if checkpoint not in ("best", "last"):
        raise DataError(f"checkpoint: expected 'best' or 'last', got {checkpoint!r}")
    folder = RunFolder(Path(path))
    place = folder.checkpoint(checkpoint) if folder.path.is_dir() else folder.path
    if not place.is_file():
        there = [name for name in ("best", "last") if folder.checkpoint(name).is_file()]
        example = "; the folder of a run is such as runs/mine/0" if folder.path.is_dir() else ""
        hint = f"; there is checkpoint={there[0]!r}" if there else example
        raise DataError(f"{option}: there is no checkpoint {place}{hint}")
    return place


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Makes a folder that `--out` gave and keeps every other process that writes runs out of it.

    Args:
        path: The folder of a study or a demonstration; removed again where nothing was written into it.

    Raises:
        DataError: If another process is at work in the folder, or it is a file.
    """
    folder = RunFolder(path)
    if not folder.claim(option="out"):
        raise DataError(f"out: another process is at work in {path}; wait for it, or give another --out")
    try:
        yield
    finally:
        folder.release()
