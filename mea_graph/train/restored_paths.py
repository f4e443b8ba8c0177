"""What a checkpoint may say of files: their names, never where they are."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from mea_graph.data import DataError

_SEPARATORS = re.compile(r"[/\\]")
_FOREIGN = re.compile(r"^(~|[/\\]|[A-Za-z]:)|::|://|(^|[/\\])\.\.([/\\]|$)")  # absolute, of another file system, or upwards
_SCORES = ("best_model_score", "current_score", "kth_value")


def keep_own_paths(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Takes every foreign path out of the states of the callbacks in a checkpoint, before Lightning restores them.

    Lightning removes the files that a `ModelCheckpoint` remembers. A checkpoint may come from anyone, so only the names of the
    files count: each stands for the file of that name in the callback's own folder, also after a run was moved. One that is not there
    is forgotten, with its score and with a warning. The states of other callbacks may name no path outside the run's folder.

    Args:
        checkpoint: As loaded; changed in place.
        trainer: Whose callbacks are about to be restored.

    Raises:
        DataError: If a state is not of the form its callback wrote, or names a foreign path.
    """
    states = checkpoint.get("callbacks")
    if states is None:
        return
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise DataError("ckpt_path: callbacks: expected a dict with a dict for each callback, got something else")
    restored: dict[Any, dict[Any, Any]] = {key: {} for key in states}  # a state that no callback takes is of no use
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        former = callback.state_key.removeprefix("mea_graph.")  # of our own callbacks, in checkpoints of before they had a name of theirs
        if (state := states.get(callback.state_key, states.get(former))) is None:
            continue
        if isinstance(callback, ModelCheckpoint):
            own = _own_files(state, callback, trainer)
            state = {**{name: value for name, value in state.items() if name not in own}, **own}
            others = {name: value for name, value in state.items() if name not in own}
        else:
            others = state
            if isinstance(callback, EarlyStopping):
                _check_score("best_score", state.get("best_score"))
        for text in _texts(others):
            if _FOREIGN.search(text) and not _inside(text, Path(trainer.default_root_dir)):
                raise DataError(
                    f"ckpt_path: the state of the callback {callback.state_key} names {text[:200]!r}; expected no path outside the run's "
                    "folder, since a callback may open or remove what its state names"
                )
        restored[callback.state_key] = state
    checkpoint["callbacks"] = restored


def _own_files(state: Mapping[str, Any], callback: ModelCheckpoint, trainer: L.Trainer) -> dict[str, Any]:
    """The entries of a `ModelCheckpoint` that its `load_state_dict` reads, with files of its own folder only."""
    folder = str(callback.dirpath)

    def own(path: Any) -> str:
        """The file of that name in the callback's folder, or nothing; rank 0 decides, since every process must remember the same."""
        name = _SEPARATORS.split(path)[-1] if isinstance(path, str) else ""
        place = Path(folder, name)
        there = name.endswith(callback.FILE_EXTENSION) and "::" not in name and "://" not in folder and place.is_file()
        return str(place) if trainer.strategy.broadcast(there) else ""

    ranked = state.get("best_k_models", {})
    if not isinstance(ranked, dict):
        raise DataError(f"ckpt_path: best_k_models: expected a dict of scores, got {type(ranked).__name__}")
    scores = {name: state.get(name) for name in _SCORES if state.get(name) is not None}
    for name, score in [*scores.items(), *ranked.items()]:
        _check_score(name, score)
    places = {path: own(path) for path in ranked}
    kept = {place: ranked[path] for path, place in places.items() if place}
    best, worst = (min, max) if callback.mode == "min" else (max, min)
    found: dict[str, Any] = {
        "monitor": callback.monitor,
        "dirpath": callback.dirpath,
        "best_k_models": kept,
        "last_model_path": own(state.get("last_model_path", "")),
        "current_score": scores.get("current_score"),
    }
    if callback.monitor is None:
        found["best_model_path"] = own(state.get("best_model_path", ""))
    else:
        found["best_model_path"] = best(kept, key=lambda path: float(kept[path])) if kept else ""
    found["kth_best_model_path"] = worst(kept, key=lambda path: float(kept[path])) if kept else ""
    found["best_model_score"] = kept.get(found["best_model_path"]) if kept else None
    found["kth_value"] = scores.get("kth_value", callback.kth_value) if len(kept) == len(ranked) else callback.kth_value
    if len(kept) < len(ranked):
        missing = ", ".join(str(path)[-100:] for path, place in places.items() if not place)
        warnings.warn(f"{folder} does not hold {missing}, which the checkpoint ranks by {callback.monitor}: forgotten", stacklevel=2)
    return found


def _check_score(name: Any, score: Any) -> None:
    if not isinstance(score, torch.Tensor) or score.numel() != 1 or math.isnan(score):
        got = f"{tuple(score.shape)} {score.flatten()[:3].tolist()}" if isinstance(score, torch.Tensor) else type(score).__name__
        raise DataError(f"ckpt_path: {str(name)[-100:]}: expected the score as a tensor with one number, got {got}")


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested containers, keys included, however deep and even where one holds itself."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple | set | frozenset) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)


def _inside(text: str, folder: Path) -> bool:
    if "::" in text or "://" in text:
        return False
    return Path(text).resolve().is_relative_to(folder.resolve())
