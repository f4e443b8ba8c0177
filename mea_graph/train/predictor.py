"""`Predictor`: from a checkpoint to predictions, with nothing else at hand."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, HeteroData

from mea_graph.data import DataError, LengthBucketBatchSampler, MultimodalDataset
from mea_graph.nn import MEA, MEAOutput, export_onnx
from mea_graph.option_types import mismatch, plain_value
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.error_message import one_line
from mea_graph.train.evaluation_mode import evaluating
from mea_graph.train.prediction_data import TrainingData, as_dataset, scaled, whole_sample
from mea_graph.train.predictions import Embeddings, Predictions
from mea_graph.train.restoring import check_order
from mea_graph.train.run_folder import find_checkpoint
from mea_graph.train.task_module import TaskModule, prediction_of, public_name
from mea_graph.train.whole_checkpoints import read_checkpoint

_NAMED = 5  # samples that a warning names


class Predictor:
    """Predicts new samples with a trained module, and scales and batches them itself.

    `Predictor.load` takes the folder of a run or a checkpoint; both hold all that it needs: modalities and their widths, the names of the
    classes, the task and the statistics of the training samples. The constructor takes a module in memory. It computes in the precision of
    the module's weights. Several threads may predict with one predictor.

    If training standardised by a field (`standardize: subject`), the new data must have that field too. Their statistics then come from
    the new samples, as in training, so give all samples of a subject in one call.

    Args:
        module: A trained `MEAModule`, baseline or other `TaskModule`; it goes into evaluation mode, unless it is being trained.
        data: The data module of the training; None if training used unscaled features without a `SequenceDataModule`.
        batch_size: Number of samples in a batch, >= 1. Predictions do not depend on it; lower it if memory is short.
        device: The device to compute on, such as `cuda`; by default that of the module.

    Raises:
        DataError: If the module does not say its modalities, or there is no such device.

    >>> from mea_graph.train import MEAModule
    >>> module = MEAModule(
    ...     {"audio": 5, "text": 3}, "regression", 1, channels=8, heads=2
    ... )
    >>> predictor = Predictor(module)
    >>> found = predictor(
    ...     {"audio": [np.ones((7, 5)), np.ones((4, 5))]}
    ... )  # text is missing
    >>> found.ids, found.values.shape
    (['0', '1'], (2,))
    """

    def __init__(
        self,
        module: TaskModule,
        data: SequenceDataModule | None = None,
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(module, TaskModule):
            told = f"expected a TaskModule, such as MEAModule, got {type(module).__name__}"
            raise TypeError(f"module: {told}; Predictor.load takes the path of a checkpoint, and of a run")
        if not isinstance(data, SequenceDataModule | None):
            raise TypeError(f"data: expected the SequenceDataModule of the training, or None, got {type(data).__name__}")
        self._set(module, None if data is None else data.state_dict(), batch_size, device)

    def _set(self, module: TaskModule, state: Mapping[str, Any] | None, batch_size: int, device: Any) -> None:
        state = {} if state is None else state
        channels = module.hparams.get("in_channels") or state.get("channels")
        if channels is None:
            raise DataError(f"module: expected in_channels among the options of {type(module).__name__}, its modalities; got none")
        if mismatch(plain_value(batch_size), int) is not None or batch_size < 1:
            raise DataError(f"batch_size: expected an integer >= 1, got {batch_size!r}")
        names = module.label_names or state.get("label_names") or [str(k) for k in range(module.out_channels)]
        if len(names) != module.out_channels and module.task != "regression":
            raise DataError(f"label_names: expected {module.out_channels} names, got {len(names)}")
        self.channels: dict[str, int] = dict(channels)
        self.label_names: list[str] = [] if module.task == "regression" else list(names)
        self.task = module.task
        self.batch_size = batch_size
        self.checkpoint: Path | None = None
        self._known = TrainingData.of(state, self.channels) if state else TrainingData(self.channels)
        self.module = module if device is None else _moved(module, device)
        if module._trainer is None or not module._trainer.training:  # of a callback: training goes on in its own mode
            self.module.eval()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        checkpoint: str = "best",
        *,
        module: type[TaskModule] | TaskModule | None = None,
        statistics: Mapping[str, tuple[Any, Any]] | None = None,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
    ) -> Predictor:
        """Makes a predictor from the folder of a run, such as `runs/mine/0`, or from a checkpoint.

        A checkpoint is read as plain tensors and containers. No code in it runs and it imports only this package, so one from somebody else
        is safe to load.

        Args:
            path: Folder or `.ckpt` file.
            checkpoint: Of a folder, `best` (the best epoch on the validation samples) or `last`.
            module: The trained class, if it is not of this package and not imported yet; or an instance, which gets the weights.
            statistics: Mean and standard deviation of the features by modality, for a checkpoint that was trained without a
                `SequenceDataModule`; `{}` for unscaled features.
            batch_size: Number of samples in a batch, >= 1.
            device: The device to compute on.

        Raises:
            DataError: If there is no checkpoint, it is damaged, or it lacks something that cannot be guessed; the message says what to do.

        >>> Predictor.load("runs/none")
        Traceback (most recent call last):
        mea_graph.data.errors.DataError: path: there is no checkpoint runs/none
        """
        place = find_checkpoint("path", path, checkpoint)
        return cls._of(place, read_checkpoint(place, "path"), module, statistics, batch_size, device)

    @classmethod
    def _of(
        cls,
        place: Path,
        saved: Mapping[str, Any],
        module: type[TaskModule] | TaskModule | None,
        statistics: Mapping[str, tuple[Any, Any]] | None,
        batch_size: int,
        device: str | torch.device,
    ) -> Predictor:
        """The predictor of a checkpoint that was found and read."""
        states = [value for value in saved.values() if isinstance(value, dict) and {"data_hash", "standardize"} <= value.keys()]
        if states and statistics is not None:
            raise DataError(f"statistics: expected none, since {place} has those of its training, got some")
        if not states and statistics is None:
            raise DataError(
                f"statistics: {place} was not trained with a SequenceDataModule, so it does not say how its features were scaled; "
                "give statistics= (mean, standard deviation) by modality, or statistics={} for features as they are"
            )
        predictor = cls.__new__(cls)
        try:
            predictor._set(_restored(saved, module), states[0] if states else None, batch_size, device)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        except Exception as error:  # a changed field of a checkpoint raises nearly anything
            raise DataError(f"{place} cannot be taken up: {type(error).__name__}: {one_line(error)[:300]}") from error
        if statistics:
            predictor._known = TrainingData(predictor.channels, "train", statistics)
        predictor.checkpoint = place
        return predictor

    def __repr__(self) -> str:
        widths = ", ".join(f"{m}={width}" for m, width in self.channels.items())
        return f"{type(self).__name__}({type(self.module).__name__}, {self.task}, {widths}, checkpoint={self.checkpoint})"

    def __call__(self, data: Any) -> Predictions:
        """Predicts: `predict(data)`."""
        return self.predict(data)

    def predict(
        self, data: Any, *, embeddings: bool = False, attention: bool = False, cache_dir: str | os.PathLike[str] | None = None
    ) -> Predictions:
        """Predicts samples, which need no labels and may lack modalities.

        Args:
            data: A dict with a list of arrays or tensors `(T, d)` by modality, one a sample and None where it is missing (or one array
                `(N, T, d)`); the path of a file that `open_dataset` reads, here with the options of training that decide which steps
                there are and what the labels are;
                a `HeteroData`, a list or a batch of them; or a `MultimodalDataset`.
            embeddings: Whether to return the embeddings too, the vectors behind the predictions.
            attention: Whether to return every attention map too (`MEA` only). Samples are then computed one by one, which is slower.
            cache_dir: Folder for the cache of a file, as for `open_dataset`.

        Raises:
            DataError: If a modality is unknown or of another width, or what training needed is missing.
        """
        given = as_dataset(data, self._known, cache_dir)
        dataset = scaled(given, self._known)
        self._warn_of_empty(dataset)
        network = self.module.network
        if attention and not isinstance(network, MEA):
            raise DataError(f"attention: expected a model MEA, got {type(network).__name__}")
        rows: dict[str, dict[int, Tensor]] = {}  # by kind of result and sample
        outputs: dict[int, Any] = {}  # of one sample each
        sampler = LengthBucketBatchSampler(dataset.lengths, 1 if attention else self.batch_size, shuffle=False)
        with evaluating(self.module), torch.no_grad(), _watched(network, embeddings, attention) as fused:
            for samples in sampler:
                output = self.module.run(self._batch(dataset, samples))
                found = {"output": prediction_of(output)}
                if embeddings:
                    found |= {"fused": fused[-1], **_representations(output)}
                    fused.clear()
                for name, values in found.items():
                    rows.setdefault(name, {}).update(zip(samples, _on_cpu(values), strict=True))
                if attention:
                    outputs[samples[0]] = _on_cpu(output)
        arrays = {name: torch.stack([by_sample[n] for n in range(len(dataset))]).numpy() for name, by_sample in rows.items()}
        return Predictions(
            ids=list(dataset.ids),
            task=self.task,
            output=arrays.pop("output"),
            label_names=self.label_names,
            target=self._targets(given),
            part=self._known.part_of(given),
            notes=list(given.notes),
            embeddings=_embeddings(arrays) if embeddings else None,
            attention=[outputs[n] for n in range(len(dataset))] if attention else None,
        )

    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Writes the model with its standardisation as ONNX. The file takes raw features, in the form of `mea_graph.nn.export_onnx`.

        Its output `prediction` holds the values, or a logit for each of `label_names`.

        Args:
            path: Where to write.

        Raises:
            DataError: If the model is not `MEA`, or training standardised by a field, whose statistics only the data has.
            ImportError: If the extra `onnx` is not installed.
        """
        network = self.module.network
        if not isinstance(network, MEA):
            raise DataError(f"export_onnx: expected a model MEA, got {type(network).__name__}")
        if self._known.standardize not in (None, "train") or self._known.transform is not None:
            raise DataError(
                "export_onnx: the features were scaled by each value of a field, or changed by a transform, which a file without the data "
                "cannot do; export the network alone with mea_graph.nn.export_onnx(predictor.module.network, ...)"
            )
        export_onnx(cast(MEA, _Scaled(network, self._known.statistics)), path)

    def _batch(self, dataset: MultimodalDataset, samples: list[int]) -> Batch:
        """Samples with every modality of the model, in its order."""
        timed = getattr(self.module.network, "timed_modalities", ())
        whole = [whole_sample(dataset[number], dataset.ids[number], self.channels, timed) for number in samples]
        return Batch.from_data_list(whole).to(self.module.device)

    def _warn_of_empty(self, dataset: MultimodalDataset) -> None:
        empty = np.flatnonzero(sum(dataset.lengths.values()) == 0)
        if len(empty):
            named = ", ".join(repr(dataset.ids[n]) for n in empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
            warnings.warn(f"{len(empty)} samples have no step in any modality, so their predictions mean nothing: {named}", stacklevel=3)

    def _targets(self, dataset: MultimodalDataset) -> list[Any] | None:
        """The labels of the data where they are of the model's kind, classes by name."""
        y, names = dataset.y, dataset.label_names
        if y is None:
            return None
        if self.task == "regression":
            return y.tolist() if y.ndim == 1 and names is None else None
        if self.task == "multilabel":
            same = y.ndim == 2 and y.shape[1] == len(self.label_names) and names in (None, tuple(self.label_names))
            return y.tolist() if same else None
        if y.ndim != 1 or y.dtype.kind == "f":
            return None
        numbered = all(re.fullmatch(r"-?\d+", name) for name in self.label_names)  # as classes below 0 are called, which count from 0
        known = list(names or ([] if numbered else self.label_names))
        return [known[k] if k < len(known) else str(k) for k in y.tolist()]


class _Scaled(nn.Module):
    """MEA on raw features; what stands in the padding is never read, so that it may be scaled as well."""

    def __init__(self, network: MEA, statistics: Mapping[str, tuple[Any, Any]] | None) -> None:
        super().__init__()
        self.network, self.in_channels, self.timed_modalities, self.places = network, network.in_channels, network.timed_modalities, {}
        like = next(network.parameters())
        for place, m in enumerate(self.in_channels if statistics is not None else ()):
            self.places[m] = place
            for name, part in zip(("mean", "std"), statistics[m], strict=True):  # type: ignore[index]
                self.register_buffer(f"{name}_{place}", torch.as_tensor(part, dtype=like.dtype, device=like.device))

    def forward(self, x: dict[str, Tensor], mask: dict[str, Tensor], time: dict[str, Tensor] | None = None) -> MEAOutput:
        if self.places:
            x = {m: (v - getattr(self, f"mean_{self.places[m]}")) / getattr(self, f"std_{self.places[m]}") for m, v in x.items()}
        return self.network(x, mask, time=time)


def _restored(saved: Mapping[str, Any], module: type[TaskModule] | TaskModule | None) -> TaskModule:
    """The module of a checkpoint, with its weights."""
    if not isinstance(module, TaskModule):
        kind = _class_named(saved.get("module")) if module is None else module
        try:
            module = kind(**saved.get("hyper_parameters", {}))
        except TypeError as error:
            raise DataError(
                f"module: {kind.__name__} cannot be made of the options in the checkpoint ({one_line(error)[:200]}); give an instance as "
                "module=, or call self.save_hyperparameters() in its __init__"
            ) from error
    if any(value.dtype == torch.float64 for value in saved["state_dict"].values() if value.is_floating_point()):
        module = module.double()  # trained in 64-true
    check_order(saved, module.hparams)
    module.load_state_dict(saved["state_dict"])
    return module


def _class_named(name: Any) -> type[TaskModule]:
    """A class of this package by its name; any other only where it is imported already: a checkpoint is no reason to import a file."""
    remedy = "import it before, or give it as module="
    if not isinstance(name, str):
        raise DataError("module: the checkpoint does not say which class was trained; give it as module=")
    package, _, own = name.rpartition(".")
    found: Any = None
    if re.fullmatch(r"mea_graph\.(train|baselines)", package):
        found = getattr(importlib.import_module(package), own, None)
    else:
        waiting = [TaskModule]
        while waiting and found is None:
            kind = waiting.pop()
            found = kind if public_name(kind) == name else None
            waiting += kind.__subclasses__()
    if not (inspect.isclass(found) and issubclass(found, TaskModule)):
        raise DataError(f"module: the checkpoint was trained by {name[:200]!r}, which is not known here; {remedy}")
    return found


def _moved(module: TaskModule, device: str | torch.device) -> TaskModule:
    before = module.device
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        module.to(before)  # Lightning notes where a module is before it is there
        raise DataError(f"device: expected one that is there, got {str(device)!r}: {one_line(error)[:200]}") from error


@contextmanager
def _watched(network: nn.Module, embeddings: bool, attention: bool) -> Iterator[list[Tensor]]:
    """Asks the network for its maps, and keeps what its head reads, both in this thread alone: others may predict meanwhile."""
    fused: list[Tensor] = []
    handles = []
    thread = threading.get_ident()
    if embeddings:
        if not isinstance(head := getattr(network, "head", None), nn.Module):
            raise DataError(f"embeddings: expected a network with a part `head`, whose input they are, got {type(network).__name__}")
        handles.append(head.register_forward_pre_hook(lambda _, given: fused.append(given[0]) if threading.get_ident() == thread else None))
    if attention:
        ask: Callable[..., Any] = lambda _, given, options=None: (  # noqa: E731 - no options while another thread adds or removes it
            (given, options | {"return_attention_weights": True}) if threading.get_ident() == thread else None
        )
        handles.append(network.register_forward_pre_hook(ask, with_kwargs=True))
    try:
        yield fused
    finally:
        for handle in handles:
            handle.remove()


def _representations(output: Any) -> dict[str, Tensor]:
    """h_e and h_a by modality, NaN where it is missing."""
    if not isinstance(output, MEAOutput):
        return {}
    spaces = {"exclusive": output.exclusive, "agnostic": output.agnostic}
    return {
        f"{space}/{m}": h.masked_fill(~output.present[m].unsqueeze(1), torch.nan)
        for space, by_modality in spaces.items()
        for m, h in (by_modality or {}).items()
    }


def _embeddings(arrays: Mapping[str, np.ndarray]) -> Embeddings:
    def space(name: str) -> dict[str, np.ndarray] | None:
        return {key.partition("/")[2]: x for key, x in arrays.items() if key.startswith(f"{name}/")} or None

    return Embeddings(arrays["fused"], space("exclusive"), space("agnostic"))


def _on_cpu(value: Any) -> Any:
    """Tensors in whatever a network returns, on the CPU."""
    if isinstance(value, Tensor | HeteroData):
        return (value.detach() if isinstance(value, Tensor) else value).cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_on_cpu, value))
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value
