"""Layers, losses and the model, each a standalone module on rows `(N, d)` with `ptr`, or on `(B, T, d)` with a mask."""

from mea_graph.nn.attention.feed_forward import FeedForward
from mea_graph.nn.attention.hierarchical_cross_modal_attention import (
    CrossModalEncoder,
    CrossModalEncoderOutput,
    CrossModalOutput,
    HierarchicalCrossModalAttention,
)
from mea_graph.nn.attention.modality_reinforcement_unit import ModalityReinforcementUnit
from mea_graph.nn.attention.predictive_encoder import PredictiveEncoder, PredictiveEncoderOutput
from mea_graph.nn.attention.predictive_self_attention import PredictiveSelfAttention, Prior
from mea_graph.nn.attention.weighted_attention import WeightedAttention
from mea_graph.nn.branches import AgnosticBranch, AgnosticOutput, ExclusiveBranch, ExclusiveOutput
from mea_graph.nn.dense_sequences import dense_sequences
from mea_graph.nn.graph.combination import Combination
from mea_graph.nn.graph.decoupled_graph_fusion import DecoupledGraphFusion, FusedRepresentations
from mea_graph.nn.graph.fusion_graph import FusionGraph, fusion_graph
from mea_graph.nn.graph.graph_fusion_conv import GraphFusionConv
from mea_graph.nn.mea import MEA, MEAOutput
from mea_graph.nn.objective.double_discriminator import Discrimination, DoubleDiscriminator
from mea_graph.nn.objective.gradient_reversal import GradientReversal
from mea_graph.nn.objective.losses import agnostic_adversarial, exclusive_adversarial, hsic, modality_confusion, orthogonality
from mea_graph.nn.objective.mea_loss import LossTerms, MEALoss
from mea_graph.nn.objective.modality_centering import ModalityCentering
from mea_graph.nn.onnx_export import export_onnx, onnx_translations
from mea_graph.nn.prediction_head import PredictionHead
from mea_graph.nn.sequence_encoder import AgnosticEncoder, ExclusiveEncoder
from mea_graph.nn.unimodal_extractor import UnimodalExtractor

__all__ = [
    "MEA",
    "AgnosticBranch",
    "AgnosticEncoder",
    "AgnosticOutput",
    "Combination",
    "CrossModalEncoder",
    "CrossModalEncoderOutput",
    "CrossModalOutput",
    "DecoupledGraphFusion",
    "Discrimination",
    "DoubleDiscriminator",
    "ExclusiveBranch",
    "ExclusiveEncoder",
    "ExclusiveOutput",
    "FeedForward",
    "FusedRepresentations",
    "FusionGraph",
    "GradientReversal",
    "GraphFusionConv",
    "HierarchicalCrossModalAttention",
    "LossTerms",
    "MEALoss",
    "MEAOutput",
    "ModalityCentering",
    "ModalityReinforcementUnit",
    "PredictionHead",
    "PredictiveEncoder",
    "PredictiveEncoderOutput",
    "PredictiveSelfAttention",
    "Prior",
    "UnimodalExtractor",
    "WeightedAttention",
    "agnostic_adversarial",
    "dense_sequences",
    "exclusive_adversarial",
    "export_onnx",
    "fusion_graph",
    "hsic",
    "modality_confusion",
    "onnx_translations",
    "orthogonality",
]
