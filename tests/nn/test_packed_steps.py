"""Packing, and that the cross-modal layers give the same with and without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn import (
    CrossModalEncoder,
    HierarchicalCrossModalAttention,
    ModalityReinforcementUnit,
    PredictiveEncoder,
    PredictiveSelfAttention,
    hierarchical_cross_modal_attention,
    modality_reinforcement_unit,
    predictive_encoder,
    predictive_self_attention,
)
from mea_graph.nn._packed_steps import can_pack, join, pack, unpack

PACKING = (predictive_encoder, predictive_self_attention, hierarchical_cross_modal_attention, modality_reinforcement_unit)

D, HEADS = 4, 2
LENGTHS = {"text": [3, 0, 1, 2], "audio": [5, 4, 0, 0], "vision": [2, 0, 4, 0]}  # no sample has all, the last has text alone


def draw(m: str, spare: int = 1) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor(LENGTHS[m])
    mask = torch.arange(int(lengths.max()) + spare) < lengths[:, None]
    return torch.randn(*mask.shape, D, dtype=torch.float64), mask


def test_unpacking_is_the_way_back() -> None:
    x, mask = draw("audio")
    mask[0, 1] = False  # a hole
    steps = pack(x, mask)
    assert steps.lengths == [4, 4, 0, 0]
    assert steps.sample.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(steps.x, x[mask])
    assert torch.equal(unpack(steps.x, mask), x.masked_fill(~mask.unsqueeze(-1), 0))


def test_a_full_batch_is_not_copied() -> None:
    x, mask = torch.randn(2, 3, D), torch.ones(2, 3, dtype=torch.bool)
    steps = pack(x, mask)
    assert steps.x.data_ptr() == x.data_ptr() == unpack(steps.x, mask).data_ptr()


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_pack_is_legal(batch: int, length: int) -> None:
    x, mask = torch.randn(batch, length, D), torch.ones(batch, length, dtype=torch.bool)
    steps = join([pack(x, mask), pack(x, mask)])
    assert (steps.x.shape, steps.lengths) == ((0, D), [0] * batch)
    assert unpack(pack(x, mask).x, mask).shape == x.shape


def test_joined_steps_stand_sample_after_sample() -> None:
    given = [draw(m) for m in LENGTHS]
    joined = join([pack(x, mask) for x, mask in given])
    assert joined.lengths == [10, 4, 5, 2]
    assert torch.equal(joined.x, torch.cat([x[b][mask[b]] for b in range(4) for x, mask in given]))


def test_gradients_of_padding_are_zero() -> None:
    x, mask = draw("vision")
    x.requires_grad_()
    out = unpack(pack(x, mask).x.square(), mask)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, (2 * x).masked_fill(~mask.unsqueeze(-1), 0))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_only_eager_code_on_a_cpu_packs() -> None:
    x, answers = torch.randn(2, 3), []

    def ask(t: Tensor) -> Tensor:
        answers.append(can_pack(t))
        return t + 1

    assert can_pack(x)
    assert not can_pack(x.to("meta"))
    torch.jit.trace(ask, x, check_trace=False)
    torch.compiler.reset()
    assert torch.equal(torch.compile(lambda t: t + can_pack(t), fullgraph=True, backend="eager")(x), x)
    assert answers == [False]


def unit() -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    return ModalityReinforcementUnit(D, HEADS), lambda module, x, mask: [
        module([x["audio"], x["vision"]], x["text"], [mask["audio"], mask["vision"]], mask["text"])
    ]


def layer() -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    return HierarchicalCrossModalAttention(D, LENGTHS, HEADS), lambda module, x, mask: list(module(x, mask).x.values())


def stack() -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    return CrossModalEncoder(D, LENGTHS, HEADS), lambda module, x, mask: list(module(x, mask)[0].values())


def self_attention() -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    def call(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
        out = []
        for m in LENGTHS:
            z, prior = module(x[m], mask[m])
            out += [module(z, mask[m], prior)[0], *prior]
        return out

    return PredictiveSelfAttention(D, HEADS), call


def predictive() -> tuple[nn.Module, Callable[..., list[Tensor]]]:
    def call(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
        out = module(x, mask)
        return [*out.x.values(), *out.modality_weights]

    return PredictiveEncoder(D, LENGTHS, HEADS), call


@pytest.mark.parametrize("present", [False, True], ids=["missing modalities", "all there"])
@pytest.mark.parametrize("build", [unit, layer, stack, self_attention, predictive])
def test_packed_equals_padded(build: Any, present: bool, randomised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = build()
    randomised(module)
    given = {m: draw(m) for m in LENGTHS}
    x, mask = {m: t.requires_grad_() for m, (t, _) in given.items()}, {m: k.clone() for m, (_, k) in given.items()}
    if present:
        for k in mask.values():
            k[:, 0] = True
    leaves = [*x.values(), *module.parameters()]
    seen: list[int] = []
    for block in (m for name, m in module.named_modules() if name.endswith("feed_forward")):
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dim()))

    def run() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        out = call(module, x, mask)
        return out, torch.autograd.grad(sum(o.sin().sum() for o in out), leaves)

    packed = run()
    assert set(seen) == {2}, "a block saw padding"
    for place in PACKING:
        monkeypatch.setattr(place, "can_pack", lambda _: False)
    seen.clear()
    padded = run()
    assert set(seen) == {3}
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)
