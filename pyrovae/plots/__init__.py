"""Plots of latent spaces, images and training curves: numpy or torch arrays in, matplotlib axes out.

Each function draws on the axes that it is given as `ax`, or makes a figure if `ax` is None, and returns the axes:
`ax.figure` is the figure, and `save` writes it to a file. None of them uses pyplot, so there is no global state and no
display is needed.
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
