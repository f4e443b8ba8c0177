"""Whether a checkpoint is of the model that a configuration describes."""

from __future__ import annotations

from typing import Any

from mea_graph import __version__
from mea_graph.data import DataError
from mea_graph.train.restoring import check_order
from mea_graph.train.task_module import TaskModule

FORMER_WEIGHTS = ("network.exclusive_encoders.", "network.agnostic_encoder.", "network.graph_fusion.")


def check_same_options(path: str, saved: dict[str, Any], model: TaskModule) -> None:
    """Refuses a checkpoint whose model was made with other options than the configuration has, or has other parameters.

    Args:
        path: Checkpoint file.
        saved: What it holds.
        model: What the configuration gives.

    Raises:
        DataError: If something differs; the error names the first difference.
    """
    weights, options = saved["state_dict"], saved.get("hyper_parameters", {})
    if any(name.startswith(FORMER_WEIGHTS) for name in weights):
        raise DataError(f"ckpt_path: {path} was written before MEA was made of parts, and cannot be read any more; train it again")
    hint = "use the run's own config.yaml"
    if (written_by := str(saved.get("mea_graph_version", __version__))) != __version__:
        hint += f", or mea-graph {written_by}, which wrote the checkpoint (this is {__version__})"
    for name, value in model.hparams.items():
        if name in options and options[name] != value:
            raise DataError(f"model.{name}: the checkpoint {path} has {options[name]!r}, the configuration {value!r}; {hint}")
    check_order(saved, model.hparams)
    if unknown := sorted(options.keys() - model.hparams.keys()):
        raise DataError(f"model: the checkpoint {path} has an option {unknown[0]!r}, {type(model).__name__} has none; {hint}")
    shapes, found = ({name: tuple(value.shape) for name, value in state.items()} for state in (model.state_dict(), weights))
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise DataError(
                f"ckpt_path: the checkpoint {path} has {name} {found.get(name)}, {type(model).__name__} {shapes.get(name)}; {hint}"
            )
