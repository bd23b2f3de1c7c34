"""Neural networks: tensors in, tensors out. Nothing here knows of probability or Pyro."""

from pyrovae.nets.cells import EncoderCell, GenerativeCell
from pyrovae.nets.codes import Column, OneHot, Thermometer
from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.dropout import ReLUDropout
from pyrovae.nets.masking import MaskChannel, SelfMasking
from pyrovae.nets.mlp import MLP, Activated, Behind, LayerNormed, Log1p, Rescaled, Swapped, WithMask, one_hot
from pyrovae.nets.residual import ResidualMLP, ResNetDecoder, ResNetEncoder, Skip
from pyrovae.nets.sizes import SizeFactor, SizeFromTotal

__all__ = [
    "MLP",
    "Activated",
    "Behind",
    "Column",
    "ConvDecoder",
    "ConvEncoder",
    "EncoderCell",
    "GenerativeCell",
    "LayerNormed",
    "Log1p",
    "MaskChannel",
    "OneHot",
    "ReLUDropout",
    "ResNetDecoder",
    "ResNetEncoder",
    "Rescaled",
    "ResidualMLP",
    "SelfMasking",
    "SizeFactor",
    "SizeFromTotal",
    "Skip",
    "Swapped",
    "Thermometer",
    "WithMask",
    "one_hot",
]
