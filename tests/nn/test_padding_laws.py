"""The law of DESIGN.md, for every layer and the whole model: padded = one by one = permuted, whatever stands in the padding."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mea_graph import nn as mea

MODALITIES = {"text": 7, "audio": 3, "vision": 5}
LENGTHS = {"text": [4, 1, 6, 2], "audio": [9, 5, 0, 3], "vision": [1, 8, 2, 0]}  # vision and audio are missing once each
D, HEADS, B = 8, 2, 4

pytestmark = pytest.mark.usefixtures("torch_and_native")


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]  # "<modality>": (B, T_m, *), "-<other>": (B, *)
    raw: bool = False  # takes the raw widths instead of D


def pooled(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"-" + m: module(x[m], mask[m]) for m in x}


def predictive(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for m in x:
        y, prior = module(x[m], mask[m])
        outputs[m], prior = module(y, mask[m], prior)
    return outputs


def weighted(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    y, weights = module(x, mask)
    return {**y, "-weights": weights}


def encoder(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    output = module(x, mask)
    return {**output.x, **{f"-weights{i}": w for i, w in enumerate(output.modality_weights)}}


def unit(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"text": module(x["text"], mask["text"], source=[x["audio"], x["vision"]], source_layout=[mask["audio"], mask["vision"]])}


def whole(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
    output = module(x, mask)
    outputs = {"-prediction": output.prediction}
    for space in ("exclusive", "agnostic"):
        if getattr(output, space) is not None:
            outputs |= {f"-{space}_{m}": h for m, h in getattr(output, space).items()}
            outputs[f"-logits_{space}"] = getattr(output.discrimination, space)
    return outputs


def centred(module: nn.Module) -> nn.Module:
    """With means of their own. In training they are the batch's, whose samples then depend on one another."""
    for name, buffer in module.named_buffers():
        if name.endswith("mean"):
            buffer.normal_(generator=torch.Generator().manual_seed(3))
    return module.eval()


def sums(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor | None]) -> dict[str, Tensor]:
    real = {m: torch.ones(v.shape[:2], dtype=torch.bool) if mask[m] is None else mask[m] for m, v in x.items()}
    h = {m: v.masked_fill(~real[m].unsqueeze(-1), 0).sum(1) for m, v in x.items()}
    present = None if any(v is None for v in mask.values()) else {m: v.any(1) for m, v in real.items()}
    return {"-" + m: v for m, v in module(h, present).items()}


def both(**options: object) -> dict[str, object]:
    """The same options for both branches."""
    return {"exclusive": options, "agnostic": options}


def model(**options: object) -> Case:
    return Case(lambda: mea.MEA.published(MODALITIES, 3, channels=D, hidden_channels=6, heads=HEADS, **options), whole, raw=True)


CASES = {
    "UnimodalExtractor": Case(
        lambda: nn.ModuleDict({m: mea.UnimodalExtractor(c, D) for m, c in MODALITIES.items()}),
        lambda module, x, mask: {m: module[m](x[m], mask[m]) for m in x},
        raw=True,
    ),
    "UnimodalExtractor even kernel": Case(
        lambda: nn.ModuleDict({m: mea.UnimodalExtractor(c, D, kernel_size=4) for m, c in MODALITIES.items()}),
        lambda module, x, mask: {m: module[m](x[m], mask[m]) for m in x},
        raw=True,
    ),
    "UnimodalExtractor skip": Case(
        lambda: nn.ModuleDict({m: mea.UnimodalExtractor(c, D, skip=True) for m, c in MODALITIES.items()}),
        lambda module, x, mask: {m: module[m](x[m], mask[m]) for m in x},
        raw=True,
    ),
    "PredictiveSelfAttention": Case(lambda: mea.PredictiveSelfAttention(D, HEADS), predictive),
    "PredictiveSelfAttention residual": Case(lambda: mea.PredictiveSelfAttention(D, HEADS, mu=0.9, residual="input"), predictive),
    "WeightedAttention": Case(lambda: mea.WeightedAttention(D, MODALITIES), weighted),
    "PredictiveEncoder": Case(lambda: mea.PredictiveEncoder(D, MODALITIES, HEADS, num_layers=3), encoder),
    "ModalityReinforcementUnit": Case(lambda: mea.ModalityReinforcementUnit(D, HEADS), unit),
    "HierarchicalCrossModalAttention": Case(
        lambda: mea.HierarchicalCrossModalAttention(D, MODALITIES, HEADS), lambda module, x, mask: module(x, mask).x
    ),
    "CrossModalEncoder": Case(lambda: mea.CrossModalEncoder(D, MODALITIES, HEADS), lambda module, x, mask: module(x, mask)[0]),
    "ExclusiveEncoder mean": Case(lambda: mea.ExclusiveEncoder(D, 6), pooled),
    "ExclusiveEncoder segments": Case(lambda: mea.ExclusiveEncoder(D, 6, pooling="segments", segments=3), pooled),
    "ExclusiveEncoder max": Case(lambda: mea.ExclusiveEncoder(D, 6, pooling="max"), pooled),
    "ExclusiveEncoder gru": Case(lambda: mea.ExclusiveEncoder(D, 6, pooling="gru"), pooled),
    "AgnosticEncoder": Case(lambda: mea.AgnosticEncoder(D, 6), pooled),
    "ModalityCentering": Case(lambda: centred(mea.ModalityCentering(D, MODALITIES)), sums),
    "MEA": model(),
    "MEA recommended": Case(lambda: mea.MEA(MODALITIES, 3, channels=D, hidden_channels=6, heads=HEADS, dropout=0.0), whole, raw=True),
    "MEA stride": model(
        extractor={"stride": {"text": 1, "audio": 2, "vision": 3}},
        exclusive={"pooling": "segments"},
        agnostic={"pooling": "segments"},
        head={"norm": True},
    ),
    "MEA gru": model(**both(pooling="gru")),
    "MEA skip": model(extractor={"skip": True}, head={"norm": True}),
    "MEA self loops": model(fusion={"self_loops": True}, **both(residual="input", pooling="max")),
    "MEA concatenation": model(fusion="concatenation", agnostic={"mixed": False}),
    "MEA addition": model(fusion="addition", agnostic={"coarse": False}),
    "MEA multiplication": model(fusion="multiplication", agnostic={"fine": False}),
    "MEA exclusive only": model(agnostic=None, exclusive={"prediction_chain": False}),
    "MEA agnostic only": model(exclusive=None),
    "MEA centred": Case(
        lambda: centred(mea.MEA.published(MODALITIES, 3, channels=D, hidden_channels=6, heads=HEADS, agnostic={"center": True})),
        whole,
        raw=True,
    ),
    "MEA bare": model(**both(num_layers=0)),
    "MEA no omega, no WAL": model(discriminator={"importance": False}, exclusive={"weighted_attention": False}),
}


def batch(case: Case, extra: int = 0, lengths: dict[str, list[int]] = LENGTHS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sequences with zeros in the padding, in float64; `extra` more steps of padding."""
    x, mask = {}, {}
    for i, (m, width) in enumerate(MODALITIES.items()):
        noise = torch.randn(4, 16, width if case.raw else D, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        steps = torch.arange(max([1, *lengths[m]]) + extra)
        mask[m] = steps < torch.tensor(lengths[m])[:, None]
        x[m] = noise[: len(lengths[m]), : len(steps)] * mask[m][..., None]
    return x, mask


def run(case: Case, x: dict[str, Tensor], mask: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, gradients of the inputs and of the parameters, for the loss sum of squared outputs."""
    torch.manual_seed(1)
    module = case.build().double()
    x = {m: v.clone().requires_grad_() for m, v in x.items()}
    outputs = case.call(module, x, mask)
    sum((v.square().sum() for v in outputs.values()), torch.zeros((), dtype=torch.float64)).backward()
    inputs = {m: torch.zeros_like(v) if v.grad is None else v.grad for m, v in x.items()}
    return {k: v.detach() for k, v in outputs.items()}, inputs, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_junk_in_the_padding_changes_nothing(name: str, junk: float) -> None:
    case = CASES[name]
    x, mask = batch(case)
    outputs, inputs, parameters = run(case, x, mask)
    dirty = {m: v.masked_fill(~mask[m][..., None], junk) for m, v in x.items()}
    dirty_outputs, dirty_inputs, dirty_parameters = run(case, dirty, mask)
    assert all(v.isfinite().all() for v in [*outputs.values(), *inputs.values(), *parameters.values()])
    for k in outputs:
        assert torch.equal(dirty_outputs[k], outputs[k]), k
    for m in inputs:
        assert torch.equal(dirty_inputs[m], inputs[m]), m
        assert not inputs[m][~mask[m]].any(), f"gradient in the padding of {m}"
    for k in parameters:
        assert torch.equal(dirty_parameters[k], parameters[k]), k


@pytest.mark.parametrize("name", CASES)
def test_more_padding_changes_nothing(name: str) -> None:
    case = CASES[name]
    outputs, inputs, parameters = run(case, *batch(case))
    x, mask = batch(case, extra=5)
    longer_outputs, longer_inputs, longer_parameters = run(case, x, mask)
    for k, v in outputs.items():
        same = longer_outputs[k] if k.startswith("-") else longer_outputs[k][:, : v.size(1)]
        close(same, v, k)
        if not k.startswith("-"):
            assert not longer_outputs[k][:, v.size(1) :].any(), f"{k} is not zero in the padding"
    for m, v in inputs.items():
        close(longer_inputs[m][:, : v.size(1)], v, f"gradient of {m}")
    for k, v in parameters.items():
        close(longer_parameters[k], v, f"gradient of {k}")


@pytest.mark.parametrize("name", CASES)
def test_padded_equals_one_by_one(name: str) -> None:
    case = CASES[name]
    x, mask = batch(case)
    outputs, inputs, parameters = run(case, x, mask)
    total: dict[str, Tensor] = {}
    for b in range(B):
        one = {m: v[b : b + 1, : max(LENGTHS[m][b], 1)] for m, v in x.items()}
        one_mask = {m: v[b : b + 1, : max(LENGTHS[m][b], 1)] for m, v in mask.items()}
        one_outputs, one_inputs, one_parameters = run(case, one, one_mask)
        for k, v in one_outputs.items():
            close(v[0], outputs[k][b] if k.startswith("-") else outputs[k][b, : v.size(1)], f"{k} of sample {b}")
        for m, v in one_inputs.items():
            close(v[0], inputs[m][b, : v.size(1)], f"gradient of {m} of sample {b}")
        for k, v in one_parameters.items():
            total[k] = total.get(k, 0) + v
    for k, v in parameters.items():
        close(total[k], v, f"gradient of {k}")


@pytest.mark.parametrize("name", CASES)
def test_permuting_samples_permutes_outputs(name: str) -> None:
    case = CASES[name]
    x, mask = batch(case)
    order = torch.tensor([2, 0, 3, 1])
    outputs, inputs, parameters = run(case, x, mask)
    turned_outputs, turned_inputs, turned_parameters = run(
        case, {m: v[order] for m, v in x.items()}, {m: v[order] for m, v in mask.items()}
    )
    for k, v in outputs.items():
        close(turned_outputs[k], v[order], k)
    for m, v in inputs.items():
        close(turned_inputs[m], v[order], f"gradient of {m}")
    for k, v in parameters.items():
        close(turned_parameters[k], v, f"gradient of {k}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param({"text": [], "audio": [], "vision": []}, id="no sample"),
        pytest.param({"text": [1, 1], "audio": [1, 1], "vision": [1, 1]}, id="one step"),
        pytest.param({"text": [3, 2], "audio": [0, 0], "vision": [2, 4]}, id="a modality missing in the whole batch"),
        pytest.param({"text": [0, 3], "audio": [0, 0], "vision": [0, 1]}, id="a sample without anything"),
        pytest.param({"text": [0, 3], "audio": [2, 0], "vision": [0, 0]}, id="one modality a sample"),
    ],
)
def test_degenerate_batches_are_finite(name: str, lengths: dict[str, list[int]]) -> None:
    case = CASES[name]
    x, mask = batch(case, lengths=lengths)
    outputs, inputs, parameters = run(case, x, mask)
    for k, v in {**outputs, **inputs, **parameters}.items():
        assert v.isfinite().all(), k
    for k, v in outputs.items():
        assert v.size(0) == len(lengths["text"]), k
    for m, v in inputs.items():
        assert not v[~mask[m]].any(), f"gradient of the missing {m}"


@pytest.mark.parametrize("name", CASES)
def test_no_step_at_all_is_legal(name: str) -> None:
    case = CASES[name]
    x, mask = batch(case, lengths={"text": [3, 2], "audio": [1, 1], "vision": [2, 4]})
    x["audio"], mask["audio"] = x["audio"][:, :0], mask["audio"][:, :0]
    outputs, inputs, _ = run(case, x, mask)
    for k, v in {**outputs, **inputs}.items():
        assert v.isfinite().all(), k
    if "audio" in outputs:
        assert outputs["audio"].shape[:2] == (2, 0)


@pytest.mark.parametrize("name", CASES)
def test_no_mask_means_that_every_step_is_real(name: str) -> None:
    case = CASES[name]
    x, mask = batch(case, lengths={"text": [3, 3], "audio": [4, 4], "vision": [2, 2]})
    torch.manual_seed(1)
    module = case.build().double()
    expected = case.call(module, x, mask)
    actual = case.call(module, x, dict.fromkeys(mask))
    for k, v in expected.items():
        close(actual[k], v, k)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.call in (pooled, whole)])
def test_a_missing_modality_has_no_representation(name: str) -> None:
    outputs, _, _ = run(CASES[name], *batch(CASES[name]))
    for m, lengths in LENGTHS.items():
        there = torch.tensor(lengths) > 0
        for k in {f"-{m}", f"-exclusive_{m}", f"-agnostic_{m}"} & set(outputs):
            assert outputs[k][there].any(1).all(), k
            assert not outputs[k][~there].any(), k


@pytest.mark.parametrize("name", ["WeightedAttention", "PredictiveEncoder"])
def test_a_missing_modality_has_no_weight(name: str) -> None:
    outputs, _, _ = run(CASES[name], *batch(CASES[name]))
    there = torch.tensor(list(LENGTHS.values())).T > 0  # (B, M)
    for k in (k for k in outputs if k.startswith("-weights")):
        assert torch.equal(outputs[k] > 0, there), k


def self_attention_maps(x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Of two layers in turn, for every modality, each with the mask of its keys."""
    layer, maps = mea.PredictiveSelfAttention(D, HEADS).double(), []
    for m in x:
        y, prior, first = layer(x[m], mask[m], return_attention_weights=True)
        second = layer(y, mask[m], prior, return_attention_weights=True)[2]
        maps += [(first, mask[m]), (second, mask[m])]
    return maps


def cross_modal_maps(x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    unit = mea.ModalityReinforcementUnit(D, HEADS).double()
    sources, masks = [x["audio"], x["vision"]], [mask["audio"], mask["vision"]]
    return [(unit(x["text"], mask["text"], source=sources, source_layout=masks, return_attention_weights=True)[1], torch.cat(masks, 1))]


@pytest.mark.parametrize("maps", [self_attention_maps, cross_modal_maps])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_attention_maps_do_not_see_the_padding(maps: Callable[..., list[tuple[Tensor, Tensor]]], junk: float) -> None:
    x, mask = batch(CASES["ModalityReinforcementUnit"])
    dirty = {m: v.masked_fill(~mask[m][..., None], junk) for m, v in x.items()}
    torch.manual_seed(1)
    clean = maps(x, mask)
    torch.manual_seed(1)
    for (expected, keys), (actual, _) in zip(clean, maps(dirty, mask), strict=True):
        assert torch.equal(actual, expected)
        assert not actual.masked_select(~keys[:, None, None]).any()
        assert actual[keys.any(1)].any(), "the map is empty"


LAYERS = [name for name in CASES if " " not in name or name.endswith("mean")]  # each once, without its variants


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("without", [["text"], ["text", "audio", "vision"]], ids=["of one modality", "at all"])
def test_no_step(name: str, without: list[str]) -> None:
    """T = 0 is legal, forward and backward."""
    case = CASES[name]
    x, mask = batch(case)
    for m in without:
        x[m], mask[m] = x[m][:, :0], mask[m][:, :0]
    outputs, inputs, parameters = run(case, x, mask)
    for k, v in {**outputs, **inputs, **parameters}.items():
        assert v.isfinite().all(), k
    for k, v in outputs.items():
        assert v.shape[:1] == (B,), k
        assert k in without or k.startswith("-") or v.size(1) == x[k].size(1), k


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_one_sequence_of_4000_steps_changes_none_of_three(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    module = case.build().double()
    x, mask = batch(case, lengths={m: [3, 2, 3] for m in MODALITIES})
    expected = case.call(module, x, mask)
    long = {m: v.new_zeros(4, 4000 if m == "text" else 3, v.size(2)) for m, v in x.items()}
    for m, v in x.items():
        long[m][1:, :3] = v
    long["text"][0].normal_()
    real = {m: torch.zeros(v.shape[:2], dtype=torch.bool) for m, v in long.items()}
    for m, v in mask.items():
        real[m][1:, :3] = v
        real[m][0] = True
    for k, v in case.call(module, long, real).items():
        assert v.isfinite().all(), k
        close(v[1:] if k.startswith("-") else v[1:, :3], expected[k], k)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=5, derandomize=True, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_any_lengths_padded_one_by_one_and_permuted(name: str, data: st.DataObject) -> None:
    """The whole law, without gradients, for lengths that nobody chose."""
    samples = data.draw(st.integers(1, 4), "samples")
    lengths = {m: data.draw(st.lists(st.integers(0, 12), min_size=samples, max_size=samples), m) for m in MODALITIES}
    order = torch.tensor(data.draw(st.permutations(range(samples)), "order"))
    case = CASES[name]
    torch.manual_seed(1)
    module = case.build().double()
    x, mask = batch(case, extra=data.draw(st.integers(0, 3), "padding"), lengths=lengths)
    dirty = {m: v.masked_fill(~mask[m][..., None], torch.nan) for m, v in x.items()}
    together = case.call(module, dirty, mask)
    turned = case.call(module, {m: v[order] for m, v in dirty.items()}, {m: v[order] for m, v in mask.items()})
    for k, v in together.items():
        close(turned[k], v[order], f"{k}, permuted")
    for b in range(samples):
        one = {m: v[b : b + 1, : lengths[m][b]] for m, v in x.items()}
        for k, v in case.call(module, one, {m: v[b : b + 1, : lengths[m][b]] for m, v in mask.items()}).items():
            close(v[0], together[k][b] if k.startswith("-") else together[k][b, : v.size(1)], f"{k} of sample {b}")
