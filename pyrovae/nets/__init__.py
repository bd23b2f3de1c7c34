"""Neural networks: tensors in, tensors out. Nothing here knows of probability or Pyro."""

from pyrovae.nets.causal import CausalTransformer
from pyrovae.nets.cells import EncoderCell, GenerativeCell
from pyrovae.nets.codebooks import VQ, ResidualVQ, SimVQ
from pyrovae.nets.codes import Column, OneHot, Thermometer
from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.dropout import ReLUDropout
from pyrovae.nets.gaps import is_seen, without_gaps
from pyrovae.nets.grids import GridDecoder, GridEncoder
from pyrovae.nets.heads import BatchNormedHead
from pyrovae.nets.masking import MaskChannel, RandomMask, SelfMasking
from pyrovae.nets.mlp import MLP, Activated, Behind, Flat, Log1p, Rescaled, Swapped, WithMask, one_hot
from pyrovae.nets.normalising import BatchNormed, LayerNormed
from pyrovae.nets.poses import Moves, Pose, Posed, Upright
from pyrovae.nets.quantisers import FSQ, Quantiser
from pyrovae.nets.residual import ResidualMLP, ResNetDecoder, ResNetEncoder, Skip
from pyrovae.nets.sequences import BackwardGRU, GatedStep, anything_from
from pyrovae.nets.sizes import SizeFactor, SizeFromTotal
from pyrovae.nets.words import Words

__all__ = [
    "FSQ",
    "MLP",
    "VQ",
    "Activated",
    "BackwardGRU",
    "BatchNormed",
    "BatchNormedHead",
    "Behind",
    "CausalTransformer",
    "Column",
    "ConvDecoder",
    "ConvEncoder",
    "EncoderCell",
    "Flat",
    "GatedStep",
    "GenerativeCell",
    "GridDecoder",
    "GridEncoder",
    "LayerNormed",
    "Log1p",
    "MaskChannel",
    "Moves",
    "OneHot",
    "Pose",
    "Posed",
    "Quantiser",
    "RandomMask",
    "ReLUDropout",
    "ResNetDecoder",
    "ResNetEncoder",
    "Rescaled",
    "ResidualMLP",
    "ResidualVQ",
    "SelfMasking",
    "SimVQ",
    "SizeFactor",
    "SizeFromTotal",
    "Skip",
    "Swapped",
    "Thermometer",
    "Upright",
    "WithMask",
    "Words",
    "anything_from",
    "is_seen",
    "one_hot",
    "without_gaps",
]
