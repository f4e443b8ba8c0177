"""The whole model: its parts one after the other, PyG batches, the ablations of Table V, the maps, the sizes of Table I."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader

from mea_graph.nn import MEA, MEALoss, fusion_graph
from mea_graph.nn.model_options import merged
from mea_graph.ops import Pointers

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": [3, 2, 4, 3], "audio": [5, 0, 2, 6], "vision": [2, 3, 0, 4]}  # audio and vision are missing once each
MASK = {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}
SMALL = {"channels": 8, "hidden_channels": 6, "heads": 2, "exclusive": {"num_layers": 2}}


def both(**options: Any) -> dict[str, Any]:
    """The same options for both branches."""
    return {"exclusive": options, "agnostic": options}


# Every row of Table V that is an argument of the model: which parameters it takes away (parts of their names).
ABLATIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "full": ({}, []),
    "w/o omega": ({"discriminator": {"importance": False}}, ["discriminator.importance"]),
    "w/o exclusive": ({"exclusive": None}, ["exclusive.attention.", "exclusive.encoders.", "convs.exclusive."]),
    "w/o agnostic": ({"agnostic": None}, ["agnostic.attention.", "agnostic.encoder.", "convs.agnostic.", "discriminator.importance"]),
    "w/o PSA": ({"exclusive": {"num_layers": 0}}, ["exclusive.attention."]),
    "w/o prediction chain": ({"exclusive": {"prediction_chain": False}}, [".predictor."]),
    "w/o WAL": ({"exclusive": {"weighted_attention": False}}, ["exclusive.attention.weighted."]),
    "w/o HCA": ({"agnostic": {"num_layers": 0}}, ["agnostic.attention."]),
    "w/o mixed": ({"agnostic": {"mixed": False}}, [".mixed."]),
    "w/o coarse": ({"agnostic": {"coarse": False}}, [".coarse."]),
    "w/o fine": ({"agnostic": {"fine": False}}, [".fine."]),
    "w/o DGF": ({"fusion": "concatenation"}, ["fusion."]),
    "addition": ({"fusion": "addition"}, ["fusion."]),
    "multiplication": ({"fusion": "multiplication"}, ["fusion."]),
}
FURTHER: dict[str, dict[str, Any]] = {
    "self loops": {"fusion": {"self_loops": True}},
    "confusion": {"discriminator": {"adversary": "confusion"}},
    "w/o discriminator": {"discriminator": None},
    "centred": {"agnostic": {"center": True}},
    "head norm": {"head": {"norm": True}},
    "skip": {"extractor": {"skip": True}},
    "input residual": both(residual="input") | {"exclusive": {"residual": "input", "mu": 0.9}},
    "segments": both(pooling="segments", segments=2),
    "gru": both(pooling="gru"),
    "strides": {"extractor": {"stride": {"text": 1, "audio": 2, "vision": 3}, "kernel_size": {"text": 1, "audio": 2, "vision": 5}}},
}
OPTIONS = {name: options for name, (options, _) in ABLATIONS.items()} | FURTHER


def make(options: dict[str, Any], out_channels: int = 2) -> MEA:
    return MEA.published(WIDTHS, out_channels, **merged(SMALL, options))


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(4, max(LENGTHS[m]), d, dtype=torch.float64) for m, d in WIDTHS.items()}


def recompute(model: MEA, x: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """The forward pass by hand, from the model's own layers."""
    on = merged({"exclusive": {"prediction_chain": True, "weighted_attention": True}, "agnostic": {}, "fusion": {}}, options)
    z = {m: model.extractors[m](x[m], MASK[m]) for m in WIDTHS}
    mask = {m: model.extractors[m].output_layout(MASK[m]) for m in WIDTHS}
    present = {m: mask[m].any(1) for m in WIDTHS}
    h: dict[str, dict[str, Tensor] | None] = {"exclusive": None, "agnostic": None}
    if on["exclusive"] is not None:
        z_e, prior = dict(z), dict.fromkeys(z)
        for i in range(2 if model.exclusive.attention is not None else 0):
            for m in WIDTHS:
                layer = model.exclusive.attention.attention[m][i]
                z_e[m], prior[m] = layer(z_e[m], mask[m], prior[m] if on["exclusive"]["prediction_chain"] else None)
            if on["exclusive"]["weighted_attention"]:
                z_e, _ = model.exclusive.attention.weighted[i](z_e, mask)
        h["exclusive"] = {m: model.exclusive.encoders[m](z_e[m], mask[m]) for m in WIDTHS}
    if on["agnostic"] is not None:
        z_a = z
        for layer in model.agnostic.attention.layers if model.agnostic.attention is not None else []:
            z_a = layer(z_a, mask).x
        h["agnostic"] = {m: model.agnostic.encoder(z_a[m], mask[m]) for m in WIDTHS}
        if model.agnostic.centering is not None:  # the first batch is all that the means know
            means = {m: v[present[m]].mean(0) for m, v in h["agnostic"].items()}
            h["agnostic"] = {m: (v - means[m]) * present[m][:, None] for m, v in h["agnostic"].items()}
    vectors = []
    for space, values in h.items():
        if values is None:
            continue
        if isinstance(on["fusion"], dict):
            graph = fusion_graph(h["exclusive"], h["agnostic"], present, on["fusion"].get("self_loops", False))
            fused = model.fusion(graph.x_dict, graph.edge_index_dict, graph.sample_dict, 4)
            vectors.append(fused.x[space])
        elif on["fusion"] == "concatenation":
            vectors.append(torch.cat([values[m] * present[m][:, None] for m in WIDTHS], 1))
        else:
            rows = [[values[m][b] for m in WIDTHS if present[m][b]] for b in range(4)]
            reduce = torch.sum if on["fusion"] == "addition" else torch.prod
            vectors.append(torch.stack([reduce(torch.stack(row), 0) for row in rows]))
    seen = [None] * 5 if model.discriminator is None else model.discriminator(h["exclusive"], h["agnostic"])
    return {**h, "prediction": model.head(torch.cat(vectors, 1)), "present": present, "discrimination": tuple(seen)}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_its_parts_one_after_the_other(randomised, x: dict[str, Tensor], name: str) -> None:
    model = randomised(make(OPTIONS[name]))
    output = model(x, MASK)
    assert output.prediction.shape == (4, 2)
    for part, expected in recompute(model, x, OPTIONS[name]).items():
        actual = getattr(output, part)
        if expected is None:
            assert actual is None
        else:
            torch.testing.assert_close(tuple(actual) if part == "discrimination" else actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_takes_away_what_it_says(name: str) -> None:
    options, gone = ABLATIONS[name]
    full, left = ({n for n, _ in make(o).named_parameters()} for o in ({}, options))
    assert full - left == {n for n in full if any(part in n for part in gone)}
    assert left <= full
    assert all(any(part in n for n in full) for part in gone)


@pytest.mark.parametrize(
    ("name", "task"),
    [*((name, "classification") for name in OPTIONS), ("full", "regression"), ("full", "multilabel"), ("w/o DGF", "regression")],
)
def test_no_parameter_is_idle(x: dict[str, Tensor], name: str, task: Any) -> None:
    """Every parameter gets a finite gradient that is not zero throughout, so that training reaches all of them."""
    target: Tensor = {
        "regression": torch.randn(4, dtype=torch.float64),
        "classification": torch.tensor([0, 1, 2, 1]),
        "multilabel": torch.randint(0, 2, (4, 3)).double(),
    }[task]
    model = make(OPTIONS[name], 1 if task == "regression" else 3).double()
    MEALoss(task)(model(x, MASK), target).total.backward()
    for n, parameter in model.named_parameters():
        assert parameter.grad is not None, n
        assert parameter.grad.isfinite().all(), n
        assert parameter.grad.any(), n


def test_several_regression_targets_train_the_whole_model(x: dict[str, Tensor]) -> None:
    """Each target gives its row of the head a third of the gradient that it gives alone."""
    model, target = make({}, 3).double().eval(), torch.randn(4, 3, dtype=torch.float64)
    output, weight = model(x, MASK), model.head[-1].weight
    (together,) = torch.autograd.grad(MEALoss()(output, target).task, weight, retain_graph=True)
    for column in range(3):
        alone = output._replace(prediction=output.prediction[:, column : column + 1])
        (own,) = torch.autograd.grad(MEALoss()(alone, target[:, column]).task, weight, retain_graph=True)
        torch.testing.assert_close(together[column], own[column] / 3, rtol=1e-10, atol=1e-12)
    MEALoss()(output, target).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"beta": 0.0}, {"disparity": "orthogonality"}])
def test_the_ablations_of_the_loss_leave_no_parameter_without_a_gradient(x: dict[str, Tensor], options: dict[str, Any]) -> None:
    model = make({}, 1).double()
    MEALoss(**options)(model(x, MASK), torch.randn(4, dtype=torch.float64)).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_pyg_batch_equals_the_dense_call(randomised, x: dict[str, Tensor]) -> None:
    samples = []
    for b in range(4):
        sample = HeteroData()
        for m, n in LENGTHS.items():
            sample[m].x = x[m][b, : n[b]]
        samples.append(sample)
    batch = next(iter(DataLoader(samples, batch_size=4)))
    model = randomised(make({}))
    dense = model(x, MASK)
    for output in (model(batch), model(batch.x_dict, batch.batch_dict, batch.num_graphs), model(batch.x_dict, batch.ptr_dict)):
        torch.testing.assert_close(output.prediction, dense.prediction, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(output.exclusive, dense.exclusive, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(output.agnostic, dense.agnostic, rtol=1e-12, atol=1e-14)
        assert {m: v.tolist() for m, v in output.present.items()} == {m: v.tolist() for m, v in dense.present.items()}


def test_batch_size_tells_of_last_samples_without_any_modality() -> None:
    model = make({})
    x = {m: torch.randn(2, d) for m, d in WIDTHS.items()}
    batch = {m: torch.zeros(2, dtype=torch.int64) for m in WIDTHS}
    assert model(x, batch, 3).prediction.shape == (3, 2)
    ptr = dict.fromkeys(WIDTHS, torch.tensor([0, 2, 2, 2]))
    assert model(x, ptr).prediction.shape == (3, 2)
    pointers = {m: Pointers.from_ptr(p) for m, p in ptr.items()}
    assert model(x, pointers, 3).prediction.shape == (3, 2)
    with pytest.raises(ValueError, match=r"batch_dict\['text'\]: expected Pointers of batch_size = 4 samples, got 3"):
        model(x, pointers, 4)


@pytest.mark.parametrize("fusion", [{}, "multiplication"])
def test_a_modality_without_steps_is_missing_with_and_without_a_mask(x: dict[str, Tensor], fusion: str) -> None:
    model, x = make({"fusion": fusion}).double(), x | {"audio": x["audio"][:, :0]}
    full = {m: torch.ones(v.shape[:2], dtype=torch.bool) for m, v in x.items()}
    plain, masked = model(x), model(x, full)
    assert torch.equal(plain.prediction, masked.prediction)
    assert plain.graph["audio_exclusive"].num_nodes == masked.graph["audio_exclusive"].num_nodes == 0


def test_the_head_norm_normalises_the_fused_vector(randomised, x: dict[str, Tensor]) -> None:
    model = randomised(make({"head": {"norm": True}}))
    seen = []
    model.head[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = model(x, MASK)
    graph = output.graph
    fused = torch.cat(list(model.fusion(graph.x_dict, graph.edge_index_dict, graph.sample_dict, 4).x.values()), 1)
    centred = fused - fused.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(seen[0], normal * model.head[0].weight + model.head[0].bias, rtol=1e-9, atol=1e-12)


def test_the_graph_of_the_output_holds_the_representations_that_are_there(x: dict[str, Tensor]) -> None:
    output = make({}).double()(x, MASK)
    for space, h in (("exclusive", output.exclusive), ("agnostic", output.agnostic)):
        for m in WIDTHS:
            node = output.graph[f"{m}_{space}"]
            assert node.sample.tolist() == [b for b in range(4) if LENGTHS[m][b]]
            assert torch.equal(node.x, h[m][node.sample])


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_maps_on_request(x: dict[str, Tensor], stride: int) -> None:
    model = make({"extractor": {"stride": stride}}).double()
    output = model(x, MASK, return_attention_weights=True)
    real = {m: MASK[m][:, ::stride] for m in WIDTHS}

    def check(attention: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Rows of real steps sum to one over the real keys of samples that have any; other keys get nothing."""
        assert attention.shape == (4, 2, rows.size(1), columns.size(1))
        total = columns.any(1).double()[:, None, None].expand(attention.shape[:3])
        chosen = rows[:, None].expand_as(total)
        torch.testing.assert_close(attention.sum(-1)[chosen], total[chosen], rtol=1e-12, atol=1e-14)
        assert not attention.masked_select(~columns[:, None, None]).any()

    assert {m: len(maps) for m, maps in output.predictive_attention.items()} == dict.fromkeys(WIDTHS, 2)
    for m, maps in output.predictive_attention.items():
        for attention in maps:
            check(attention, real[m], real[m])
    assert len(output.cross_modal_attention) == 2
    for layer in output.cross_modal_attention:
        assert len(layer) == 3 + 3 + 6
        for (_, source, target), attention in layer.items():
            sources = {"all": list(WIDTHS), "others": [m for m in WIDTHS if m != target]}.get(source, [source])
            check(attention, real[target], torch.cat([real[s] for s in sources], 1))
    assert len(output.modality_weights) == 2
    for psi in output.modality_weights:
        torch.testing.assert_close(psi.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
        assert [[w > 0 for w in row] for row in psi.tolist()] == [[n[b] > 0 for n in LENGTHS.values()] for b in range(4)]
    assert set(output.transfer) == set(output.graph.edge_types)
    plain = model(x, MASK)
    torch.testing.assert_close(plain.prediction, output.prediction, rtol=1e-12, atol=1e-14)
    assert (plain.predictive_attention, plain.cross_modal_attention, plain.transfer) == ({}, [], {})


def count_parameters(widths: dict[str, int], kernels: dict[str, int], heads: int, out: int, d: int = 40, d_h: int = 64) -> int:
    """The size of the model of Table I by section of the paper: M = 3, N = 2."""
    modalities = len(widths)
    feed_forward = 2 * d + (d * 4 * d + 4 * d) + (4 * d * d + d)
    attention = 4 * (d * d + d) + feed_forward  # Q, K, V, output projection
    extractors = sum(
        w * k * d + d + 2 * (4 * (d // 2) * (d + d // 2) + 2 * 4 * (d // 2)) for w, k in ((w, kernels[m]) for m, w in widths.items())
    )
    predictive = 3 * (attention + 2 * d) + 2 * (heads * heads * 9 + heads)
    weighted = 3 * (d * d + d + d)
    units = 2 * (modalities + modalities + modalities * (modalities - 1)) * (attention + 4 * d)
    encoders = (modalities + 1) * (d * d_h + d_h + d_h * d_h + d_h)
    discriminators = d_h * modalities + (d_h * d_h + d_h) + (d_h * modalities + modalities)
    graphs = 2 * (d_h * d_h + 2 * d_h + 1)
    head = 2 * d_h * d_h + d_h + d_h * out + out
    return extractors + modalities * (predictive + weighted) + units + encoders + discriminators + graphs + head


@pytest.mark.parametrize(
    ("widths", "kernels", "heads", "mu", "out"),
    [
        pytest.param({"text": 300, "audio": 5, "vision": 20}, {"text": 3, "audio": 3, "vision": 3}, 8, 0.25, 1, id="MOSI"),
        pytest.param({"text": 300, "audio": 74, "vision": 35}, {"text": 3, "audio": 3, "vision": 3}, 10, 0.15, 1, id="MOSEI"),
        pytest.param({"text": 300, "audio": 74, "vision": 35}, {"text": 3, "audio": 5, "vision": 3}, 8, 0.2, 4, id="IEMOCAP"),
    ],
)
def test_sizes_of_table_1(widths: dict[str, int], kernels: dict[str, int], heads: int, mu: float, out: int) -> None:
    model = MEA.published(widths, out, heads=heads, exclusive={"mu": mu}, extractor={"kernel_size": kernels})
    assert sum(p.numel() for p in model.parameters()) == count_parameters(widths, kernels, heads, out)
    output = model({m: torch.randn(2, 4, w) for m, w in widths.items()}, return_attention_weights=True)
    assert output.prediction.shape == (2, out)
    assert output.exclusive["text"].shape == output.agnostic["audio"].shape == (2, 64)
    assert [a.size(1) for a in output.predictive_attention["vision"]] == [heads] * 3
    assert len(output.cross_modal_attention) == 2
    assert {layer.mu for m in widths for layer in model.exclusive.attention.attention[m]} == {mu}


def test_one_step_on_two_samples_of_five_modalities() -> None:
    widths = {f"sensor{i}": i + 1 for i in range(5)}
    model, x = MEA.published(widths, 1, **SMALL), {m: torch.randn(2, 3 + w, w) for m, w in widths.items()}
    target, loss = torch.tensor([1.0, -1.0]), MEALoss()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = loss(model(x), target).total
    before.backward()
    optimiser.step()
    assert loss(model(x), target).total < before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": {"text": 5}}, r"modalities: expected at least 2 .*got \('text',\); agnostic=None, discriminator=None make"),
        ({"in_channels": [5, 2]}, r"in_channels: expected a dict of the width of each modality by its name, got \[5, 2\]"),
        ({"in_channels": {"a.b": 5, "c": 2}}, "modalities: expected names that can name a submodule.*got 'a.b'"),
        ({"exclusive": None, "agnostic": None}, "exclusive, agnostic: expected at least one of them, got None twice"),
        ({"fusion": "tensor"}, "fusion: expected options, a module or one of concatenation, addition, multiplication, got 'tensor'"),
        (
            {"extractor": {"kernel_size": {"text": 3, "audio": 3}}},
            r"extractor.kernel_size: expected the modalities .*got \['text', 'audio'\]",
        ),
        ({"extractor": {"stride": {"text": 1, "audio": 1, "vision": 1, "gaze": 1}}}, "extractor.stride: expected the modalities .*'gaze'"),
        ({"channels": 9, "heads": 3}, "channels: expected an even number, half for each LSTM direction, got 9"),
        ({"heads": 3}, "heads: expected a divisor of channels = 8, got 3"),
        ({"exclusive": {"mu": 2.0}}, r"mu: expected a number in \[0, 1\], got 2.0"),
        ({"exclusive": {"num_layers": -1}}, "num_layers: expected at least 1, got -1"),
        ({"agnostic": {"mixed": False, "coarse": False, "fine": False}}, "mixed, coarse, fine: expected at least one stage, got none"),
        (
            {"exclusive": {"pooling": "last"}},
            "pooling: expected 'mean', 'segments', 'max', 'gru', a torch_geometric.nn.Aggregation or the name of one, got 'last'",
        ),
        ({"discriminator": {"reversal": -1.0}}, "reversal: expected a finite number of at least 0, got -1.0"),
        ({"extractor": {"kernel_size": 3.0}}, "extractor.kernel_size: expected a number, or a dict of one by modality, got 3.0"),
        ({"extractor": {"stride": [1, 1, 1]}}, "extractor.stride: expected a number, or a dict of one by modality, got "),
        ({"out_channels": 0}, "out_channels: expected an integer of at least 1, got 0"),
        ({"hidden_channels": 0}, "hidden_channels: expected an integer of at least 1, got 0"),
        ({"in_channels": {"text": 5, "audio": 0}}, r"in_channels\['audio'\]: expected an integer of at least 1, got 0"),
        ({"agnostic": {"pooling": "segments", "segments": 0}}, "segments: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEA.published(**({"in_channels": WIDTHS, "out_channels": 1} | merged(SMALL, options)))


def test_bad_input_is_named(x: dict[str, Tensor]) -> None:
    model = make({}).double()
    with pytest.raises(ValueError, match=r"x: expected the modalities \['text', 'audio', 'vision'\], got \['text', 'sound', 'vision'\]"):
        model({"text": x["text"], "sound": x["audio"], "vision": x["vision"]}, MASK)
    with pytest.raises(ValueError, match=r"x_dict: expected the modalities .*got \['text'\]"):
        model({"text": x["text"][0]}, {"text": torch.zeros(4, dtype=torch.int64)}, 1)
    with pytest.raises(ValueError, match=r"audio: expected \(B, T, 3\), .*got \(4, 6, 5\)"):
        model(x | {"audio": torch.randn(4, 6, 5)}, MASK)
    with pytest.raises(ValueError, match=r"layout: expected the modalities \['text', 'audio', 'vision'\], got \['text'\]"):
        model(x, {"text": MASK["text"]})
    with pytest.raises(
        ValueError, match=r"x: expected the same number of samples in every modality, got {'text': 4, 'audio': 3, 'vision': 4}"
    ):
        model(x | {"audio": x["audio"][:3]})
    gap = MASK | {"vision": torch.tensor([[True] * 4, [True, False, True, True], [True] * 4, [True] * 4])}
    with pytest.raises(
        ValueError, match="vision: expected a mask that is True at real steps, which come before padding, got a gap in row 1"
    ):
        model(x, gap)
    with pytest.raises(ValueError, match=r"text: expected a bool mask \(4, 4\), .*got torch.bool \(4, 3\)"):
        model(x, MASK | {"text": MASK["text"][:, 1:]})


def test_steps_that_no_sample_has_cost_nothing_and_change_nothing(x):
    model = make({}).double()
    expected = model(x, MASK).prediction
    seen = []
    model.extractors["audio"].forward_lstm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].size(1)))
    wide = {m: torch.cat([v, v.new_full((4, 20, v.size(2)), torch.nan)], 1) for m, v in x.items()}
    mask = {m: torch.cat([v, v.new_zeros(4, 20)], 1) for m, v in MASK.items()}
    torch.testing.assert_close(model(wide, mask).prediction, expected)
    maps = model(wide, mask, return_attention_weights=True).predictive_attention["audio"]
    assert seen == [6, 6]  # the steps that the LSTM read
    assert maps[0].shape == (4, 2, 6, 6)


def test_a_hole_in_a_mask_is_still_refused(x):
    mask = MASK | {"audio": torch.ones(4, 6, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)}
    with pytest.raises(ValueError, match=r"audio: expected a mask that is True at real steps, .*got a gap in row 0"):
        make({}).double()(x, mask)


def test_a_modality_that_a_whole_batch_lacks_gives_its_parameters_zero_gradients(x):
    model = make({}).double()
    output = model(x, MASK | {"audio": torch.zeros(4, 6, dtype=torch.bool)})
    output.prediction.sum().backward()
    gradients = [p.grad for p in model.extractors["audio"].parameters()]
    assert all(g is not None and not g.any() for g in gradients)
