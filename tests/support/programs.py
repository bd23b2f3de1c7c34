"""Pairs as users write them, one a way of writing: the rows of the contract table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import pyrovae as pv
import pyrovae.families as fam


class Row(NamedTuple):
    """A row of the table: how to build the pair, 40 rows of data for it, and what to ask of it."""

    build: Callable[[], Any]
    data: Callable[[], Any]
    latent: str | None  # a local latent site to encode, if there is one
    rebuilds: bool  # whether run.json alone brings the pair back
    observed: str | None = None  # the observed site that is drawn, where the pair has several


def binary(n: int = 40) -> Tensor:
    return torch.bernoulli(torch.full((n, 6), 0.4))


def reals(n: int = 40) -> Tensor:
    return torch.randn(n, 6)


def vae(family: fam.Family | None = None, prior: Any = None) -> pv.VAE:
    return pv.VAE(
        prior=prior or pv.priors.StandardNormal(2),
        likelihood=pv.mlp(2, family or fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
    )


class OwnPrior(nn.Module):
    """A prior as a user writes one: a module that returns a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self) -> Any:
        return dist.Laplace(self.loc, torch.ones_like(self.loc)).to_event(1)


def cvae(condition: nn.Module, code: int) -> pv.CVAE:
    return pv.CVAE(
        condition=condition,
        prior=pv.mlp(code, fam.Normal(2), hidden=(8,)),
        likelihood=pv.mlp((2, code), fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp((6, code), fam.Normal(2), hidden=(8,)),
    )


def bare_functions() -> pv.Pair:
    """Probabilistic PCA as two plain functions, every parameter a bare pyro.param."""

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.randn(2, 6))
        scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("guide_weight", lambda: 0.1 * torch.randn(6, 2))
        scale = pyro.param("guide_scale", lambda: torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))

    return pv.Pair(model, guide)


def registered_modules() -> pv.Pair:
    """Pyro's tutorial style: functions that register modules of the enclosing scope."""
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return pv.Pair(model, guide)


class Regression(PyroModule):
    """Bayesian linear regression, a PyroModule with PyroSample weights and a PyroParam noise: only global latents."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(torch.zeros(5), 1.0).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        # weight: (5,), or (K, 1, 5) with particles
        loc = (x * self.weight).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, self.noise), obs=y)


def regression_data() -> dict[str, Tensor]:
    x = torch.randn(40, 5)
    return {"x": x, "y": x @ torch.arange(5.0) + 0.1 * torch.randn(40)}


def regression(auto: Any) -> Callable[[], pv.Pair]:
    def build() -> pv.Pair:
        model = Regression()
        return pv.Pair(model, auto(model))

    return build


class PyroVAE(PyroModule):
    """Model and guide in one PyroModule, submodules as plain nn.Modules, one PyroParam."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), nn.Linear(6, 2)
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))


class Conditioned(nn.Module):
    """p(z) p(x | z, c), a conditional VAE in the house style."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(2)
        self.likelihood = pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,))
        self.encoder = pv.mlp((6, 3), fam.Normal(2), hidden=(8,))

    def model(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z, c), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x, c))


class Ladder(nn.Module):
    """p(z2) p(z1 | z2) p(x | z1), a hierarchy in the house style."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(2)
        self.z1_given_z2 = pv.mlp(2, fam.Normal(3), hidden=(8,))
        self.likelihood = pv.mlp(3, fam.Bernoulli(6), hidden=(8,))
        self.q2 = pv.mlp(6, fam.Normal(2), hidden=(8,))
        self.q1 = pv.mlp((6, 2), fam.Normal(3), hidden=(8,))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.z1_given_z2(z2))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.q2(x))
            pyro.sample("z1", self.q1(x, z2))


class Discrete(nn.Module):
    """A Bernoulli latent, trained by the score function."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = pv.mlp(3, fam.Bernoulli(6), hidden=(8,))
        self.encoder = pv.mlp(6, fam.Bernoulli(3), hidden=(8,))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


class GlobalAndLocal(nn.Module):
    """A Bayesian decoder bias b, global, beside a local z: p(b) prod p(z) p(x | z, b)."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_net = nn.Linear(2, 6, bias=False)
        self.encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))
        self.bias_loc = nn.Parameter(torch.zeros(6))
        self.bias_log_scale = nn.Parameter(torch.full((6,), -2.0))

    def model(self, x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.likelihood_net(z) + b, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("b", dist.Normal(self.bias_loc, self.bias_log_scale.exp()).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


class Classes(nn.Module):
    """p(y) p(z) p(x | y, z), the class of a row summed out under q(y | x): M2 without labels."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.1, 0.0, -0.1]))
        self.classifier = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.encoder = pv.mlp((6, 3), fam.Normal(2), hidden=(8,))
        self.likelihood = pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,))

    def one_hot(self, y: Tensor) -> Tensor:
        return (y[..., None] == torch.arange(3)).float()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(z, self.one_hot(y)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, self.one_hot(y)))


class Clusters(nn.Module):
    """p(y) p(z | y) p(x | z) with q(z | x): the cluster of a row is the model's alone, and summed out there."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.centres = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3, 2))
        self.likelihood = pv.mlp(2, fam.Bernoulli(6), hidden=(8,))
        self.encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.centres[y], 1.0).to_event(1))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


def gmvae() -> pv.GMVAE:
    return pv.GMVAE(
        cluster_prior=pv.priors.Categorical(3),
        prior=pv.mlp(3, fam.Normal(2), hidden=()),
        likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )


def vade() -> pv.VaDE:
    return pv.VaDE(
        cluster_prior=pv.priors.Categorical(3, learned=True),
        prior=pv.mlp(3, fam.Normal(2), hidden=()),
        likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )


def joint_vae() -> pv.JointVAE:
    return pv.JointVAE(
        discrete_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )


def spatial() -> pv.SpatialVAE:
    """Of images of 2 x 3 pixels, turned, shifted and resized."""
    pose, pixels, latent = pv.nets.Pose((2, 3), 1.0, 0.3, 0.2), fam.Bernoulli(6), fam.Normal(2)
    draw, look = (pv.nets.MLP(size, family.param_shape, **SMALL) for size, family in ((2, pixels), (6, latent)))
    return pv.SpatialVAE(
        prior=pv.priors.StandardNormal(2),
        pose_prior=pv.priors.Normal(pose.size),
        likelihood=pv.Conditional(pv.nets.Posed(draw, pose), pixels),
        pose_encoder=pv.mlp(6, fam.Normal(pose.size), **SMALL),
        encoder=pv.Conditional(pv.nets.Upright(look, pose, 6), latent),
    )


class Regime(nn.Module):
    """A switch for the whole data set, summed out under the guide, beside a local z."""

    def __init__(self) -> None:
        super().__init__()
        self.logit, self.shift = nn.Parameter(torch.zeros(())), nn.Parameter(torch.randn(6))
        self.likelihood = nn.Linear(2, 6)
        self.encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.likelihood(z) + s[..., None] * self.shift
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("s", dist.Bernoulli(logits=self.logit), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


CLASSES, LATENT, SMALL = 3, 2, {"hidden": (8,)}


def labels(rows: int = 40, known: int = 12) -> Tensor:
    """Class numbers, unknown (-1) from row `known` on."""
    y = torch.arange(rows) % CLASSES
    y[known:] = -1
    return y


def ssvae(alpha: float = 2.0) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, CLASSES), fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp((6, CLASSES), fam.Normal(LATENT), **SMALL),
        classifier=pv.mlp(6, fam.Categorical((), CLASSES), **SMALL),
        code=pv.nets.OneHot(CLASSES),
        alpha=alpha,
    )


def two_labels(alpha: float = 2.0) -> pv.LabelsVAE:
    return several_labels((3, 2), alpha)


def several_labels(sizes: tuple[int, ...], alpha: float = 2.0) -> pv.LabelsVAE:
    """A label of each of these numbers of classes, which are not equally frequent."""
    return pv.LabelsVAE(
        label_priors=[
            dist.Categorical(torch.arange(size + 1.0, 1.0, -1.0) / sum(range(2, size + 2))) for size in sizes
        ],
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, *sizes), fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp((6, *sizes), fam.Normal(LATENT), **SMALL),
        classifiers=[pv.mlp(6, fam.Categorical((), size), **SMALL) for size in sizes],
        codes=[pv.nets.OneHot(size) for size in sizes],
        alpha=alpha,
    )


def some_labels(rows: int = 40) -> dict[str, Tensor]:
    """Rows with both labels, with the first, with the second, and with none, one after another."""
    row = torch.arange(rows)
    y1, y2 = torch.where(row % 4 < 2, row % 3, -1), torch.where(row % 2 < 1, row // 4 % 2, -1)
    return {"x": binary(rows), "y1": y1, "y2": y2}


def both_or_none() -> dict[str, Tensor]:
    """Twenty rows with both labels, and twenty with none, in turn."""
    row = torch.arange(80)
    return {name: values[(row % 4 == 0) | (row % 4 == 3)] for name, values in some_labels(80).items()}


def graded() -> pv.SSVAE:
    """Labels in order: an ordinal classifier, and a code in which near grades are alike."""
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(CLASSES, learned=True),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, CLASSES - 1), fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp((6, CLASSES - 1), fam.Normal(LATENT), **SMALL),
        classifier=pv.mlp(6, fam.OrderedLogistic((), CLASSES), **SMALL),
        code=pv.nets.Thermometer(CLASSES),
    )


def ssregression() -> pv.SSRegression:
    return pv.SSRegression(
        label_prior=pv.priors.StandardNormal(()),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, 1), fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp((6, 1), fam.Normal(LATENT), **SMALL),
        regressor=pv.mlp(6, fam.Normal(()), **SMALL),
        code=pv.nets.Column(),
        alpha=2.0,
    )


def stacked() -> pv.StackedSSVAE:
    return pv.StackedSSVAE(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        lower=pv.mlp((LATENT, CLASSES), fam.Normal(4), **SMALL),
        likelihood=pv.mlp(4, fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp(6, fam.Normal(4), **SMALL),
        classifier=pv.mlp(4, fam.Categorical((), CLASSES), **SMALL),
        upper_encoder=pv.mlp((4, CLASSES), fam.Normal(LATENT), **SMALL),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


def adgm() -> pv.ADGM:
    return pv.ADGM(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, CLASSES), fam.Bernoulli(6), **SMALL),
        auxiliary=pv.mlp((6, LATENT, CLASSES), fam.Normal(2), **SMALL),
        auxiliary_encoder=pv.mlp(6, fam.Normal(2), **SMALL),
        classifier=pv.mlp((2, 6), fam.Categorical((), CLASSES), **SMALL),
        encoder=pv.mlp((2, 6, CLASSES), fam.Normal(LATENT), **SMALL),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


def sdgm() -> pv.SDGM:
    return pv.SDGM(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        auxiliary=pv.mlp((LATENT, CLASSES), fam.Normal(2), **SMALL),
        likelihood=pv.mlp((2, LATENT, CLASSES), fam.Bernoulli(6), **SMALL),
        auxiliary_encoder=pv.mlp(6, fam.Normal(2), **SMALL),
        classifier=pv.mlp((2, 6), fam.Categorical((), CLASSES), **SMALL),
        encoder=pv.mlp((2, 6, CLASSES), fam.Normal(LATENT), **SMALL),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


def hierarchy(kind: Any) -> Any:
    """Three levels, which nothing in the pair's own code counts."""
    return kind.of_levels(fam.Bernoulli(6), levels=(4, 3, 2), hidden=(8, 8, 8))


def small_images() -> Tensor:
    return torch.bernoulli(torch.full((40, 5, 4), 0.4))


def nvae() -> pv.NVAE:
    return pv.NVAE(fam.Bernoulli((5, 4)), channels=(4, 8), groups=(1, 1), latent_channels=2, expansion=2)


def vqvae(codes: pv.nets.Quantiser, prior: Any = None) -> pv.VQVAE:
    width, places = codes.width, codes.grid.numel()
    net = pv.nets.Behind(pv.nets.Flat((width, places)), pv.nets.MLP(width * places, (1, 6), hidden=(8,)))
    return pv.VQVAE(
        prior=prior or pv.priors.Autoregressive(codes.num_codes, codes.index_shape, width=8, layers=1, heads=2),
        likelihood=pv.Conditional(net, fam.Bernoulli(6)),
        encoder=pv.nets.MLP(6, (width, places), hidden=(8,)),
        codes=codes,
    )


def categorical(family: fam.Family) -> pv.CategoricalVAE:
    return pv.CategoricalVAE(
        prior=pv.priors.OneHotCategorical((2, 3), learned=True),
        likelihood=pv.mlp(6, fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, family, hidden=(8,)),
    )


def some_labelled() -> dict[str, Tensor]:
    return {"x": binary(), "y": labels()}


def not_miwae() -> pv.NotMIWAE:
    """Whether an entry is observed depends on its value."""
    return pv.NotMIWAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp(2, fam.Normal(6), hidden=(8,)),
        encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(8,))), fam.Normal(2)),
        missingness=pv.Conditional(pv.nets.SelfMasking(6, missing="high"), fam.Bernoulli(6)),
    )


def multimodal() -> pv.MultimodalVAE:
    """Two kinds of data with one code, either of which may be missing."""
    return pv.MultimodalVAE(
        prior=pv.priors.StandardNormal(2),
        likelihood1=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        likelihood2=pv.mlp(2, fam.Normal(3), hidden=(8,)),
        encoder1=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        encoder2=pv.mlp(3, fam.Normal(2), hidden=(8,)),
    )


def two_kinds() -> dict[str, Tensor]:
    """40 rows of two kinds of data: ten have the first alone, ten the second."""
    x1, x2 = binary(), torch.randn(40, 3)
    x1[30:], x2[20:30] = torch.nan, torch.nan
    return {"x1": x1, "x2": x2}


def markov() -> pv.DeepMarkovVAE:
    return pv.DeepMarkovVAE.of_sequences(fam.Bernoulli(4), latent=2, hidden=8, width=8)


def some_shorter() -> Tensor:
    """Forty sequences of three steps, ten of which end after the first."""
    x = torch.bernoulli(torch.full((40, 3, 4), 0.4))
    x[:10, 1:] = torch.nan
    return x


def some_missing() -> Tensor:
    x = reals()
    return x.masked_fill(x > 0.8, torch.nan)


def some_measured() -> dict[str, Tensor]:
    return {"x": binary(), "y": torch.where(torch.arange(40) < 12, torch.randn(40), torch.nan)}


ROWS: dict[str, Row] = {
    "vae": Row(vae, binary, "z", True),
    "vae-mixture-prior": Row(lambda: vae(prior=pv.priors.MixtureOfNormals(2, 3)), binary, "z", True),
    "vae-plain-distribution-prior": Row(
        lambda: vae(prior=dist.Normal(torch.zeros(2), 2.0).to_event(1)), binary, "z", True
    ),
    "vae-own-prior": Row(lambda: vae(prior=OwnPrior()), binary, "z", False),
    "vae-shared-scale": Row(lambda: vae(fam.Normal(6, scale="shared")), reals, "z", True),
    "conditional": Row(Conditioned, lambda: {"x": binary(), "c": torch.eye(3)[torch.arange(40) % 3]}, "z", False),
    "cvae-label": Row(
        lambda: cvae(pv.nets.OneHot(3), 3), lambda: {"x": binary(), "c": torch.arange(40) % 3}, "z", True
    ),
    "cvae-words": Row(
        lambda: cvae(pv.nets.Words(5, 3, dropout=0.2), 3),
        lambda: {"x": binary(), "c": torch.randint(0, 6, (40, 4))},
        "z",
        True,
    ),
    "cvae-vector": Row(lambda: cvae(nn.Identity(), 3), lambda: {"x": binary(), "c": torch.randn(40, 3)}, "z", True),
    "cvae-image": Row(
        lambda: cvae(pv.nets.ConvEncoder((5, 4), 3, channels=(4,)), 3),
        lambda: {"x": binary(), "c": torch.rand(40, 5, 4)},
        "z",
        True,
    ),
    "regression": Row(
        lambda: pv.Regression(nn.Identity(), pv.mlp(3, fam.Bernoulli(6), hidden=(8,))),
        lambda: {"x": binary(), "c": torch.randn(40, 3)},
        None,
        True,
    ),
    "ladder": Row(Ladder, binary, "z1", False),
    "discrete": Row(Discrete, binary, "z", False),
    "classes-summed-out": Row(Classes, binary, "z", False),
    "classes-to-encode": Row(Classes, binary, "y", False),
    "clusters-summed-out": Row(Clusters, binary, "z", False),
    "gmvae": Row(gmvae, binary, "z", True),
    "vade": Row(vade, binary, "z", True),
    "joint-vae": Row(joint_vae, binary, "z", True),
    "joint-vae-classes-to-encode": Row(joint_vae, binary, "y", True),
    "spatial": Row(spatial, binary, "z", True),
    "spatial-pose-to-encode": Row(spatial, binary, "pose", True),
    "regime-summed-out": Row(Regime, reals, "z", False),
    "global-and-local": Row(GlobalAndLocal, reals, "z", False),
    "ssvae": Row(ssvae, some_labelled, "z", True),
    "ssvae-ordinal": Row(graded, some_labelled, "z", True),
    "ssvae-all-labelled": Row(ssvae, lambda: {"x": binary(), "y": labels(known=40)}, "z", True),
    "ssvae-none-labelled": Row(ssvae, lambda: {"x": binary(), "y": labels(known=0)}, "y", True),
    "two-labels": Row(two_labels, both_or_none, "z", True),
    "ssregression": Row(ssregression, some_measured, "z", True),
    "stacked-ssvae": Row(stacked, some_labelled, "z1", True),
    "adgm": Row(adgm, some_labelled, "a", True),
    "sdgm": Row(sdgm, some_labelled, "a", True),
    "hierarchical-vae": Row(lambda: hierarchy(pv.HierarchicalVAE), binary, "z1", True),
    "hierarchical-vae-top-to-encode": Row(lambda: hierarchy(pv.HierarchicalVAE), binary, "z3", True),
    "ladder-vae": Row(lambda: hierarchy(pv.LadderVAE), binary, "z1", True),
    "nvae": Row(nvae, small_images, "z1_1", True),
    "markov": Row(markov, some_shorter, "z", True),
    "multimodal": Row(multimodal, two_kinds, "z", True, "x2"),
    "not-miwae": Row(not_miwae, some_missing, "z", True),
    "vqvae": Row(lambda: vqvae(pv.nets.FSQ((5, 3), 2)), binary, "z", True),
    "vqvae-codebook": Row(lambda: vqvae(pv.nets.VQ(6, 3, 2)), binary, "z", True),
    "categorical": Row(lambda: categorical(fam.OneHotCategorical((2, 3))), binary, "z", True),
    "categorical-relaxed": Row(lambda: categorical(fam.RelaxedOneHotCategorical((2, 3))), binary, "z", True),
    "bare-functions": Row(bare_functions, reals, "z", False),
    "registered-modules": Row(registered_modules, binary, "z", False),
    "pyro-module": Row(PyroVAE, binary, "z", False),
    "bayesian": Row(lambda: pv.bayesian(vae()), binary, "z", True),
    "auto-normal": Row(regression(AutoNormal), regression_data, None, False),
    "auto-diagonal-normal": Row(regression(AutoDiagonalNormal), regression_data, None, False),
}

# Plain, with a condition, levels, a global site, classes summed out, labels missing, functions, an AutoGuide.
ONE_OF_EACH_KIND = (
    *(
        "vae",
        "vae-own-prior",
        "cvae-vector",
        "ladder",
        "global-and-local",
        "clusters-summed-out",
        "ssvae-none-labelled",
    ),
    *("bare-functions", "auto-normal"),
)
