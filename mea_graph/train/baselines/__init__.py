"""What MEA has to beat: a constant, single modalities, and fusion by GRUs, Transformers and shared and private encoders."""

from mea_graph.train.baselines.concatenation_transformer import ConcatenationTransformer, ConcatenationTransformerModule
from mea_graph.train.baselines.constant import constant_prediction
from mea_graph.train.baselines.early_fusion_gru import EarlyFusionGRU, EarlyFusionGRUModule
from mea_graph.train.baselines.late_fusion_gru import LateFusionGRU, LateFusionGRUModule
from mea_graph.train.baselines.pairwise_transformer import PairwiseTransformer, PairwiseTransformerModule
from mea_graph.train.baselines.shared_private_encoders import SharedPrivateEncoders, SharedPrivateEncodersModule, SharedPrivateOutput

__all__ = [
    "ConcatenationTransformer",
    "ConcatenationTransformerModule",
    "EarlyFusionGRU",
    "EarlyFusionGRUModule",
    "LateFusionGRU",
    "LateFusionGRUModule",
    "PairwiseTransformer",
    "PairwiseTransformerModule",
    "SharedPrivateEncoders",
    "SharedPrivateEncodersModule",
    "SharedPrivateOutput",
    "constant_prediction",
]
