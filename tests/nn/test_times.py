"""Positions from seconds: their formula, the laws of every layer, the ways in which times come, and what is refused."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, HeteroData

from mea_graph.nn import MEA, UnimodalExtractor
from mea_graph.ops import Pointers

D, T = 6, 7
LENGTHS = [4, 7, 0, 2]
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
PTR = torch.tensor([0, 4, 11, 11, 13])
WIDTHS = {"text": 3, "audio": 2}
SMALL: dict[str, Any] = {"channels": 8, "hidden_channels": 6, "heads": 2, "exclusive": {"num_layers": 2}}


def seconds() -> Tensor:
    """(B, T): irregular, float32 as data sets store them; junk in the padding."""
    return (torch.rand(len(LENGTHS), T) + 0.1).cumsum(1).masked_fill(~MASK, torch.nan)


def layer(**options: Any) -> UnimodalExtractor:
    return UnimodalExtractor(3, D, **({"positions": "seconds"} | options)).double()


def wave(t: float, channels: int, scale: float) -> list[float]:
    angles = [t / scale / 10000 ** ((c - c % 2) / channels) for c in range(channels)]
    return [math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_positions_are_those_of_the_steps_that_stand_for_a_stride(stride: int) -> None:
    """With silent recurrences and convolution the result is the position itself."""
    one = layer(stride=stride, skip=True, time_scale=0.25)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    time = seconds()
    out = one(torch.randn(len(LENGTHS), T, 3, dtype=torch.float64), MASK, time)
    for b, length in enumerate(LENGTHS):
        wanted = [wave(time[b, t].item(), D, 0.25) for t in range(0, length, stride)]
        assert not out[b, len(wanted) :].any()
        if wanted:
            torch.testing.assert_close(out[b, : len(wanted)], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_whole_numbers_of_the_scale_are_positions_of_steps() -> None:
    timed, numbered = layer(), layer(positions="steps")
    numbered.load_state_dict(timed.state_dict())
    x = torch.randn(2, T, 3, dtype=torch.float64)
    time = torch.arange(T, dtype=torch.float64).expand(2, T) * 0.1
    torch.testing.assert_close(timed(x, None, time), numbered(x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(timed(x, None, 2 * time), numbered(x))


def test_large_times_are_as_exact_as_their_type() -> None:
    """A day of float32 seconds: what is computed of them is exact in a model of float32, where float32 angles would be off by 0.03."""
    one = UnimodalExtractor(3, D, positions="seconds", skip=True, time_scale=0.1)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    time = 86400 + torch.arange(T) / 8  # numbers that float32 holds
    out = one(torch.randn(T, 3), None, time)
    torch.testing.assert_close(out, torch.tensor([wave(t, D, 0.1) for t in time.tolist()]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_padding_gaps_one_by_one_and_permuted_are_the_same(stride: int) -> None:
    one = layer(stride=stride)
    x = torch.randn(len(LENGTHS), T, 3, dtype=torch.float64).masked_fill(~MASK[..., None], torch.nan)
    time = seconds()
    rows, row_time = x[MASK].requires_grad_(), time[MASK]
    wanted = one(rows, PTR, row_time)
    cotangent = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, [rows, *one.parameters()], cotangent)

    def same(x: Tensor, out: Tensor, cotangent: Tensor, of_x: Any, order: Any = slice(None)) -> None:
        torch.testing.assert_close(out, wanted[order], rtol=1e-9, atol=1e-12)
        found = torch.autograd.grad(out, [x, *one.parameters()], cotangent)
        torch.testing.assert_close(of_x(found[0]), gradients[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1:], gradients[1:], rtol=1e-9, atol=1e-12)

    padded = x.clone().requires_grad_()
    left = one.output_layout(MASK)
    same(padded, one(padded, MASK, time)[left], cotangent, lambda g: g[MASK])
    if stride == 1:  # with gaps, as a batch on a GPU lies; what stands in a gap of the result is undefined
        gaps = x.flatten(0, 1).nan_to_num().requires_grad_()
        same(gaps, one(gaps, Pointers.from_mask(MASK), time.flatten())[MASK.flatten()], cotangent, lambda g: g[MASK.flatten()])
    alone = rows.detach().requires_grad_()
    parts = [one(alone[a:b], None, row_time[a:b]) for a, b in zip(PTR[:-1].tolist(), PTR[1:].tolist(), strict=True)]
    same(alone, torch.cat(parts), cotangent, lambda g: g)
    turned = x.flip(0).clone().requires_grad_()
    back = one(turned, MASK.flip(0), time.flip(0)).flip(0)[left]
    same(turned, back, cotangent, lambda g: g.flip(0)[MASK])


def test_nested_tensors_take_the_times_of_their_rows() -> None:
    one = layer()
    x, time = torch.randn(11, 3, dtype=torch.float64), torch.rand(11)
    nested = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 4, 11]))
    torch.testing.assert_close(one(nested, None, time).values(), one(x, torch.tensor([0, 4, 11]), time), rtol=1e-12, atol=0)


def test_nothing_at_all_is_legal() -> None:
    one = layer(stride=2)
    assert one(torch.zeros(2, 0, 3).double(), None, torch.zeros(2, 0)).shape == (2, 0, D)
    assert one(torch.zeros(0, 3).double(), torch.tensor([0]), torch.zeros(0)).shape == (0, D)


def test_compiles_into_one_graph() -> None:
    one, time = layer(), seconds()
    x = torch.randn(len(LENGTHS), T, 3, dtype=torch.float64)
    compiled = torch.compile(one, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, MASK, time), one(x, MASK, time), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (None, r"time: expected seconds \(4, 7\), one a step, .*got None"),
        (torch.zeros(4, 6), r"time: expected floating seconds \(4, 7\), one a step, got torch.float32 \(4, 6\)"),
        (torch.zeros(4, 7, 1), r"time: expected floating seconds \(4, 7\), .*got torch.float32 \(4, 7, 1\)"),
        (torch.zeros(13), r"time: expected floating seconds \(4, 7\), .*got torch.float32 \(13,\)"),
        (torch.zeros(4, 7, dtype=torch.int64), r"time: expected floating seconds .*got torch.int64 \(4, 7\)"),
        ([0.1], "time: expected floating seconds .*got list"),
        (torch.zeros(4, 7).index_put((torch.tensor(1), torch.tensor(5)), torch.tensor(torch.nan)), "got nan at step 5 of sample 1"),
        (torch.zeros(4, 7).index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(torch.inf)), "got inf at step 1 of sample 3"),
    ],
)
def test_bad_times_are_named(time: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer()(torch.zeros(4, T, 3).double(), MASK, time)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "time"}, "positions: expected 'steps' or 'seconds', got 'time'"),
        ({"time_scale": 0.0}, "time_scale: expected finite seconds above 0, got 0.0"),
        ({"time_scale": math.nan}, "time_scale: expected finite seconds above 0, got nan"),
        ({"time_scale": math.inf}, "time_scale: expected finite seconds above 0, got inf"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_times_that_nobody_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="time: expected None with positions='steps', which reads no time"):
        layer(positions="steps")(torch.zeros(4, T, 3).double(), MASK, torch.zeros(4, T))


# The model


def model(positions: Any = "seconds", **extractor: Any) -> MEA:
    return MEA(WIDTHS, 2, **SMALL, extractor={"positions": positions, **extractor}, dropout=0.0).double().eval()


def sample(words: int, frames: int) -> HeteroData:
    data = HeteroData()
    for m, length in (("text", words), ("audio", frames)):
        data[m].x = torch.randn(length, WIDTHS[m], dtype=torch.float64)
        data[m].time = (torch.rand(length) + 0.1).cumsum(0)
    return data


@pytest.fixture
def batch() -> Batch:
    return Batch.from_data_list([sample(3, 6), sample(2, 0), sample(5, 4)])


def padded(batch: Batch) -> tuple[dict[str, Tensor], ...]:
    """The batch with its padding, and junk in it."""
    pointers = {m: Pointers.from_ptr(batch[m].ptr) for m in WIDTHS}
    mask = {m: p.mask for m, p in pointers.items()}
    x = {m: p.pad(batch[m].x).masked_fill(~mask[m][..., None], torch.nan) for m, p in pointers.items()}
    return x, mask, {m: p.pad(batch[m].time).masked_fill(~mask[m], torch.nan) for m, p in pointers.items()}


@pytest.mark.parametrize("stride", [1, {"text": 1, "audio": 2}])
def test_every_way_into_the_model_brings_the_times(batch: Batch, stride: Any) -> None:
    net = model(stride=stride, kernel_size=3)
    wanted, graph = net(batch).prediction, net.embed(batch)
    of_rows = {m: batch[m].time for m in WIDTHS}
    x, mask, time = padded(batch)
    for found in (
        net(batch.x_dict, batch.batch_dict, 3, time=of_rows),
        net({m: batch[m].x for m in WIDTHS}, {m: batch[m].ptr for m in WIDTHS}, time=of_rows),
        net(x, mask, time=time),
        net.fuse(graph),
        net.fuse(net.embed(x, mask, time=time)),
    ):
        torch.testing.assert_close(found.prediction, wanted, rtol=1e-9, atol=1e-12)
    for b, one in enumerate(batch.to_data_list()):
        torch.testing.assert_close(net(one).prediction, wanted[b : b + 1], rtol=1e-9, atol=1e-12)
    by_hand = net.embed(x, mask, time=time)
    for m in WIDTHS:
        own = Pointers.from_ptr(batch[m].ptr).position % (2 if m == "audio" and stride != 1 else 1) == 0
        assert torch.equal(graph[m].time, batch[m].time[own])
        assert torch.equal(by_hand[m].time, graph[m].time)
    batch["audio"].time = batch["audio"].time * 1.5
    assert not torch.allclose(net(batch).prediction, wanted)


def test_positions_of_steps_read_no_times(batch: Batch) -> None:
    net = model("steps")
    wanted = net(batch).prediction
    assert net.timed_modalities == ()
    batch["audio"].time = batch["audio"].time * torch.nan
    assert torch.equal(net(batch).prediction, wanted)
    for m in WIDTHS:
        del batch[m].time
    assert torch.equal(net(batch).prediction, wanted)


def test_one_modality_may_have_no_clock(batch: Batch) -> None:
    net = model({"text": "steps", "audio": "seconds"})
    assert net.timed_modalities == ("audio",)
    wanted = net(batch).prediction
    del batch["text"].time
    assert torch.equal(net(batch).prediction, wanted)
    assert torch.equal(net(batch.x_dict, batch.batch_dict, 3, time={"audio": batch["audio"].time}).prediction, wanted)


class Timed(nn.Module):
    positions = "seconds"

    def forward(self, x: Tensor, pointers: Pointers, time: Tensor) -> Tensor:
        return torch.cat([x, time.to(x.dtype).unsqueeze(1).expand(-1, 8 - x.size(1))], 1)


def test_a_module_of_ones_own_is_given_the_times(batch: Batch) -> None:
    net = MEA(WIDTHS, 2, **SMALL, extractor=nn.ModuleDict({m: Timed() for m in WIDTHS})).double()
    steps = net.embed(batch)["audio"]
    torch.testing.assert_close(steps.x[:, -1], steps.time.double())


def test_bad_times_of_a_batch_are_named(batch: Batch) -> None:
    net = model()
    x, layout, good = batch.x_dict, batch.batch_dict, {m: batch[m].time for m in WIDTHS}
    with pytest.raises(ValueError, match=r"time\['text'\]: expected seconds \(10,\), one a step, .*got None"):
        net(x, layout, 3)
    with pytest.raises(ValueError, match=r"time\['text'\]: expected floating seconds \(10,\), one a step, got torch.float32 \(9,\)"):
        net(x, layout, 3, time=good | {"text": good["text"][1:]})
    with pytest.raises(ValueError, match=r"time\['audio'\]: expected seconds \(10,\), one a step, .*got None"):
        net(x, layout, 3, time={"text": good["text"]})
    with pytest.raises(ValueError, match=r"time: expected modalities among \['text', 'audio'\], got \['vision'\]"):
        net(x, layout, 3, time=good | {"vision": good["text"]})
    with pytest.raises(ValueError, match=r"time: expected None beside a PyG batch, which has times of its own, got those of \['text'"):
        net(batch, time=good)
    batch["audio"].time[7] = torch.nan
    with pytest.raises(ValueError, match=r"batch\['audio'\].time: expected finite seconds, got nan at step 1 of sample 2"):
        net(batch)
    del batch["audio"].time
    with pytest.raises(ValueError, match=r"batch\['audio'\].time: expected seconds \(10,\), one a step, .*got None"):
        net(batch)


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        (
            {"time_scale": {"text": 0.1, "audio": 0.2}},
            "extractor.time_scale: expected one number, so that equal times have equal positions",
        ),
        ({"positions": {"text": "steps"}}, r"extractor.positions: expected the modalities \['text', 'audio'\], got \['text'\]"),
        ({"positions": "clock"}, "positions: expected 'steps' or 'seconds', got 'clock'"),
    ],
)
def test_bad_options_of_the_model_are_named(extractor: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEA(WIDTHS, 2, **SMALL, extractor=extractor)


@pytest.mark.parametrize("options", [{"extractor": {"positions": "seconds"}}, {"window": {"seconds": 0.5}}])
def test_times_that_their_type_cannot_hold_apart_are_refused(options: dict[str, Any], batch: Batch) -> None:
    """float32 holds the seconds since 1970 to two minutes: all steps would be at one time."""
    net = MEA(WIDTHS, 2, **SMALL, **options).double()
    for m in WIDTHS:
        batch[m].time = batch[m].time.double() + 1.7e9
    assert net(batch).prediction.isfinite().all()
    batch["audio"].time = batch["audio"].time.float()
    with pytest.raises(ValueError, match=r"batch\['audio'\].time: expected times that float32 holds to 0.[15] s, got 17000000.*near 0"):
        net(batch)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"extractor": {"positions": "seconds"}}, "time_scale of 0.1 s"), ({"window": {"seconds": 0.5}}, "window of 0.5 s")],
)
@pytest.mark.parametrize("form", ["batch", "padded", "compiled"])
def test_times_that_can_hardly_be_seconds_are_told(options: dict[str, Any], what: str, form: str, batch: Batch) -> None:
    """A data set warns of them when it is made; samples of PyG came to the model without a word."""
    net = MEA(WIDTHS, 2, **SMALL, **options).double().eval()

    def told() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if form == "batch":
                net(batch)
            else:
                x, mask, time = padded(batch)
                whole = torch.compile(net, backend="eager", fullgraph=True) if form == "compiled" else net
                whole(x, mask, time=time)
        return [str(warning.message) for warning in caught if "taken as seconds" in str(warning.message)]

    assert told() == []
    for m in WIDTHS:
        batch[m].time = batch[m].time * 1000
    end = f"the times are taken as seconds, and most steps are 10 s or more apart, slow for speech, faces or text and beyond the {what}; "
    names = ["batch['{}'].time" if form == "batch" else "time['{}']"] * 2
    expected = [f"{name.format(m)}: {end}if they are milliseconds, give t / 1e3" for name, m in zip(names, WIDTHS, strict=True)]
    assert told() == ([] if form == "compiled" else expected)  # which must not look at numbers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"extractor": {"positions": "seconds", "time_scale": 1e5}}, {"window": {"seconds": 2e5}}])
def test_a_diary_is_no_mistake(options: dict[str, Any], batch: Batch) -> None:
    for m in WIDTHS:
        batch[m].time = batch[m].time.double() * 86400
    MEA(WIDTHS, 2, **SMALL, **options).double()(batch)


def test_times_that_fall_in_a_window_are_named(batch: Batch) -> None:
    net = MEA(WIDTHS, 2, **SMALL, window={"seconds": 0.5}).double()
    times = batch["audio"].time
    times[1] = times[0] - 1
    with pytest.raises(ValueError, match=r"batch\['audio'\].time: expected times that never fall .*at step 1 of sample 0"):
        net(batch)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)

    def forward(self, x: Tensor, pointers: Pointers) -> Tensor:
        return self.table(x.squeeze(1))


def test_an_extractor_of_ones_own_may_read_integers() -> None:
    extractors = nn.ModuleDict({"text": Words(), "audio": UnimodalExtractor(2, 8)})
    net = MEA({"text": 1, "audio": 2}, 2, **SMALL, extractor=extractors).eval()
    words, sound, mask = torch.tensor([[[3], [5]], [[1], [-7]]]), torch.randn(2, 4, 2), torch.tensor([[True, True], [True, False]])
    found = net({"text": words, "audio": sound}, {"text": mask, "audio": torch.ones(2, 4, dtype=torch.bool)}).prediction
    alone = net({"text": words[1:, :1], "audio": sound[1:]}).prediction
    torch.testing.assert_close(found[1:], alone)
    with pytest.raises(TypeError, match="audio: expected a floating type"):
        net({"text": words, "audio": sound.long()})
