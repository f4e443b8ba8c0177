"""Makes docs/performance.md, and its figures, of the JSON files in benchmarks/results: `python -m benchmarks.report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import results, rivals
from benchmarks.aims import CPU_AIMS, GPU_AIMS, SUITE_AIMS, Aim
from benchmarks.measure import Timing, ratio

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Performance

<!-- Made by `python -m benchmarks.report` from the files in benchmarks/results. Do not edit. -->

Every figure is one forward and backward pass, unless it says otherwise. The library's result was compared with float64 first; one that is
wrong is not timed. Rivals ran in the same process, in turn, so that what disturbs one disturbs the others: trust ratios more than times.
A ratio is that of the medians; in brackets, the least and the most that the quartiles allow. Memory is the peak beyond what the inputs
take. [How the kernels work](kernels.md) says what bounds them.
"""
NO_GPU = """
## GPU

No figure: no kernel of the library has run on a GPU yet. Without one, Triton's interpreter and a host build of the CUDA C++ check the
numbers, and compilation for sm_80 and sm_90 checks the resources. On a machine with a GPU, `python -m benchmarks.gpu_check` checks every
kernel against float64, times it beside its rivals and writes the file that this page is made of.
"""
OPENING = """Pickles of MulT's form with CMU-MOSEI's widths and steps (MOSEI itself has 22,856 samples), each opened in a process of its
own, the least of some rounds; in brackets, seconds of the processor, all threads together, which other programs change less. Memory is
all that counts as the process's, pages of the mapped file among it, which the system may take back at any time. Where the load is above
the number of cores, seconds say little: an opening waits for the disk too, and hashes in a second thread.

| File | GiB of arrays | `pickle.load`, s | first opening, s | times `pickle.load` | memory, times the arrays | from the cache, ms |
|---|---|---|---|---|---|---|""".splitlines()
CLOCKS = {
    "processor time": "those that the processor spent on the one thread, so that other programs on the machine count little",
    "wall time": "those of the clock on the wall",
}
MODELS = """
All models read the same samples: random features of MOSI's widths (text 768, audio 5, vision 20) and lengths (at most 50 / 375 / 500
steps). A training step is: zero the gradients, forward, the model's own loss, backward, Adam. No time has a text encoder in it: each
model reads the same stored text features.

- *full padding*: every sample has 50 / 375 / 500 real steps.
- *true lengths*: lengths drawn about the means of MOSI, 12 / 50 / 60.
- *one long clip*: the same means, but one clip of the batch has 50 / 375 / 500 steps.

| Model | settings, and what it makes of lengths |
|---|---|
| MEA | the paper's Table I (d 40, 8 heads, 3 predictive and 2 cross-modal layers); walks true lengths |
"""


def page(files: Iterable[Path]) -> str:
    """The whole page, from the newest file of each device or suite."""
    newest = {path.stem[:-11]: results.load(path) for path in sorted(files)}
    suites = {name: found for name, found in newest.items() if name.startswith(results.SUITES)}
    opened = newest.pop("opening", None)
    checks = {name: found for name, found in newest.items() if name not in suites}
    parts = [HEAD]
    for name, found in sorted(suites.items(), key=lambda item: (item[0].startswith("growth-"), item[0])):
        if name.startswith("full-") or name.replace("quick-", "full-").replace("growth-", "full-") not in suites:
            parts += [_suite(run, found["command"], name) for run in found["runs"]]
    if not any(name != "cpu" for name in checks):
        parts.append(NO_GPU)
    for name, found in sorted(checks.items(), key=lambda item: item[0] == "cpu"):
        aims = CPU_AIMS if name == "cpu" else GPU_AIMS
        for run in found["runs"]:
            parts.append(
                "\n".join([*_heading(run, found["command"]), *_aims(run, aims), *_roofline(run["cases"]), *_table(run["cases"])]) + "\n"
            )
    if opened is not None:
        parts += [_opening(run, opened["command"]) for run in opened["runs"]]
    return "\n".join(parts)


def _opening(run: dict[str, Any], command: str) -> str:
    """The first opening of large files beside `pickle.load`."""
    lines = [*_heading(run, command, "Opening files: "), *OPENING]
    for case in run["cases"]:
        plain, first = case["pickle"], case["first"]
        form = ", ".join([f"{case['samples']} samples, {case['dtype']}", *([case["broken"]] if case["broken"] else [])])
        cells = [
            form,
            f"{case['arrays'] / 2**30:.2f}",
            f"{plain['wall']:.2f} ({plain['cpu']:.2f})",
            f"{first['wall']:.2f} ({first['cpu']:.2f})",
        ]
        cells += [f"{first['wall'] / plain['wall']:.1f} ({first['cpu'] / plain['cpu']:.1f})", f"{first['peak'] / case['arrays']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{1000 * case['cached']['wall']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def _heading(run: dict[str, Any], command: str, what: str = "") -> list[str]:
    threads = f", {run['threads']} thread{'s' * (run['threads'] > 1)}" if "cuda" not in run else ""
    versions = ", ".join(f"{n} {run[n]}" for n in ("python", "torch", "torch_geometric", "triton", "cuda", "mea_graph") if n in run)
    return [
        f"\n## {what}{run['device']}{threads}\n",
        f"`{command}`, {run['date']} UTC; {versions}; {run['cores']} cores, load {run['load'][0]} at the end.\n",
    ]


def _aims(run: dict[str, Any], aims: list[Aim]) -> list[str]:
    rows = [(a, a.found(run)) for a in aims]
    if all(x is None for _, x in rows):
        return []
    lines = ["| Aim | asked | found | reached |", "|---|---|---|---|"]
    return [*lines, *(f"| {a.what} | {a.aim} | {x:.2f} | {'yes' if a.reached(x) else '**no**'} |" for a, x in rows if x is not None), ""]


def _roofline(cases: list[dict[str, Any]]) -> list[str]:
    """What the kernels achieve of the bound that was computed beforehand, where one was."""
    found = [(c, c["roofline"]) for c in cases if "roofline" in c]
    if not found:
        return []
    lines = ["| Case | [bound on paper](kernels.md#bounds-on-paper), ms | achieved share |", "|---|---|---|"]
    return [*lines, *(f"| {c['case']}, {c['dtype']} | {1e3 * r['bound']:.3f} | {r['share']:.0%} |" for c, r in found), ""]


def _table(cases: list[dict[str, Any]]) -> list[str]:
    lines = ["| Case | contender | ms (quartiles) | times ours | peak MB | error |", "|---|---|---|---|---|---|"]
    for case in cases:
        if "not_timed" in case:
            lines.append(f"| {case['case']}, {case['dtype']} | not timed: {case['not_timed'].splitlines()[-1]} | | | | |")
        first = None
        for name, c in case["contenders"].items():
            timing = Timing(*(c[field] for field in Timing._fields))
            first = first or timing
            label = f"{case['case']}{'' if case['dtype'] in case['case'] else ', ' + case['dtype']}" if timing is first else ""
            lines.append(f"| {label} | {name} | {_row(c, timing, first)} |")
    return lines


def _row(c: dict[str, Any], timing: Timing, first: Timing) -> str:
    middle, least, most = ratio(timing, first)
    times = "1" if timing is first else f"{middle:.2f} ({least:.2f}-{most:.2f})"
    peak = f"{c['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in c else ""
    error = "" if c.get("error") is None else f"{c['error']:.0e}"
    return f"{1e3 * timing.median:.2f} ({1e3 * timing.lower:.2f}-{1e3 * timing.upper:.2f}) | {times} | {peak} | {error}"


def _suite(run: dict[str, Any], command: str, name: str) -> str:
    from benchmarks import figures

    of = lambda suite: [c for c in run["cases"] if c["suite"] == suite and not c["curve"]]  # noqa: E731
    longer = name.startswith("growth-")
    part = name.rsplit("-", 2)[0].replace("-", ", ").replace("growth", "Longer runs")  # of growth-batch-1-thread: "Longer runs, batch"
    lines = _heading(run, command, f"{part}: " if longer else "The suites: ")
    lines += [f"Commit {run['revision']}. Took {run['minutes']:.0f} minutes. Times are {CLOCKS[run['clock']]}.\n", *_aims(run, SUITE_AIMS)]
    if of("model"):
        if not longer:
            lines += ["### Whole models", MODELS.rstrip(), *(f"| {n} | {note} |" for n, note in rivals.NOTES.items()), ""]
            lines += [f"Not in this run: {'; '.join(f'{n} ({why})' for n, why in run['absent'].items())}.\n"] if run["absent"] else []
        lines += _models(of("model"))
    drawn = [c for c in figures.captions(run) if c]
    if drawn:
        lines += ["", "### Growth, memory, throughput", ""]
        lines += [f"![{caption}](figures/{figures.file_name(name, key)})\n\n{caption}\n" for key, caption in drawn]
    for suite, title in (("layers", "Layers"), ("ops", "Ops"), ("data", "Data")):
        if of(suite):
            lines += [f"\n### {title}\n", *_padding(of(suite)), *_table(of(suite))]
    return "\n".join(lines) + "\n"


def _models(cases: list[dict[str, Any]]) -> list[str]:
    """Model by model, with samples a second: what a user waits for."""
    lines = ["| Case | model | samples/s | ms (quartiles) | times ours | peak MB |", "|---|---|---|---|---|---|"]
    for case in cases:
        first = None
        for name, c in case["contenders"].items():
            timing = Timing(*(c[field] for field in Timing._fields))
            first = first or timing
            label = f"{case['case'].removeprefix('MEA, ')} ({100 * case['padding_share']:.0f} % padding)" if timing is first else ""
            row = _row(c, timing, first).rsplit(" | ", 1)[0]
            lines.append(f"| {label} | {'**MEA**' if timing is first else name} | {case['samples'] / timing.median:.1f} | {row} |")
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
    figures.draw({path.stem[:-11]: results.load(path) for path in files}, PAGE.parent / "figures")
    PAGE.write_text(page(files), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
