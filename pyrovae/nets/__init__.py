"""Networks: tensors in, tensors out. No probability and no Pyro in here."""

from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.mlp import MLP, Log1p, Rescaled, WithMask, one_hot

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "Log1p", "Rescaled", "WithMask", "one_hot"]
