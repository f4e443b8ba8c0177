"""What several equation tests share: the usual formulas in plain numpy, and layers whose parameters are all different."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from mea_graph.ops.native import library


class Formulas:
    """Textbook formulas on float64 arrays; where a layer is given, its parameters are used."""

    @staticmethod
    def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
        y = x @ layer.weight.detach().numpy().T
        return y if layer.bias is None else y + layer.bias.detach().numpy()

    @staticmethod
    def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()

    @staticmethod
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    @staticmethod
    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    @classmethod
    def feed_forward(cls, x: np.ndarray, norm: nn.LayerNorm, expand: nn.Linear, contract: nn.Linear) -> np.ndarray:
        """FFN(LN(x)) + x, with a ReLU between."""
        return x + cls.linear(np.maximum(cls.linear(cls.layer_norm(x, norm), expand), 0), contract)


@pytest.fixture
def formulas() -> type[Formulas]:
    return Formulas


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Turns a module to float64 and makes every parameter random, the ones and zeros of norms included."""

    def randomise(module: nn.Module) -> nn.Module:
        module = module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.5)
        return module

    return randomise


@pytest.fixture(scope="module", params=["torch", "C++"])
def torch_and_native(request: pytest.FixtureRequest) -> Iterator[None]:
    """On torch alone, and on C++ where there is a compiler."""
    if request.param == "C++" and (reason := library.refuse()):
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEA_GRAPH_NATIVE", str(int(request.param == "C++")))
        yield
