"""Networks: tensors in, tensors out. No probability and no Pyro in here."""

from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.mlp import MLP, Rescaled, one_hot

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "Rescaled", "one_hot"]
