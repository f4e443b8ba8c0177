"""Makes docs/performance.md, and its figures, of the JSON files in benchmarks/results: `python -m benchmarks.report`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import baselines, report_device, results
from benchmarks.measure import Timing, ratio
from benchmarks.report_numbers import memory, number, span, time
from benchmarks.report_opening import opening
from benchmarks.report_summary import summary

RESULTS = Path(__file__).parent / "results"
_CLASS = re.compile(r"(?:[A-Z][a-z]+){2,}")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
WIDTH = 86  # characters of a line of code, the backslash that continues it left out

HEAD = """# Performance

<!-- Made by `python -m benchmarks.report` from the files in benchmarks/results. Do not edit. -->

This page shows how much time and memory the model, its layers and its ops take, beside other models and layers. Each table names its
machine and date; to measure on yours, run `make bench`.
"""
READING = """
## How to read the tables

- A time is that of one forward and backward pass, unless the row says otherwise. In brackets: the quartiles.
- The library's result is compared with float64 first. A result that is wrong is not timed. "error" is the largest difference.
- Baselines run in the same process, in turn: a disturbance then slows all of them. Trust ratios more than times.
- "times as long" is the ratio of the median to the library's: above 1, the library is faster. In brackets: the least and the most that the
  quartiles allow.
- "This library" runs on the backend that it chooses by itself; "eager formula" is the equation written out in torch.
- "peak" is memory beyond what the inputs take. [How the kernels work](kernels.md) says what bounds time and memory.
"""
NO_GPU = """
## On a GPU

No figure: no kernel of the library has run on a GPU yet. Without one, Triton's interpreter and a host build of the CUDA C++ check the
numbers, and compilation for sm_80 and sm_90 checks the resources. On a machine with a GPU, `python -m benchmarks.gpu_check` checks every
kernel against float64, times it beside its baselines and writes the file that this page is made of.
"""
NATIVE = "2026-11-28 19:00"  # when the C++ for CPUs joined the package, in the form of a run's date
OLDER = ' **This run is older than the backend "native"**: the library computed in plain PyTorch, so do not compare it with newer runs.'
CLOCKS = {
    "processor time": "processor time of the one thread; other programs on the machine slow it less than the clock on the wall",
    "wall time": "wall-clock time",
}
MODELS = """
All models read the same samples: random features of MOSI's widths (text 768, audio 5, vision 20) and lengths (at most 50 / 375 / 500
steps). A training step zeroes the gradients, computes the model's own loss, and takes a step of Adam. No time has a text encoder in it:
each model reads the same stored text features.

- *full padding*: every sample has 50 / 375 / 500 real steps.
- *true lengths*: lengths drawn about the means of MOSI, 12 / 50 / 60.
- *one long clip*: the same means, but one clip of the batch has 50 / 375 / 500 steps.

| Model | settings, and how it treats lengths |
|---|---|
| MEA | the paper's Table I (d 40, 8 heads, 3 predictive and 2 cross-modal layers); computes real steps only |
"""


class _Page:
    """The parts of the page. A heading that stands on it already is told from the first one by its run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._headings: set[str] = set()

    def heading(self, level: int, title: str, of: str) -> None:
        title = title if title not in self._headings else f"{title} ({of})"
        self._headings.add(title)
        self.lines.append(f"\n{'#' * level} {title}\n")

    def add(self, lines: Iterable[str]) -> None:
        self.lines += lines


def page(files: Iterable[Path]) -> str:
    """The whole page, from the newest file of each device or suite."""
    from benchmarks import figures

    newest = {results.of(path): results.load(path) for path in sorted(files)}
    suites = {name: found for name, found in newest.items() if name.startswith(results.SUITES)}
    opened = newest.pop("opening", {"runs": [], "command": ""})
    checks = {name: found for name, found in newest.items() if name not in suites}
    shown = {
        name: found
        for name, found in sorted(suites.items(), key=lambda item: (item[0].startswith("growth-"), item[0]))
        if name.startswith("full-") or name.replace("quick-", "full-").replace("growth-", "full-") not in suites
    }
    made = _Page()
    made.add([HEAD, *summary({name: run for name, found in shown.items() for run in found["runs"]}), READING])
    captions = figures.captions_by_name(shown)
    for name, found in shown.items():
        for run, drawn in zip(found["runs"], captions[name], strict=True):
            _suite(made, run, found["command"], name, drawn)
    if not any(name != "cpu" for name in checks):
        made.add([NO_GPU])
    for _, found in sorted(checks.items(), key=lambda item: item[0] == "cpu"):
        for run in found["runs"]:
            if "format" in run:  # of gpu_check
                _heading(made, run, found["command"], "On a GPU")
                for title, lines in report_device.sections(run, _name, _shared):
                    made.heading(3, title, run.get("device", "GPU"))
                    made.add([*(_roofline(run["cases"]) if title == "Ops" else []), *lines])
                continue
            _heading(made, run, found["command"], "Kernels alone")
            made.add([*_roofline(run["cases"]), *_table(run["cases"])])
    for run in opened["runs"]:
        _heading(made, run, opened["command"], "Opening files")
        made.add(opening(run["cases"]))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(made.lines)).rstrip() + "\n"


def _heading(made: _Page, run: dict[str, Any], command: str, what: str, more: str = "") -> None:
    if "device" not in run:  # the job that names it failed
        made.heading(2, f"{what}: a device that was not named", "an unfinished run")
        made.add([f"```text\n{_folded(command.replace(chr(96), ''))}\n```\n"])
        return
    threads = f", {run['threads']} thread{'s' * (run['threads'] > 1)}" if "cuda" not in run else ""
    versions = ", ".join(f"{n} {run[n]}" for n in ("python", "torch", "torch_geometric", "triton", "cuda", "mea_graph") if n in run)
    commit, when = "", "end"
    if "format" in run:
        commit, when = f" Commit {run['revision']}." if run.get("revision") else f" Sources {run.get('sources')}.", "start"
    if "cuda" not in run and run["date"] < NATIVE:
        more += OLDER
    made.heading(2, f"{what}: {run['device']}{threads}", run["date"])
    made.add(
        [
            f"{run['date']} UTC; {versions}; {run['cores']} cores, load {run['load'][0]} at the {when}.{commit}{more}\n",
            f"```text\n{_folded(command.replace(chr(96), ''))}\n```\n",
        ]
    )


def _folded(command: str) -> str:
    """A command in lines that fit the page, which a shell reads as one; several, which "and" joins, one below the other."""
    first, *others = re.split(" and (?=python )", command)
    if others:
        return "\n".join(map(_folded, [first, *others]))
    lines = [""]
    for word in shlex.split(command, posix=False):
        if len(lines[-1]) + len(word) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _roofline(cases: list[dict[str, Any]]) -> list[str]:
    """What the kernels achieve of the bound that was computed beforehand, where one was."""
    found = [(c, c["roofline"]) for c in cases if "roofline" in c]
    if not found:
        return []
    lines = ["| Case | [bound on paper](kernels.md#bounds-on-paper) | achieved share |", "|---|---|---|"]
    return [*lines, *(f"| {c['case']}, {c['dtype']} | {time(r['bound'])} | {r['share']:.0%} |" for c, r in found), ""]


def _pieces(case: dict[str, Any]) -> list[str]:
    """The parts of a case's name, its type among them."""
    named = re.sub(r"\[[\d, ]+\]", lambda found: found[0][1:-1].replace(", ", "/"), case["case"]).split(", ")
    named = [piece.removeprefix("fusion graph of ").replace("lengths up to ", "lengths ") for piece in named]
    return [*named, case["dtype"]] if case["dtype"] and case["dtype"] not in named else named


def _shared(cases: Sequence[dict[str, Any]]) -> list[str]:
    """What the names of all cases have in common, to be said once above the table; none for a single case."""
    if len(cases) < 2:
        return []
    every = [_pieces(c) for c in cases]
    return [piece for piece in every[0] if all(piece in pieces for pieces in every)]


def _name(case: dict[str, Any], shared: Sequence[str]) -> str:
    first, *rest = [piece for piece in _pieces(case) if piece not in shared]
    return ", ".join([f"`{first}`" if _CLASS.fullmatch(first) else first, *rest])  # the site makes a link of a class


def _table(cases: list[dict[str, Any]]) -> list[str]:
    shared = _shared(cases)
    lines = [f"All rows: {', '.join(shared)}.\n"] if shared else []
    lines += ["| Case | what runs | time | times as long | peak | error |", "|---|---|---|---|---|---|"]
    for case in cases:
        if "not_timed" in case:
            lines.append(f"| {_name(case, shared)} | not timed: {case['not_timed'].splitlines()[-1]} | | | | |")
        first = None
        for name, c in case["contenders"].items():
            timing = Timing(*(c[field] for field in Timing._fields))
            first = first or timing
            error = "" if c.get("error") is None else f"{c['error']:.0e}"
            lines.append(
                f"| {_name(case, shared) if timing is first else ''} | {results.called(name)} | {_row(c, timing, first)} | {error} |"
            )
    return lines


def _row(c: dict[str, Any], timing: Timing, first: Timing) -> str:
    middle, least, most = ratio(timing, first)
    times = "1" if timing is first else f"{number(middle)} ({number(least)}-{number(most)})"
    return f"{span(timing.median, timing.lower, timing.upper)} | {times} | {memory(c['peak_bytes']) if 'peak_bytes' in c else ''}"


def _suite(made: _Page, run: dict[str, Any], command: str, name: str, captions: list[tuple[str, str]]) -> None:
    from benchmarks import figures

    of = lambda suite: [c for c in run["cases"] if c["suite"] == suite and not c["curve"]]  # noqa: E731
    longer = name.startswith("growth-")
    part = name.rsplit("-", 2)[0].replace("-", ", ").replace("growth", "Longer runs")  # of growth-batch-1-thread: "Longer runs, batch"
    more = f" Commit {run['revision']}. Took {run['minutes']:.0f} minutes. Times are {CLOCKS[run['clock']]}."
    _heading(made, run, command, part if longer else "The suites", more)
    if of("model"):
        if not longer:
            made.heading(3, "Whole models", name)
            made.add([MODELS.rstrip(), *(f"| {n} | {note} |" for n, note in baselines.NOTES.items()), ""])
            made.add([f"Not in this run: {'; '.join(f'{n} ({why})' for n, why in run['absent'].items())}.\n"] if run["absent"] else [])
        made.add([*_models(of("model")), ""])
    drawn = [(key, caption) for key, caption in captions if longer or key != "throughput"]  # that one begins the page
    if drawn and not longer:
        made.heading(3, "Memory and growth", name)
    made.add(f"![{caption}](figures/{figures.file_name(name, key)})\n\n{caption}\n" for key, caption in drawn)
    for suite, title in (("layers", "Layers"), ("ops", "Ops"), ("data", "Data")):
        if of(suite):
            made.heading(3, title, name)
            made.add([*_padding(of(suite)), *_table(of(suite))])


def _models(cases: list[dict[str, Any]]) -> list[str]:
    """Model by model, with samples a second: what a user waits for."""
    lines = ["| Case | model | samples/s | time | times as long | peak |", "|---|---|---|---|---|---|"]
    for case in cases:
        first = None
        for name, c in case["contenders"].items():
            timing = Timing(*(c[field] for field in Timing._fields))
            first = first or timing
            label = f"{case['case'].removeprefix('MEA, ')} ({100 * case['padding_share']:.0f} % padding)" if timing is first else ""
            rate = number(case["samples"] / timing.median)
            lines.append(f"| {label} | {'**MEA**' if timing is first else name} | {rate} | {_row(c, timing, first)} |")
        lines += [f"| | {name} | not timed: {why} | | | |" for name, why in (case.get("refused") or {}).items()]
    return lines


def _padding(cases: list[dict[str, Any]]) -> list[str]:
    left = [c for c in cases if c["padding_share_random"] is not None]
    if not left:
        return []
    lines = ["| Batches | padding left by length buckets | in random batches |", "|---|---|---|"]
    return [*lines, *(f"| {c['case']} | {c['padding_share']:.1%} | {c['padding_share_random']:.1%} |" for c in left), ""]


def main() -> None:
    from benchmarks import figures

    files = sorted(RESULTS.glob("*.json"))
    figures.draw({results.of(path): results.load(path) for path in files}, PAGE.parent / "figures")
    PAGE.write_text(page(files), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
