"""What `MEA` is put together from: the class of each part, and how options become one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mea_graph.nn.branches import AgnosticBranch, ExclusiveBranch
from mea_graph.nn.graph.decoupled_graph_fusion import DecoupledGraphFusion
from mea_graph.nn.model_options import RECOMMENDED
from mea_graph.nn.objective.double_discriminator import DoubleDiscriminator
from mea_graph.nn.prediction_head import PredictionHead
from mea_graph.nn.unimodal_extractor import UnimodalExtractor
from mea_graph.option_types import check_types, plain_value
from mea_graph.suggestions import did_you_mean

Part = Mapping[str, Any] | nn.Module | None

PARTS: dict[str, Callable[..., nn.Module]] = {
    "extractor": UnimodalExtractor,
    "exclusive": ExclusiveBranch,
    "agnostic": AgnosticBranch,
    "discriminator": DoubleDiscriminator,
    "fusion": DecoupledGraphFusion,
    "head": PredictionHead,
}


def make_part(
    name: str, given: Part, decided: Mapping[str, Any], common: Mapping[str, Any], more: tuple[str, ...] = ()
) -> nn.Module | None:
    """Returns the caller's own module, or one of class `kind` with the recommended options and those given."""
    kind = PARTS[name]
    if given is None or isinstance(given, nn.Module):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a dict of options of {kind.__name__}, a module or None, got {given!r}")
    known = [option for option in inspect.signature(kind).parameters if option not in decided]
    for option in given:
        if option not in known:
            raise TypeError(
                f"{name}: expected options of {kind.__name__}, {', '.join([*known, *more])}, got {option!r}{did_you_mean(option, known)}"
            )
    given = {option: plain_value(value) for option, value in given.items()}
    check_types(given, kind, prefix=f"{name}.")
    return kind(**decided, **(dict(common) | RECOMMENDED[name] | dict(given)))


def check_needed(**parts: Any) -> None:
    """Refuses None in place of a part that no model goes without."""
    for name, part in parts.items():
        if part is None:
            raise TypeError(f"{name}: expected options or a module, since no model goes without, got None")


def fusion_options(options: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Returns `self_loops`, which is MEA's own, and the options of the layer; refuses those that only a layer by itself may have."""
    options = plain_value(dict(options))
    if options.get("aggr", "sum") is None:
        raise ValueError("fusion.aggr: expected a readout, since the head reads one vector a sample, got None")
    if not isinstance(options.get("self_loops", False), bool):
        raise TypeError(f"fusion.self_loops: expected bool, got {options['self_loops']!r}")
    return options.get("self_loops", False), {name: value for name, value in options.items() if name != "self_loops"}
