"""Plots: arrays in (numpy or torch), matplotlib axes out.

No function touches pyplot: figures are objects of their own, so nothing is global and no display is needed. Each takes
`ax`, the axes to draw on, and makes a figure where it is None; `ax.figure` leads back to it, `save` writes it.
"""

from pyrovae.plots.curves import reliability, training_curve
from pyrovae.plots.mosaics import captioned, images, manifold, reconstructions
from pyrovae.plots.scatter import latent
from pyrovae.plots.style import PALETTE, STYLE, UNKNOWN, save

__all__ = [
    "PALETTE",
    "STYLE",
    "UNKNOWN",
    "captioned",
    "images",
    "latent",
    "manifold",
    "reconstructions",
    "reliability",
    "save",
    "training_curve",
]
