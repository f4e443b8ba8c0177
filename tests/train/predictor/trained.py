"""Small trained models, and what Lightning's own loop predicts with them."""

import lightning as L
import numpy as np
import torch

from mea_graph import baselines
from mea_graph.train import MEAModule

SMALL = {"channels": 8, "heads": 2, "hidden_channels": 6}
MODULES = {MEAModule: SMALL, baselines.LateFusionGRUModule: {"hidden_channels": 4}}
MODULES |= {baselines.EarlyFusionGRUModule: {"hidden_channels": 4}, baselines.SharedPrivateEncodersModule: {"hidden_channels": 4}}
MODULES |= {
    module: {"channels": 8, "heads": 2} for module in (baselines.ConcatenationTransformerModule, baselines.PairwiseTransformerModule)
}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def trained(data, module=MEAModule, path="run/checkpoints/best.ckpt", **options):
    """Trains a little and leaves a checkpoint; returns the trainer."""
    torch.manual_seed(0)
    sizes = {"in_channels": data.in_channels, "task": data.task, "out_channels": data.out_channels}
    model = module(**sizes, **{**MODULES[module], **options})
    trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
    trainer.fit(model, data, weights_only=True)
    trainer.save_checkpoint(path)
    return trainer


def of_lightning(trainer, data, part="all"):
    """What Lightning's own loop predicts, by id: the numbers behind `test`."""
    data.predict_split = part
    found = {}
    for batch in trainer.predict(trainer.model, data):
        found |= dict(zip(batch["id"], batch["prediction"].numpy(), strict=True))
    return found


def assert_same(found, expected):
    assert found.ids
    np.testing.assert_allclose(found.output, np.stack([expected[name] for name in found.ids]), rtol=1e-5, atol=1e-6)
