"""Cases of the Bi-LSTM and the Bi-GRU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mea_graph.check.attention import AUDIO, MOSI, TEXT
from mea_graph.check.cases import Build, OpCase, draws, laid_out, op_case
from mea_graph.ops.recurrent import bigru, bilstm

CHANNELS, HIDDEN = 40, 20  # of the model at its defaults
_NAMES = {bilstm: ("Bi-LSTM", 4), bigru: ("Bi-GRU", 3)}  # and the number of gates


def weights(draw: Callable[..., Tensor], sets: int, width: int, hidden: int, gates: int = 4) -> dict[str, Tensor]:
    """As torch begins them: by set and direction W, U, b, b'."""
    shapes = [(gates * hidden, width), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)] * 2
    return {f"w{m}.{i}": draw(*shape) / hidden**0.5 for m in range(sets) for i, shape in enumerate(shapes)}


def recurrent(
    lengths: Sequence[Sequence[int]],
    layout: str = "packed",
    hidden: int = HIDDEN,
    width: int = CHANNELS,
    op: Callable[..., list[Tensor]] = bilstm,
) -> Build:
    """One set of sequences for each of `lengths`."""
    name, gates = _NAMES[op]

    def build(dtype: torch.dtype, device: str) -> OpCase:
        draw, at = draws(device), [laid_out(each, layout, device) for each in lengths]
        real = torch.cat([p.real for p in at]).nonzero().squeeze(1)  # in gaps the result means nothing
        inputs = {f"x{m}": draw(p.num_rows, width) for m, p in enumerate(at)} | weights(draw, len(at), width, hidden, gates)

        def run(backend: str, **given: Tensor) -> Tensor:
            x = [given[f"x{m}"] for m in range(len(at))]
            own = [[given[f"w{m}.{i}"] for i in range(8)] for m in range(len(at))]
            return torch.cat(op(x, own, at, backend=backend)).index_select(0, real)

        said = " and ".join(str(list(each)) if len(each) < 8 else f"{len(each)} of up to {max(each)}" for each in lengths)
        held = "torch" if hidden > 64 else None
        return op_case(f"{name}, {layout} {said}, {width} to {hidden}", run, inputs, {}, dtype, runs=held)

    return build


BILSTM: list[Build] = [
    recurrent([[1, 1]]),
    *(recurrent([[5, 0, 1, 33], [2, 3, 0, 70]], layout) for layout in ("packed", "padded", "scattered")),
    recurrent([[0, 0]], "padded"),
    recurrent([[500, 500]]),
    recurrent([TEXT, AUDIO, MOSI]),
    recurrent([[9, 4]], hidden=1, width=3),
    recurrent([[9, 4]], hidden=33),
    recurrent([[70, 7]], hidden=64, width=64),
    recurrent([[9, 4]], hidden=80),  # no kernel holds it: cuDNN's
]
