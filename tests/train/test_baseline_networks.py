"""What all models that a table compares have in common."""

import lightning as L
import pytest
import torch

from mea_graph.baselines import (
    ConcatenationTransformer,
    ConcatenationTransformerModule,
    EarlyFusionGRU,
    EarlyFusionGRUModule,
    LateFusionGRU,
    LateFusionGRUModule,
    PairwiseTransformer,
    PairwiseTransformerModule,
    SharedPrivateEncoders,
    SharedPrivateEncodersModule,
)
from mea_graph.train import SequenceDataModule
from mea_graph.train.task_module import prediction_of

WIDTHS = {"audio": 4, "lips": 3, "pulse": 2}
LENGTHS = {"audio": [5, 0, 2, 9, 0], "lips": [0, 3, 1, 4, 0], "pulse": [7, 2, 0, 1, 0]}  # the last sample has nothing
NETWORKS = {
    "late": (LateFusionGRU, {"hidden_channels": 6}),
    "early": (EarlyFusionGRU, {"hidden_channels": 6}),
    "concatenation": (ConcatenationTransformer, {"channels": 8, "heads": 2, "hidden_channels": 6}),
    "late, strided": (LateFusionGRU, {"hidden_channels": 6, "stride": {"audio": 2, "lips": 1, "pulse": 3}}),
    "early, strided": (EarlyFusionGRU, {"hidden_channels": 6, "stride": {"audio": 2, "lips": 1, "pulse": 3}}),
    "shared, strided": (SharedPrivateEncoders, {"hidden_channels": 6, "stride": 2}),
    "concatenation, strided": (
        ConcatenationTransformer,
        {"channels": 8, "heads": 2, "kernel_size": 5, "stride": {"audio": 2, "lips": 1, "pulse": 3}, "pooling": "segments"},
    ),
    "pairwise": (PairwiseTransformer, {"channels": 8, "heads": 2, "hidden_channels": 6, "num_layers": 2}),
    "shared": (SharedPrivateEncoders, {"hidden_channels": 6}),
}
MODULES = {
    LateFusionGRUModule: {"hidden_channels": 6},
    EarlyFusionGRUModule: {"hidden_channels": 6},
    ConcatenationTransformerModule: {"channels": 8, "heads": 2},
    PairwiseTransformerModule: {"channels": 8, "heads": 2},
    SharedPrivateEncodersModule: {"hidden_channels": 6},
}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_module = pytest.mark.parametrize("module", MODULES)


def make(name):
    torch.manual_seed(0)
    network, options = NETWORKS[name]
    return network(WIDTHS, 2, **options).double()


def batch_of(lengths):
    generator = torch.Generator().manual_seed(1)
    count = len(next(iter(lengths.values())))
    x = {m: torch.randn(sum(n), WIDTHS[m], generator=generator, dtype=torch.float64) for m, n in lengths.items()}
    return x, {m: torch.repeat_interleave(torch.arange(count), torch.tensor(n)) for m, n in lengths.items()}, count


@every_network
def test_a_sample_in_a_batch_is_predicted_as_alone(name):
    model = make(name)
    x, batch, count = batch_of(LENGTHS)
    together = prediction_of(model(x, batch, batch_size=count))
    assert len({tuple(row.tolist()) for row in together}) == count  # so that equality below means something
    for sample in range(count):
        own = {m: value[batch[m] == sample] for m, value in x.items()}
        alone = model(own, {m: torch.zeros(len(value), dtype=torch.long) for m, value in own.items()}, batch_size=1)
        torch.testing.assert_close(together[sample], prediction_of(alone)[0])


@every_network
def test_every_modality_counts_and_every_parameter_learns(name):
    model = make(name)
    x, batch, count = batch_of({m: [3, 4, 2] for m in WIDTHS})
    x = {m: value.requires_grad_() for m, value in x.items()}
    output = model(x, batch, batch_size=count)
    (prediction_of(output).square().sum() + (output.rebuilt.sum() if name.startswith("shared") else 0)).backward()
    for m, value in x.items():
        assert (value.grad.abs().sum(1) > 0).all(), m
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("decoders" not in n for n in idle)
    assert not [n for n in idle if "norm_source" not in n and "bias" not in n], idle


@every_network
def test_batches_in_which_a_modality_or_all_of_them_are_missing(name):
    model = make(name)
    x, batch, count = batch_of({**LENGTHS, "lips": [0] * 5})
    prediction = prediction_of(model(x, batch, batch_size=count))
    prediction.sum().backward()
    assert prediction.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    nothing, where, _ = batch_of({m: [0, 0] for m in WIDTHS})
    assert prediction_of(model(nothing, where, batch_size=2)).isfinite().all()


@every_network
def test_reset_parameters_draws_every_matrix_anew(name):
    model = make(name)
    before = {n: p.clone() for n, p in model.named_parameters() if p.dim() > 1}
    model.reset_parameters()
    assert not [n for n, old in before.items() if torch.equal(old, dict(model.named_parameters())[n])]


@every_module
def test_it_trains_and_its_checkpoint_opens_safely(module, classes_source, tmp_path):
    data = SequenceDataModule(**classes_source, batch_size=8)
    shared = {"in_channels": data.in_channels, "task": data.task, "out_channels": data.out_channels}
    L.seed_everything(0, verbose=False)
    model = module(**shared, **MODULES[module], learning_rate=5e-3, label_smoothing=0.1, augmentation={"modality_dropout": 0.2})
    trainer = L.Trainer(
        max_epochs=8, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path
    )
    trainer.fit(model, data, weights_only=True)
    assert float(trainer.callback_metrics["valid/accuracy"]) > 0.8  # chance is one half
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = module.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.loss.label_smoothing == 0.1
    for old, new in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(old.cpu(), new.cpu())


@pytest.mark.parametrize("module", [m for m in MODULES if m is not LateFusionGRUModule])
def test_an_unknown_option_is_named(module):
    with pytest.raises(TypeError, match=f"{module.__name__}: unknown option colour"):
        module(WIDTHS, "regression", 1, colour="red")
