"""What a study writes when its runs are done: `table.md` and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from mea_graph.studies.records import Record
from mea_graph.studies.run import Run
from mea_graph.studies.tables import comparison_table, mean_and_sd, scores_by_row, shown_metrics
from mea_graph.train.metrics import Task
from mea_graph.train.monitors import LOWER_IS_BETTER
from mea_graph.train.whole_files import write_whole


@dataclass(frozen=True)
class Results:
    """Records of a study under the names of its rows.

    Args:
        records: The records of finished runs, in the order of the plan.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        monitor: The validation metric that chose the epochs.
        planned: Number of runs that the study has.
    """

    records: Sequence[Record]
    task: Task
    monitor: str
    planned: int

    @classmethod
    def gather(cls, runs: Sequence[Run], found: Mapping[str, Record], task: Task, monitor: str) -> Results:
        """Returns the finished ones of the runs; one record may stand under several names."""
        return cls([{**found[run.id], "name": run.name} for run in runs if run.id in found], task, monitor, len(runs))

    @property
    def metrics(self) -> list[str]:
        """Test metrics, the main one first."""
        return shown_metrics(self.task, self.records[0]["test"], self.monitor)

    @property
    def main(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def lower_is_better(self) -> bool:
        """Whether small values of the main metric are good."""
        return self.main in LOWER_IS_BETTER

    def scores(self, part: str = "test") -> dict[str, dict[str, dict[int, float]]]:
        """Returns row -> metric -> seed -> value."""
        return scores_by_row(self.records, part)

    def main_scores(self, part: str = "test") -> dict[str, list[float]]:
        """Returns row -> the defined values of the main metric."""
        found = {name: [v for v in metrics[self.main].values() if math.isfinite(v)] for name, metrics in self.scores(part).items()}
        return {name: values for name, values in found.items() if values}

    def table(self, reference: str) -> str:
        """Returns the table of all rows, tested against one of them."""
        sizes = {record["name"]: f"{record['parameters']:,}" for record in self.records if "parameters" in record}
        return comparison_table(self.scores(), self.metrics[:4], reference, sizes)

    def validation_line(self) -> str:
        """Returns the main metric of every row on the validation samples, which alone may choose between rows."""
        scores = self.main_scores("valid")
        return f"{self.main} on validation samples: " + "; ".join(f"{name} {mean_and_sd(values)}" for name, values in scores.items()) + "."


def write_report(folder: Path, title: str, command: str, results: Results, text: str, figures: Mapping[str, Figure]) -> None:
    """Writes `table.md` and the figures of a study.

    Args:
        folder: The folder of the study.
        title: The heading.
        command: What makes it again.
        results: The results of the study.
        text: Tables and remarks, Markdown.
        figures: By file name without its ending.
    """
    first = results.records[0]
    total = sum({record["id"]: record["seconds"] for record in results.records}.values())  # rows with the same options share a run
    lines = [
        f"# {title}",
        "",
        "```bash",
        command,
        "```",
        "",
        f"{len(results.records)} of {results.planned} runs; {total / 60:.1f} minutes of computing in all. Data {first['data_hash'][:12]}; "
        f"{software_line(results.records)}.",
        "",
        text,
        "",
        *[line for name in figures for line in (f"![{name}]({name}.png)", "")],
    ]
    write_whole(folder / "table.md", "\n".join(lines))
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")


def software_line(records: Sequence[Record]) -> str:
    """Returns the versions of all software the records were made with; a study that was resumed may have several of one package.

    Args:
        records: The records of finished runs.

    >>> old, new = (
    ...     {"torch": "2.12.1", "torch-scatter": "2.1.2"},
    ...     {"torch": "2.13.0", "torch-scatter": None},
    ... )
    >>> software_line([{"versions": old}, {"versions": new}])
    'torch 2.12.1 or 2.13.0, torch-scatter 2.1.2 or none'
    """
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in record["versions"].items():
            found.setdefault(name, {})[version or "none"] = None
    order = sorted(found, key=lambda name: name != "mea-graph")
    return ", ".join(f"{name} {' or '.join(found[name])}" for name in order if list(found[name]) != ["none"])
