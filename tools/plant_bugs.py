"""Plants mistakes into a copy of the package, one by one, and says which ones the tests find.

    python tools/plant_bugs.py                  # all of them: the better part of an hour on two cores
    python tools/plant_bugs.py --kind readers --kind splits
    python tools/plant_bugs.py --only 12        # one, with what the tests said

The mistakes stand in `planted_bugs.toml`; `tests/test_planted_bugs.py` holds that each still fits the code. Ends with 1 where one was
missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("planted_bugs.toml")
KINDS = ("layout", "edges", "time", "pooling", "readers", "splits", "metrics", "resume", "graph", "losses", "kernels")
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.mea-cache", "_build", ".*_cache", "runs", "results")
_SAID = {0: "MISSED", 1: "caught"}  # by pytest's exit code; others are no verdict: nothing was collected, say
_CPP = Path("mea_graph", "ops", "native")
_PATIENCE = 600.0  # seconds after which tests that never end count as having found it


@dataclass(frozen=True)
class Bug:
    """One mistake: `old` becomes `new` in `file`, and one of `tests` should find it."""

    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.kind:8} {self.file}: {' '.join(self.old.split())[:70]}"


def bugs() -> list[Bug]:
    """All mistakes, in the order of the table."""
    with open(TABLE, "rb") as file:
        return [Bug(**{**entry, "tests": tuple(entry["tests"])}) for entry in tomllib.load(file)["bug"]]


def outcome(bug: Bug, tree: Path, output: Path | None = None) -> str:
    """What becomes of the bug in the tree: "caught", "MISSED" or "TEXT NOT FOUND". The tree is as before afterwards."""
    path = tree / "mea_graph" / bug.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(bug.old) != 1:
        return "TEXT NOT FOUND"
    path.write_text(whole.replace(bug.old, bug.new), encoding="utf-8")
    try:
        return _SAID.get(_exit_code(bug.tests, tree, output), "TESTS BROKEN")
    finally:
        path.write_text(whole, encoding="utf-8")


def finder(output: Path) -> str:
    """The test that found the mistake, by what pytest printed; the file where it could not even be collected."""
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.is_file() else []
    named = (" ".join(line.split(" - ")[0].split()[1:]) for line in reversed(lines) if line.startswith(("FAILED ", "ERROR ")))
    return next(named, "a crash, or no end")


def _exit_code(tests: tuple[str, ...], tree: Path, output: Path | None) -> int:
    """What pytest ends with, in a fresh process: a test may ask what has been imported. 1 also where it crashes or never ends."""
    # Of C++ that is built from the tree, nothing stays. Elsewhere the kernels of the sound sources are there already.
    kernels = {"XDG_CACHE_HOME": str(tree / ".cache")} if _is_changed(tree / _CPP) else {}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **kernels, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", *tests, "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    with open(output or os.devnull, "w", encoding="utf-8") as file:
        told = None if output is None else file
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=told, stderr=told, start_new_session=True)
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what the tests started
            process.wait()
            return 1
    return code if code >= 0 else 1


def _is_changed(folder: Path) -> bool:
    """Whether a source in the folder of the tree differs from the one here."""
    return any(path.read_bytes() != (ROOT / _CPP / path.name).read_bytes() for path in folder.glob("*.[ch]*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; may stand several times")
    parser.add_argument("--only", type=int, action="append", help="only this number, with all that the tests say where it is one")
    parser.add_argument("--first", type=int, default=0, help="begin with this number")
    parser.add_argument("--sound", action="store_true", help="run the tests without any mistake first")
    arguments = parser.parse_args()
    chosen = [
        (i, bug)
        for i, bug in enumerate(bugs())
        if i >= arguments.first and i in (arguments.only or [i]) and (not arguments.kind or bug.kind in arguments.kind)
    ]
    found: dict[str, int] = {}
    tests = tuple(dict.fromkeys(test for _, bug in chosen for test in bug.tests))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        output = Path(folder, "output")
        if arguments.sound and (code := _exit_code(tests, tree, None)):
            print(f"the tests fail without any mistake (exit code {code})")
            return 1
        for i, bug in chosen:
            began = time.monotonic()
            said = outcome(bug, tree, output if len(chosen) > 1 else None)
            found[said] = found.get(said, 0) + 1
            by = f"\n{'':16}  by {finder(output)}" if said == "caught" and len(chosen) > 1 else ""
            print(f"{i:3} {said:8} {time.monotonic() - began:5.0f} s  {bug.title}{by}", flush=True)
    print(f"{found.get('caught', 0)} of {len(chosen)} caught" + "".join(f", {n} {what}" for what, n in found.items() if what != "caught"))
    return int(found.get("caught", 0) != len(chosen))


if __name__ == "__main__":
    sys.exit(main())
