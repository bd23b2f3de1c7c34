"""The spatial VAE: what an image shows, apart from how it is turned, shifted and sized."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class SpatialVAE(nn.Module):
    """Spatial VAE: model `p(pose) p(z) p(x|z,pose)`, guide `q(pose|x) q(z|x,pose)`.

    The data are images x, `(N, *event)`. z says what an image shows, whichever way up it is; the pose, `(N, P)`, says how it
    was turned and shifted. `nets.Posed` makes a likelihood of any decoder, and `nets.Upright` an encoder of z that sees images
    as they were before. Grey values may be standardised by one mean and scale for all pixels, but not pixel by pixel.

    Args:
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        pose_prior: `p(pose)`, likewise, such as `priors.StandardNormal(pose.size)`.
        likelihood: `p(x|z,pose)`, a conditional called as `likelihood(z, pose)`.
        pose_encoder: `q(pose|x)`, a conditional called as `pose_encoder(x)`.
        encoder: `q(z|x,pose)`, a conditional called as `encoder(x, pose)`.

    Raises:
        PairError: A prior is neither a distribution nor a module.

    References:
        Bepler et al. 2019, arXiv:1909.11663; Detlefsen and Hauberg 2019, arXiv:1906.11881.

    Example:
        >>> pose, pixels, latent = pv.nets.Pose((8, 8), rotation=1.0, shift=0.2), fam.Bernoulli(64), fam.Normal(2)
        >>> draw, look = pv.nets.MLP(2, pixels.param_shape), pv.nets.MLP(64, latent.param_shape)
        >>> pair = pv.SpatialVAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     pose_prior=pv.priors.StandardNormal(pose.size),
        ...     likelihood=pv.Conditional(pv.nets.Posed(draw, pose), pixels),
        ...     pose_encoder=pv.mlp(64, fam.Normal(pose.size)),
        ...     encoder=pv.Conditional(pv.nets.Upright(look, pose, in_shape=64), latent),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 64), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pose.moves(pv.encode(fitted, x, site="pose")).angle.shape
        torch.Size([40])
    """

    def __init__(
        self,
        prior: nn.Module | Distribution,
        pose_prior: nn.Module | Distribution,
        likelihood: nn.Module,
        pose_encoder: nn.Module,
        encoder: nn.Module,
    ) -> None:
        super().__init__()
        self.prior, self.pose_prior = as_prior(prior), as_prior(pose_prior)
        self.likelihood, self.pose_encoder, self.encoder = likelihood, pose_encoder, encoder

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            pose = pyro.sample("pose", self.pose_prior())
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, pose), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            pose = pyro.sample("pose", self.pose_encoder(x))
            return pyro.sample("z", self.encoder(x, pose))
