"""Models that a user could train instead of MEA, each at its own default settings for MOSI unaligned.

The field's models are imported from the packages `MMSA` and `linmult`; `make baselines` installs them. No code of theirs is copied here.
MulT's class is loaded without the rest of MMSA: it needs torch and easydict, LinMulT torch and PyYAML. `absent()` names each model that
cannot be imported, with the reason. Nothing is downloaded: `StoredText` replaces MMSA's BERT by features of the same shape, so no model's
time includes a text encoder.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.samples import CHANNELS, Samples


class Baseline(NamedTuple):
    """A model and how it computes its training loss and its prediction from samples."""

    network: nn.Module
    loss: Callable[[], Tensor]
    predict: Callable[[], Tensor]


# How each reads a batch. "padded": always as long as the longest sequence of the data set, because the method knows no lengths.
NOTES = {
    "MulT": "MMSA's class with the settings of MulT's own repository (d 30, 5 heads, 5 layers); padded, no mask",
    "MulT, trimmed": "the same, but its user cuts each batch to its own longest sequences",
    "MMSA MULT": "d 50, 10 heads, 4 layers, convolution of width 5; padded, no mask",
    "MMSA TFR_NET": "padded, masks in the losses; stored features in place of BERT",
    "MMSA MISA": "reads as many audio and vision steps as the text has words; stored features in place of BERT",
    "MMSA SELF_MM": "packed LSTMs, so it knows true lengths; stored features in place of BERT",
    "LinMulT": "linear attention, d 40, 8 heads, 6 layers; padded, with masks where there is padding",
    "Transformer over the concatenation": "torch.nn.TransformerEncoder, d 40, 8 heads, 5 layers, key padding mask",
}
# Models that cannot be had; the report lists them with the reason.
NOT_PUBLISHED = {
    "MMSA ALMT": "not in MMSA 2.2.1, the newest release on PyPI",
    "LinMulT, flash form": "not in linmult 1.8.1, the newest release for Python 3.11",
    "GraphCAGE, DMD": "not compared here",
}


class StoredText(nn.Module):
    """Replaces MMSA's BERT: returns features of the same shape, (B, T, 768)."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        return self.features


PACKAGES = ("MMSA", "linmult")
ALONE = "mmsa_without_its_packages"  # MMSA's folder under a name of its own: who imports MMSA still gets the whole


def build(name: str, samples: Samples) -> Baseline:
    """The baseline, ready for `samples`; ImportError where its package is missing."""
    return _BUILDERS[name](samples)


def absent(names: Iterable[str] = tuple(NOTES)) -> dict[str, str]:
    """Those of the baselines that cannot run here, and why; no other's package is imported."""
    found = {}
    for name in names:
        package = "linmult" if name == "LinMulT" else "MMSA" if name.startswith(("MulT", "MMSA")) else "torch"
        try:
            with _silence():
                mmsa_module("models.singleTask.MULT") if name in _FROM_ONE_MODULE else importlib.import_module(package)
        except ImportError as error:
            found[name] = f"{package} is not installed here ({error}); `make baselines` installs it"
        except Exception as error:  # a package that does not go with another's version must not hide the other models
            found[name] = f"{package} cannot be imported here: {type(error).__name__}: {error}"
    return found | NOT_PUBLISHED


def available(names: Iterable[str] = tuple(NOTES)) -> list[str]:
    """Those of the baselines that can run here, in the order of `NOTES`."""
    asked = set(names)
    known = [name for name in NOTES if name in asked]
    missing = absent(known)
    return [name for name in known if name not in missing]


def mmsa_module(name: str) -> ModuleType:
    """A module of MMSA, without the `__init__.py` of the packages around it, which import what other models need: pandas, scikit-learn,
    transformers. Only modules that read no text by BERT can be had so."""
    if ALONE not in sys.modules:
        found = importlib.util.find_spec("MMSA")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'MMSA'", name="MMSA")
        root = Path(found.submodule_search_locations[0])
        for part in ("", ".models", ".models.singleTask", ".models.subNets"):
            package = ModuleType(ALONE + part)
            package.__path__ = [str(root.joinpath(*part.split(".")))]
            sys.modules[ALONE + part] = package
        package.BertTextEncoder = StoredText  # of subNets; who imports it builds none
    return importlib.import_module(f"{ALONE}.{name}")


def _silence() -> Any:
    return redirect_stdout(io.StringIO())  # MMSA prints a note when it is imported


def _inputs(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    return samples.padded["text"], samples.padded["audio"], samples.padded["vision"]


def _mmsa_settings(name: str, samples: Samples, **changes: Any) -> Any:
    settings = mmsa_module("config").get_config_regression(name, "mosi")
    settings.update(
        {
            "train_mode": "regression",
            "device": samples.y.device,
            "feature_dims": [CHANNELS["text"], CHANNELS["audio"], CHANNELS["vision"]],
            "seq_lens": [x.size(1) for x in _inputs(samples)],
            **changes,
        }
    )
    return settings


@contextmanager
def _stored_text(module: str, samples: Samples) -> Iterator[None]:
    """MMSA's BERT replaced while a model is built."""
    with _silence():
        importlib.import_module(module)
    with patch(f"{module}.BertTextEncoder", lambda *_, **__: StoredText(samples.padded["text"])):
        yield


def _bert_input(samples: Samples) -> Tensor:
    """What BERT would be given, (B, 3, T): token numbers, mask, segments."""
    mask = samples.mask["text"].to(samples.y.dtype)
    return torch.stack([torch.zeros_like(mask), mask, torch.zeros_like(mask)], 1)


def _mult(samples: Samples, **changes: Any) -> Baseline:
    settings = _mmsa_settings("mult", samples, **changes)
    network = mmsa_module("models.singleTask.MULT").MULT(settings).to(samples.y.device)
    predict = lambda: network(*_inputs(samples))["M"].squeeze(1)  # noqa: E731
    return Baseline(network, lambda: F.l1_loss(predict(), samples.y), predict)


_FROM_ONE_MODULE = ("MulT", "MulT, trimmed", "MMSA MULT")
# The settings of MulT's own repository; the class is the one that MMSA took from there.
_MULT_OWN = {
    "dst_feature_dim_nheads": [30, 5],
    "nlevels": 5,
    "conv1d_kernel_size_l": 1,
    "conv1d_kernel_size_a": 1,
    "conv1d_kernel_size_v": 1,
    "attn_dropout": 0.1,
    "attn_dropout_a": 0.0,
    "attn_dropout_v": 0.0,
    "relu_dropout": 0.1,
    "res_dropout": 0.1,
    "embed_dropout": 0.25,
    "output_dropout": 0.0,
    "text_dropout": 0.0,
}


def _tfr_net(samples: Samples) -> Baseline:
    settings = _mmsa_settings("tfr_net", samples)
    with _stored_text("MMSA.models.missingTask.TFR_NET.model", samples):
        from MMSA.models.missingTask.TFR_NET import TFR_NET

        network = TFR_NET(settings).to(samples.y.device)
    masks = {m: mask.to(samples.y.dtype) for m, mask in samples.mask.items()}
    generator = torch.Generator().manual_seed(6)
    kept = {m: mask * (torch.rand(mask.shape, generator=generator) >= 0.2).to(mask) for m, mask in masks.items()}  # its missing rate
    text = _bert_input(samples)
    streams = [(samples.padded[m], samples.padded[m] * kept[m].unsqueeze(-1), masks[m], kept[m]) for m in ("audio", "vision")]
    run = lambda: network((text, text, kept["text"]), *streams)  # noqa: E731

    def loss() -> Tensor:
        prediction, generated = run()
        return F.l1_loss(prediction.squeeze(1), samples.y) + generated.squeeze()

    return Baseline(network, loss, lambda: run()[0].squeeze(1))


def _misa(samples: Samples) -> Baseline:
    settings = _mmsa_settings("misa", samples)
    with _stored_text("MMSA.models.singleTask.MISA", samples):
        from MMSA.models import AMIO
        from MMSA.trains.singleTask.MISA import MISA as Trainer

        network = AMIO(settings).to(samples.y.device)
    trainer = Trainer(settings)
    trainer.model = network
    text, audio, vision = _bert_input(samples), samples.padded["audio"], samples.padded["vision"]
    predict = lambda: network(text, audio, vision)["M"].squeeze(1)  # noqa: E731

    def loss() -> Tensor:
        task = F.mse_loss(predict(), samples.y)
        weights = settings.diff_weight, settings.sim_weight, settings.recon_weight
        terms = trainer.get_diff_loss(), trainer.get_cmd_loss(), trainer.get_recon_loss()
        return task + sum(w * t for w, t in zip(weights, terms, strict=True))

    return Baseline(network, loss, predict)


def _self_mm(samples: Samples) -> Baseline:
    settings = _mmsa_settings("self_mm", samples)
    with _stored_text("MMSA.models.multiTask.SELF_MM", samples):
        from MMSA.models.multiTask import SELF_MM
        from MMSA.trains.multiTask import SELF_MM as Trainer

        network = SELF_MM(settings).to(samples.y.device)
    trainer = Trainer(settings)
    indexes = torch.arange(samples.size)
    trainer.init_labels(indexes, samples.y)
    text = _bert_input(samples)
    streams = [(samples.padded[m], torch.tensor(samples.lengths[m])) for m in ("audio", "vision")]

    def loss() -> Tensor:
        out = network(text, *streams)
        names = trainer.name_map
        total = sum(trainer.weighted_loss(out[m], trainer.label_map[names[m]][indexes], indexes, names[m]) for m in "MTAV")
        trainer.update_features(*(out[f"Feature_{m}"].detach() for m in "ftav"), indexes)
        trainer.update_centers()
        return total

    return Baseline(network, loss, lambda: network(text, *streams)["M"].squeeze(1))


def _linmult(samples: Samples) -> Baseline:
    from linmult import LinMulT

    network = LinMulT(
        {"input_feature_dim": list(CHANNELS.values()), "heads": [{"type": "simple", "output_dim": 1}], "time_dim_reducer": "attentionpool"}
    ).to(samples.y.device)
    masks = None if samples.padding_share == 0 else list(samples.mask.values())

    def predict() -> Tensor:
        out = network(list(_inputs(samples)), None if masks is None else list(masks))
        return next(iter(out.values())).squeeze(1)

    return Baseline(network, lambda: F.l1_loss(predict(), samples.y), predict)


class ConcatenationTransformer(nn.Module):
    """The plainest way to fuse sequences with what torch has: all steps of all modalities as one sequence."""

    def __init__(self, channels: dict[str, int], width: int = 40, heads: int = 8, layers: int = 5) -> None:
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(d, width) for m, d in channels.items()})
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, 1)

    def forward(self, x: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        real = torch.cat(list(mask.values()), 1)
        h = self.encoder(torch.cat([self.project[m](v) for m, v in x.items()], 1), src_key_padding_mask=~real)
        h = h.masked_fill(~real.unsqueeze(-1), 0).sum(1) / real.sum(1, keepdim=True)
        return self.head(h).squeeze(1)


def _transformer(samples: Samples) -> Baseline:
    network = ConcatenationTransformer(CHANNELS).to(samples.y.device)
    predict = lambda: network(samples.padded, samples.mask)  # noqa: E731
    return Baseline(network, lambda: F.l1_loss(predict(), samples.y), predict)


_BUILDERS: dict[str, Callable[[Samples], Baseline]] = {
    "MulT": lambda samples: _mult(samples, **_MULT_OWN),
    "MulT, trimmed": lambda samples: _mult(samples.trimmed(), **_MULT_OWN),
    "MMSA MULT": _mult,
    "MMSA TFR_NET": _tfr_net,
    "MMSA MISA": _misa,
    "MMSA SELF_MM": _self_mm,
    "LinMulT": _linmult,
    "Transformer over the concatenation": _transformer,
}
