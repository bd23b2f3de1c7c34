"""The Nouveau VAE: groups of spatial latents over several resolutions, and a guide that corrects the model on its way down."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.conditionals import Conditional
from pyrovae.distributions import residual_normal
from pyrovae.errors import OptionError, ShapeError
from pyrovae.families import Family
from pyrovae.nets.cells import BottomUp, Conv, EncoderCell, GenerativeCell, Planes, ToImage, Upsample, halvings
from pyrovae.priors import StandardNormal


class Group(nn.Module):
    """The parts about one group of latents, z: (*batch, C_z, H, W), among features h: (*batch, C, H, W).

    `latent_shape`: (C_z, H, W); `top`: whether there is nothing above; `after`: what h goes through once z is added.
    """

    def __init__(self, channels: int, latent_shape: tuple[int, int, int], top: bool, after: nn.Module) -> None:
        super().__init__()
        self.standard = StandardNormal(latent_shape)
        self.of_h = None if top else Planes(channels, (2, *latent_shape), kernel=1)
        self.beside, self.of_both = Conv(channels, channels, 1), Planes(channels, (2, *latent_shape))
        self.of_z, self.after = Conv(latent_shape[0], channels, 1), after

    def prior(self, h: Tensor) -> TorchDistributionMixin:
        """p(z | all above) = N(z; m(h), diag(s(h)^2)), s between e^-5 and e^5; N(z; 0, I) at the top."""
        standard: TorchDistributionMixin = self.standard()
        return standard if self.of_h is None else residual_normal(standard, *self.of_h(h).unbind(-4))

    def deltas(self, h: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """How q(z | x, all above) differs from the prior, location and log-scale, by what was seen of x on the way up."""
        deltas: Tensor = self.of_both(seen + self.beside(h))
        return deltas.unbind(-4)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """The features below z."""
        below: Tensor = self.after(h + self.of_z(z))
        return below


class NVAE(nn.Module):
    """p(z1_1) p(z1_2|z1_1) ... p(zS_G|all above) p(x|z), guide q(z1_1|x) q(z1_2|x,z1_1) ...: both go down. x: (N, *event).

    z{s}_{g} is group g of scale s, coarsest first, (C_z, H_s, W_s). Going down, features h start as a learned constant, each
    group adds what it drew, and cells follow. p(z|h) is a diagonal Normal, N(0, I) at the top; the guide's is relative to it,
    `residual_normal`, by features of x from a bottom-up network. Model and guide draw in one order: train it with
    `Trace_ELBO(kl="analytic")`, a `kl_warmup`, and `penalties.spectral_norm` where it is deep.

    family: of x, an image (C, H, W) or (H, W), with parameters that end in (H, W). `channels`: of the features at each
    resolution, half the image's first, and half as much for each further one, rounding up. `groups`: how many each scale has,
    the coarsest first; a resolution finer than these has a cell only. `latent_channels`: C_z.
    `cells`: after each group. `expansion`: that of `GenerativeCell`s; 0 takes `EncoderCell`s, of two 3 x 3 convolutions, on
    the way down, too. `rescale`: the guide reads rescale * x; 1 / 255 for grey values.

    NVAE(fam.Bernoulli((28, 28)), channels=(32, 64), groups=(2, 4)) has two groups of 7 x 7 and four of 14 x 14.
    Raises ShapeError for a family that is not of images, OptionError. Vahdat & Kautz 2020, arXiv:2007.03898, without flows.
    """

    def __init__(
        self,
        family: Family,
        channels: Sequence[int] = (32, 64),
        groups: Sequence[int] = (2, 4),
        latent_channels: int = 4,
        cells: int = 1,
        expansion: int = 0,
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.family, self.channels, self.groups = family, tuple(channels), tuple(groups)
        self.latent_channels, self.cells, self.expansion, self.rescale = latent_channels, cells, expansion, rescale
        self._check()
        sizes = halvings((family.event_shape[-2], family.event_shape[-1]), len(self.channels))
        finer = len(self.channels) - len(self.groups)
        scales = list(zip(self.channels, sizes))[::-1]  # coarsest first
        self.bottom_up = BottomUp(family.event_shape, self.channels, (1,) * finer + self.groups[::-1], rescale)
        self.start = nn.Parameter(torch.randn(self.channels[-1], *sizes[-1]))
        self.parts: Any = nn.ModuleDict()  # by site
        for s, (num, (width, size)) in enumerate(zip(self.groups, scales), 1):
            for g in range(1, num + 1):
                after = nn.Sequential(*(self._cell(width) for _ in range(cells)))
                if g == num and s < len(self.groups):
                    after.append(Upsample(width, *scales[s]))
                self.parts[f"z{s}_{g}"] = Group(width, (latent_channels, *size), top=s == g == 1, after=after)
        net = nn.Sequential()
        for (width, _), (finer_width, size) in zip(scales[len(self.groups) - 1 :], scales[len(self.groups) :]):
            net.extend([Upsample(width, finer_width, size), self._cell(finer_width)])
        net.append(ToImage(self.channels[0], family.param_shape))
        self.likelihood = Conditional(net, family)

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            h: Tensor = self.start
            for site, group in self.parts.items():
                z = pyro.sample(site, group.prior(h))  # (N, C_z, H, W)
                h = group(h, z)
            return pyro.sample("x", self.likelihood(h), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h: Tensor = self.start
            for (site, group), seen in zip(self.parts.items(), self.bottom_up(x)):
                z = pyro.sample(site, residual_normal(group.prior(h), *group.deltas(h, seen)))
                h = group(h, z)

    def _cell(self, channels: int) -> nn.Module:
        return GenerativeCell(channels, self.expansion) if self.expansion else EncoderCell(channels)

    def _check(self) -> None:
        event, params = tuple(self.family.event_shape), tuple(self.family.param_shape)
        if len(event) not in (2, 3) or params[-2:] != event[-2:]:
            raise ShapeError(
                f"NVAE needs a family of images, such as Bernoulli((28, 28)) or Bernoulli((1, 28, 28)), got {self.family}. "
                "Give the family an image's shape, or use a VAE."
            )
        whole = {"channels": self.channels, "groups": self.groups}
        for name, numbers in {**whole, "latent_channels": (self.latent_channels,), "cells": (self.cells,)}.items():
            if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
                raise OptionError(f"NVAE needs {name} of at least 1, whole numbers, got {getattr(self, name)!r}.")
        if len(self.groups) > len(self.channels):
            raise OptionError(
                f"NVAE needs a number of channels for each of its {len(self.groups)} scales, the finest first, got "
                f"channels={self.channels} and groups={self.groups}. Name more channels, or fewer scales."
            )
        if not isinstance(self.expansion, int) or self.expansion < 0 or not self.rescale > 0:
            raise OptionError(
                f"NVAE needs an expansion of at least 0, a whole number, and rescale > 0, got expansion={self.expansion!r}, "
                f"rescale={self.rescale!r}."
            )
