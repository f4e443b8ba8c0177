"""Files that are whole or not there, whenever the process ends and however full the disk is; a lock that ends with its process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_ATTEMPTS = 1000  # each fails because another process has just been inside
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # what a disk says that syncs no folders
_LOCK = ".lock"
_TEMPORARY = ".writing"  # after the name: nothing that looks for *.ckpt or *.csv finds it


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside its place, and gives it its name only when all of it is on the disk.

    Args:
        place: File to write, or to replace, in an existing folder.

    Raises:
        OSError: If the folder or the disk does not take the file; what was there before is still there.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "note.txt")) as file:
    ...         wrote = file.write(b"all of it")
    ...     print(Path(folder, "note.txt").read_text())
    all of it
    """
    temporary = place.with_name(place.name + _TEMPORARY)
    if not place.parent.is_dir():  # a lock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place.parent))
    with only_one(place.with_name(place.name + _LOCK)):  # two processes that write it at once would write into one file
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, after the files themselves; Windows and some network disks have no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


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
