"""A lock between processes that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_ATTEMPTS = 1000  # each fails because another process has just been inside


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Waits until no other process, and no other thread, is inside with the same file; removes the file when it leaves.

    The system gives up the lock of a process that was killed; the file that it left is taken over. Where the disk knows no locks,
    nobody waits: then the same work is done twice, and the result is the same.

    Yields:
        Whether no other process of this machine is inside: False on such a disk.
    """
    file: IO[bytes] | None = None
    try:
        file = _locked(path)
        yield file is not None
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # a file that is open cannot be removed everywhere
                path.unlink()
            file.close()


def _locked(path: Path) -> IO[bytes] | None:
    for _ in range(_ATTEMPTS):
        try:
            file = open(path, "ab")  # noqa: SIM115 (it stays open as long as the lock is held)
        except FileNotFoundError:  # who held it before has removed the folder, in which it left nothing
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError:
            return None
        try:
            _wait(file)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:  # who held it before has removed it
            pass
        except OSError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()
    return None


def _wait(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows

        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
                return
            except OSError as error:
                if error.errno not in (errno.EDEADLK, errno.EACCES):  # these come after ten seconds of waiting
                    raise
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
