"""The Bi-LSTM on a device: held to float64 in every dtype and form of rows, and timed beside torch's layers, which are cuDNN's there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import cases, measure
from benchmarks.gpu_check_clock import kernels
from benchmarks.gpu_check_ops import beside_the_formula, check_all, time_all
from benchmarks.gpu_check_run import Record, Run
from mea_graph.check import recurrent
from mea_graph.check.attention import AUDIO, MOSI, TEXT
from mea_graph.check.cases import BFLOAT16, FLOAT32, draws, dtype_name
from mea_graph.check.recurrent import CHANNELS, HIDDEN, weights
from mea_graph.ops import Pointers
from mea_graph.ops.recurrent import bilstm

Sizes = tuple[list[list[int]], torch.dtype, str]  # lengths by modality, and how the case ends its name
BILSTM = [beside_the_formula(build) for build in recurrent.BILSTM]
SMALL = (0, 2, 3)


def check_recurrent(run: Run) -> None:
    check_all(run, "bilstm", BILSTM, SMALL)


def times(lengths: Sequence[Sequence[int]], dtype: torch.dtype, device: str, kind: str, width: int = CHANNELS) -> cases.Case:
    """The three modalities by one call, beside torch's layers on the padded batch and by the packed sequences that torch's manual has."""
    draw = draws(device)
    ptr = [torch.tensor([0, *each], device=device).cumsum(0) for each in lengths]
    at = [Pointers.from_ptr(p, sum(each), max(each)) for p, each in zip(ptr, lengths, strict=True)]
    inputs = [draw(p.num_rows, width).to(dtype).requires_grad_() for p in at]
    inputs += [w.to(dtype).requires_grad_() for w in weights(draw, len(at), width, HIDDEN).values()]
    grad = draw(sum(p.num_rows for p in at), 2 * HIDDEN).to(dtype)

    def of(given: Sequence[Tensor], pointers: Sequence[Pointers], backend: str) -> Tensor:
        sets = len(at)
        own = [list(given[sets + 8 * m : sets + 8 * m + 8]) for m in range(sets)]
        return torch.cat(bilstm(list(given[:sets]), own, pointers, backend=backend))

    contenders = {n: cases.step(lambda *given, b=b: of(given, at, b), inputs, grad) for n, b in (("mea_graph", "auto"), ("torch", "torch"))}
    contenders["torch, packed"] = _packed(lengths, inputs, grad, device)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = cases.step(lambda *given: of(given, at, "reference"), wide, grad.double())
    steps = "/".join(str(max(each)) for each in lengths)
    return cases.Case(f"Bi-LSTM, B {len(lengths[0])}, {steps}, {width} to {HIDDEN}{kind}", contenders, list(contenders), truth, dtype)


def _packed(lengths: Sequence[Sequence[int]], inputs: Sequence[Tensor], grad: Tensor, device: str) -> measure.Pass:
    """`torch.nn.LSTM` over `pack_padded_sequence`, which sorts the samples and reads their lengths on the host."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    sets = len(lengths)
    layers = [torch.nn.LSTM(inputs[m].size(1), HIDDEN, bidirectional=True, batch_first=True) for m in range(sets)]
    for m, layer in enumerate(layers):
        layer.to(device, inputs[0].dtype)
        with torch.no_grad():
            for own, given in zip(layer.parameters(), inputs[sets + 8 * m : sets + 8 * m + 8], strict=True):
                own.copy_(given)
    masks = [cases.prefix_mask(each, max(each), device) for each in lengths]
    places = [mask.flatten().nonzero().squeeze(1) for mask in masks]
    padded = [
        x.new_zeros(mask.numel(), x.size(1)).index_copy(0, place, x.detach()).view(*mask.shape, -1).requires_grad_()
        for x, mask, place in zip(inputs[:sets], masks, places, strict=True)
    ]

    def run() -> list[Tensor]:
        found = []
        for layer, x, each, place in zip(layers, padded, lengths, places, strict=True):
            packed = pack_padded_sequence(x, torch.tensor(each), batch_first=True, enforce_sorted=False)
            out = pad_packed_sequence(layer(packed)[0], batch_first=True)[0]
            found.append(out.flatten(0, 1).index_select(0, place))
        leaves = [*padded, *(p for layer in layers for p in layer.parameters())]
        out = torch.cat(found)
        grads = torch.autograd.grad(out, leaves, grad)
        rows = [g.flatten(0, 1).index_select(0, place) for g, place in zip(grads, places, strict=False)]
        return [out.detach(), *rows, *grads[sets:]]

    return run


def _sizes(run: Run) -> dict[str, Sizes]:
    if run.small:
        return {"small": ([[4, 2], [3, 1]], FLOAT32, ", true lengths")}
    found: dict[str, Sizes] = {}
    for dtype in (FLOAT32, BFLOAT16):
        found[f"true lengths, {dtype_name(dtype)}"] = ([TEXT, AUDIO, MOSI], dtype, ", true lengths (mean 12/50/60)")
        found[f"full, {dtype_name(dtype)}"] = ([[50] * 32, [375] * 32, [500] * 32], dtype, "")
    return found


def time_recurrent(run: Run) -> None:
    sizes = _sizes(run).items()
    time_all(run, {f"Bi-LSTM, {n}": lambda size=size: times(size[0], size[1], run.device, size[2]) for n, size in sizes})


def kernels_of_recurrent(run: Run) -> None:
    """What a pass over the three modalities launches."""
    lengths, dtype, kind = next(iter(_sizes(run).values()))

    def find() -> Record:
        case = times(lengths, dtype, run.device, kind)
        found = kernels(case.contenders["mea_graph"], run.device)
        launches = round(sum(one["launches"] for one in found), 1)
        return {"what": case.name, "dtype": dtype_name(case.dtype), "launches": launches, "kernels": found[:40]}

    run.each("kernels", {f"Bi-LSTM, {dtype_name(dtype)}": find})
