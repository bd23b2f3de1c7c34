"""The Nouveau VAE: groups of spatial latent variables at several resolutions, and a guide relative to the model's priors."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import MOST, MOST_LAYERS, as_count, as_number, as_widths
from pyrovae.conditionals import Conditional
from pyrovae.distributions import residual_normal
from pyrovae.errors import OptionError, ShapeError
from pyrovae.families import Family
from pyrovae.families.base import as_family
from pyrovae.nets.cells import BottomUp, Conv, EncoderCell, GenerativeCell, Planes, ToImage, Upsample, halvings
from pyrovae.priors import StandardNormal


class Group(nn.Module):
    """The layers around one group of latent variables, z `(*batch, C_z, H, W)`, within features h `(*batch, C, H, W)`.

    Args:
        channels: Channels C of the features.
        latent_shape: Shape of z, `(C_z, H, W)`.
        top: Whether this is the first group, whose prior is `N(0, I)`.
        after: Applied to the features once z has been added to them.
    """

    def __init__(self, channels: int, latent_shape: tuple[int, int, int], top: bool, after: nn.Module) -> None:
        super().__init__()
        self.standard = StandardNormal(latent_shape)
        self.of_h = None if top else Planes(channels, (2, *latent_shape), kernel=1)
        self.beside, self.of_both = Conv(channels, channels, 1), Planes(channels, (2, *latent_shape))
        self.of_z, self.after = Conv(latent_shape[0], channels, 1), after

    def prior(self, h: Tensor) -> TorchDistributionMixin:
        """`p(z | groups above) = N(z; m(h), diag(s(h)^2))` with s between `e^-5` and `e^5`, or `N(z; 0, I)` at the top."""
        standard: TorchDistributionMixin = self.standard()
        return standard if self.of_h is None else residual_normal(standard, *self.of_h(h).unbind(-4))

    def deltas(self, h: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """Differences in location and log-scale between `q(z | x, groups above)` and the prior, from bottom-up features."""
        deltas: Tensor = self.of_both(seen + self.beside(h))
        return deltas.unbind(-4)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """The features below this group."""
        below: Tensor = self.after(h + self.of_z(z))
        return below


class NVAE(nn.Module):
    """Nouveau VAE for images: model `p(z1_1) p(z1_2|z1_1) ... p(x|z)`, guide `q(z1_1|x) q(z1_2|x,z1_1) ...`.

    The data are images x, `(N, *event)`. The site `z{s}_{g}` is group g of scale s, coarsest scale first, of event shape
    `(C_z, H_s, W_s)`. In the model, features h start as a learned constant; each group adds its draw to them, and residual
    cells follow. `p(z|h)` is a diagonal Normal, `N(0, I)` for the first group, and the guide's is expressed relative to it
    (`distributions.residual_normal`) from features that a bottom-up network computes from x. Model and guide draw in the
    same order: train with `Trace_ELBO(kl="analytic")` and `schedules.kl_warmup`, and deep models with
    `penalties.spectral_norm` as well.

    Args:
        family: The family of x, whose event is `(C, H, W)` or `(H, W)` and whose parameters end in `(H, W)`.
        channels: Channels of the features at each resolution, finest first: half the size of the image, a quarter, and so
            on, rounded up; an int for one.
        groups: Number of groups of latent variables at each scale, coarsest first, an int for one. Resolutions finer than
            these have a single cell and no latent variables.
        latent_channels: Channels C_z of each group.
        cells: Cells after each group.
        expansion: Expansion factor of the cells on the way down, `nets.cells.GenerativeCell`; 0 uses `EncoderCell`, of two
            3 x 3 convolutions, instead.
        rescale: Factor of x at the input of the bottom-up network, such as 1 / 255 for grey values.

    Raises:
        ShapeError: The event of `family` is not an image.
        OptionError: A number is out of range, or there are more scales than resolutions.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898; here without flows, and with group in place of batch normalisation.

    Example:
        >>> nvae = pv.NVAE(fam.Bernoulli((8, 8)), channels=(4, 8), groups=(2, 1), latent_channels=2)
        >>> layout = pv.check_pair(nvae, torch.bernoulli(torch.full((5, 8, 8), 0.4)))
        >>> {site.name: site.event_shape for site in layout.sites}
        {'z1_1': (2, 2, 2), 'z1_2': (2, 2, 2), 'z2_1': (2, 4, 4), 'x': (8, 8)}
    """

    def __init__(
        self,
        family: Family,
        channels: int | Sequence[int] = (32, 64),
        groups: int | Sequence[int] = (2, 4),
        latent_channels: int = 4,
        cells: int = 1,
        expansion: int = 0,
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.family = as_family(family)
        self.channels = as_widths("channels of NVAE", channels, some=True, one="resolution, the finest first")
        self.groups = as_widths("groups of NVAE", groups, some=True, one="resolution, the coarsest first")
        self.latent_channels = latent_channels = as_count("latent_channels of NVAE", latent_channels, most=MOST)
        self.cells, self.expansion = (
            as_count("cells of NVAE", cells, most=MOST_LAYERS),
            as_count("expansion of NVAE", expansion, 0),
        )
        self.rescale = rescale = as_number("rescale of NVAE", rescale, above=0)
        self._check()
        sizes = halvings((family.event_shape[-2], family.event_shape[-1]), len(self.channels))
        finer = len(self.channels) - len(self.groups)
        scales = list(zip(self.channels, sizes))[::-1]  # coarsest first
        self.bottom_up = BottomUp(family.event_shape, self.channels, (1,) * finer + self.groups[::-1], rescale)
        self.start = nn.Parameter(torch.randn(self.channels[-1], *sizes[-1]))
        self.parts: Any = nn.ModuleDict()  # keyed by site name
        for s, (num, (width, size)) in enumerate(zip(self.groups, scales), 1):
            for g in range(1, num + 1):
                after = nn.Sequential(*(self._cell(width) for _ in range(self.cells)))
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
        """Raise ShapeError for a family that is not of images, and OptionError for more scales than resolutions."""
        event, params = tuple(self.family.event_shape), tuple(self.family.param_shape)
        if len(event) not in (2, 3) or params[-2:] != event[-2:]:
            raise ShapeError(
                f"NVAE needs a family of images, such as Bernoulli((28, 28)) or Bernoulli((1, 28, 28)), got {self.family}. "
                "Give the family an image's shape, or use a VAE."
            )
        if len(self.groups) > len(self.channels):
            raise OptionError(
                f"NVAE needs a number of channels for each of its {len(self.groups)} scales, the finest first, got "
                f"channels={self.channels} and groups={self.groups}. Give more channels, or fewer groups."
            )
