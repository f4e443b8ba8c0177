"""The model as a file for other runtimes."""

import contextlib
import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mea_graph.nn.mea import MEA
from mea_graph.ops.recurrent.layers import GRU_OPERATOR, LSTM_OPERATOR
from mea_graph.whole_files import replacing

_PATIENCE = 5.0  # seconds that a stage may take in silence


class _Prediction(nn.Module):
    """The exported module: takes tensors, returns the prediction."""

    def __init__(self, model: MEA) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: dict[str, Tensor], mask: dict[str, Tensor], time: dict[str, Tensor] | None = None) -> Tensor:
        return (self.model(x, mask) if time is None else self.model(x, mask, time=time)).prediction


def export_onnx(model: MEA, file: str | PathLike[str]) -> None:
    r"""Writes a trained `MEA` as ONNX, for ONNX Runtime and other runtimes.

    The inputs of the file have the names of the modalities, such as `text`, and of their masks, `text_mask`; a modality with positions in
    seconds has an input `text_time` too. The output is `prediction`. The file takes any number of samples and steps; give a modality that
    no sample has as one step of padding. Needs the extra `onnx` and torch 2.13 or newer. Exporting the default model takes about a minute;
    progress appears on stderr.

    Args:
        model: The model; it is exported in evaluation mode, without dropout, and stays unchanged.
        file: Where to write, in an existing folder; it replaces a file of that name once all of it is on the disk.

    Shape:
        - <modality>: :math:`(B, T_m, d_m)`, :math:`T_m \ge 1`, of the parameters' type; <modality>_mask: :math:`(B, T_m)`, bool, real steps
          first; <modality>_time: :math:`(B, T_m)`, seconds; prediction: :math:`(B, C)`

    Raises:
        ImportError: If the extra is not installed, or torch is too old.
        OSError: If the file cannot be written; nothing is left of it then, and what was there before is still there.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mea_graph.nn import MEA, export_onnx
    >>> model = MEA({"text": 3, "audio": 2}, 1, channels=4, heads=2, agnostic=None)
    >>> with TemporaryDirectory() as folder:
    ...     export_onnx(model, Path(folder) / "mea.onnx")
    ...     (Path(folder) / "mea.onnx").exists()
    True
    """
    _need_extra("export_onnx")
    place = _checked(Path(file))
    if torch.__version__ < "2.13":
        raise ImportError(f"export_onnx: expected torch 2.13 or newer, got {torch.__version__}, which limits how long sequences may be")
    from onnxscript import optimizer

    like = next(model.parameters())
    # Sizes must differ and exceed 1: the exporter would take equal ones, or 1, for constants.
    x = {m: like.new_zeros(2, 3 + i, width) for i, (m, width) in enumerate(model.in_channels.items())}
    mask = {m: torch.ones(v.shape[:2], dtype=torch.bool, device=like.device) for m, v in x.items()}
    batch = torch.export.Dim("batch")
    sizes = {m: {0: batch, 1: torch.export.Dim(f"steps_{i}")} for i, m in enumerate(x)}
    same = {m: dict.fromkeys((0, 1), torch.export.Dim.AUTO) for m in x}  # a mask has the sizes of its sequence
    given, dynamic = {"x": x, "mask": mask}, {"x": sizes, "mask": same}
    timed = model.timed_modalities
    if timed:
        given["time"] = {m: torch.arange(x[m].size(1), dtype=like.dtype, device=like.device).repeat(2, 1) for m in timed}
        dynamic["time"] = {m: same[m] for m in timed}
    training = {module: module.training for module in model.modules()}
    try:
        with _stage("tracing the model and translating its operators, a minute or so"), _without_foreign_words():
            program = torch.onnx.export(
                _Prediction(model).eval(),
                kwargs=given,
                dynamic_shapes=dynamic,
                input_names=[*x, *(f"{m}_mask" for m in x), *(f"{m}_time" for m in timed)],
                output_names=["prediction"],
                custom_translation_table=onnx_translations(),
                dynamo=True,
                optimize=False,  # the optimiser takes minutes for what runtimes do themselves
                verbose=False,
            )
        assert program is not None
        with _stage("folding constants"):
            optimizer.fold_constants(program.model)
            optimizer.remove_unused_nodes(program.model)
        with _stage(f"writing {place}"):
            _write(program.model_proto.SerializeToString(), place)
    finally:
        for module, mode in training.items():
            module.training = mode


def onnx_translations() -> dict[Callable[..., Any], Any]:
    r"""Returns the package's operators in ONNX, which `torch.onnx.export` needs for a model of your own.

    Give the module itself to `torch.onnx.export`, with `dynamo=True`: attention is then traced as operators that ONNX has. A program
    of `torch.export.export` holds the package's own operators instead.

    Shape:
        - no tensors

    Raises:
        ImportError: If the extra `onnx` is not installed.

    >>> import torch
    >>> from mea_graph.nn import UnimodalExtractor, onnx_translations
    >>> layer, x = UnimodalExtractor(3, 4).eval(), torch.randn(2, 5, 3)
    >>> program = torch.onnx.export(
    ...     layer,
    ...     (x,),
    ...     custom_translation_table=onnx_translations(),
    ...     dynamo=True,
    ...     verbose=False,
    ... )
    >>> [node.op_type for node in program.model.graph].count("LSTM")
    2
    """
    _need_extra("onnx_translations")
    return {LSTM_OPERATOR: _lstm, GRU_OPERATOR: _gru, torch.ops.aten.searchsorted.Tensor: _searchsorted}


def _checked(place: Path) -> Path:
    """Refuses a place that cannot be written before the minute that an export takes."""
    if place.is_dir():
        raise OSError(f"file: expected a file to write, got the folder {place}")
    if not place.parent.is_dir():
        raise OSError(f"file: expected a file in an existing folder, got {place}; there is no folder {place.parent}")
    if not os.access(place.parent, os.W_OK):
        raise OSError(f"file: expected a file in a folder that may be written, got {place}")
    return place


def _write(content: bytes, place: Path) -> None:
    try:
        with replacing(place) as file:
            file.write(content)
    except OSError as error:
        remedy = "; make room and export again" if error.errno == errno.ENOSPC else ""
        raise OSError(f"file: {place} could not be written ({error.strerror or error}){remedy}") from error


def _need_extra(name: str) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{name} needs the extra "onnx": pip install "mea-graph[onnx]" ({error})') from error


@contextlib.contextmanager
def _stage(what: str) -> Iterator[None]:
    """Prints the stage on stderr if it takes longer than `_PATIENCE`."""
    timer = threading.Timer(_PATIENCE, print, (f"export_onnx: {what}",), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _without_foreign_words() -> Iterator[None]:
    """Hides the exporter's warnings about absent packages, deprecated parts of torch and axes that share a name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "# The axis name")
            yield
    finally:
        logger.setLevel(level)


def _lstm(x: Any, *weights: Any) -> Any:
    """torch holds the gates in the order input, forget, cell, output; ONNX as input, output, forget, cell."""
    return _recurrent("LSTM", (0, 3, 1, 2), x, *weights)


def _gru(x: Any, *weights: Any) -> Any:
    """torch holds the gates in the order reset, update, candidate; ONNX as update, reset, candidate, with a choice of where reset acts."""
    return _recurrent("GRU", (1, 0, 2), x, *weights, linear_before_reset=1)


def _searchsorted(
    times: Any, wanted: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """How many of the sorted times (..., T) come before each wanted one, which ONNX finds by comparing all of them. Windows need it."""
    from onnxscript import opset18

    op: Any = opset18
    if sorter is not None:
        raise NotImplementedError("searchsorted: expected sorter=None, got a tensor")
    last, one_before = op.Constant(value_ints=[-1]), op.Constant(value_ints=[-2])
    each, at = op.Unsqueeze(times, one_before), op.Unsqueeze(wanted, last)
    before = op.LessOrEqual(each, at) if right or side == "right" else op.Less(each, at)
    return op.ReduceSum(op.Cast(before, to=6 if out_int32 else 7), last, keepdims=0)  # 6: int32, 7: int64


def _recurrent(name: str, order: tuple[int, ...], x: Any, *weights: Any, **options: int) -> Any:
    """Reorders the gates, one row for each unit in the weights, and puts time first as ONNX does."""
    from onnxscript import opset18

    op: Any = opset18  # its annotations are narrower than what it takes
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    width = weight_hh.shape[1]
    zero = op.Constant(value_ints=[0])

    def gates(rows: Any) -> Any:
        parts = [op.Slice(rows, op.Constant(value_ints=[k * width]), op.Constant(value_ints=[(k + 1) * width]), zero) for k in order]
        return op.Concat(*parts, axis=0)

    tables = [op.Unsqueeze(rows, zero) for rows in (gates(weight_ih), gates(weight_hh), op.Concat(gates(bias_ih), gates(bias_hh), axis=0))]
    hidden, *_ = getattr(op, name)(op.Transpose(x, perm=[1, 0, 2]), *tables, hidden_size=width, **options)
    return op.Transpose(op.Squeeze(hidden, op.Constant(value_ints=[1])), perm=[1, 0, 2])
