"""Small float64 pairs, a row a pair: shared by the comparison with Pyro's objectives and by benchmarks/exactness.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.batch import as_batch
from pyrovae.pair.layout import describe
from pyrovae.pair.parameters import param_scope

ROWS, COLUMNS, LATENT, CLASSES = 7, 4, 2, 3


class Base(nn.Module):
    """A pair whose plate "data" can be told to be a subsample of `total` rows, scaled as Pyro scales it."""

    total: int | None = None

    def rows(self, x: Tensor, dim: int = -1) -> pyro.plate:
        # A given subsample, not a drawn one, which would use up random numbers that the other program does not.
        if self.total is None:
            return pyro.plate("data", len(x), dim=dim)
        return pyro.plate("data", self.total, subsample=torch.arange(len(x)), dim=dim)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(shape, dtype=torch.float64))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def normal(loc: Tensor, log_scale: Tensor | float) -> Any:
    """Independent normals, one event a row."""
    return dist.Normal(loc, torch.as_tensor(log_scale, dtype=torch.float64).exp()).to_event(1)


class Plain(Base):
    """z ~ N(0, I), x | z Bernoulli; amortised normal guide."""

    def __init__(self) -> None:
        super().__init__()
        self.decode, self.encode, self.log_scale = weight(LATENT, COLUMNS), weight(COLUMNS, LATENT), weight(LATENT)

    def prior(self) -> Any:
        return normal(zeros(LATENT), 0.0)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=z @ self.decode).to_event(1), obs=(x > 0).double())

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            pyro.sample("z", normal(x @ self.encode, self.log_scale))


class NoClosedForm(Plain):
    """A prior whose KL has no closed form, learned: "analytic" must fall back to the draw."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = weight(LATENT)

    def prior(self) -> Any:
        return dist.StudentT(4 * ones(LATENT), self.loc, ones(LATENT)).to_event(1)


class GammaLatent(Base):
    """An implicitly reparameterised latent variable: z ~ Gamma(2, 1), x | z ~ N(z c, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.loading, self.encode = weight(COLUMNS), weight(COLUMNS, 2)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", dist.Gamma(2 * ones(), ones()))
            pyro.sample("x", normal(z[..., None] * self.loading, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        a, b = nn.functional.softplus(x @ self.encode).unbind(-1)
        with self.rows(x):
            pyro.sample("z", dist.Gamma(a + 0.5, b + 0.5))


class Hierarchical(Base):
    """p(z2) p(z1 | z2) p(x | z1), guide q(z2 | x) q(z1 | x, z2)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.decode = weight(LATENT, LATENT), weight(LATENT, COLUMNS)
        self.up2, self.up1, self.skip = weight(COLUMNS, LATENT), weight(COLUMNS, LATENT), weight(LATENT, LATENT)
        self.scales = weight(4, LATENT)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            z2 = pyro.sample("z2", normal(zeros(LATENT), 0.0))
            z1 = pyro.sample("z1", normal(z2 @ self.down, self.scales[0]))
            pyro.sample("x", normal(z1 @ self.decode, self.scales[1].mean()), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            z2 = pyro.sample("z2", normal(x @ self.up2, self.scales[2]))
            pyro.sample("z1", normal(x @ self.up1 + z2 @ self.skip, self.scales[3]))


class BernoulliLatent(Base):
    """A row's latent variable drawn without reparameterisation: z in {0, 1}^L."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_logits, self.encode, self.decode = weight(LATENT), weight(COLUMNS, LATENT), weight(LATENT, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior_logits).to_event(1))
            pyro.sample("x", normal(z @ self.decode, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            pyro.sample("z", dist.Bernoulli(logits=x @ self.encode).to_event(1))


class InnerPlate(Base):
    """A class a row, its columns conditionally independent in a second plate on the left of "data"."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_logits, self.encode, self.loc = weight(CLASSES), weight(COLUMNS, CLASSES), weight(CLASSES, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
            with pyro.plate("columns", COLUMNS, dim=-2):
                loc = self.loc[y, torch.arange(COLUMNS)[:, None]]
                pyro.sample("x", dist.Normal(loc, ones()), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            pyro.sample("y", dist.Categorical(logits=x @ self.encode))


class InnerScore(Base):
    """Score-function sites in an inner plate on the right of "data" (at -2), summed into one observation a row."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_logits, self.encode = weight(CLASSES), weight(COLUMNS, CLASSES)
        self.loading = weight(CLASSES)

    def model(self, x: Tensor) -> None:
        with self.rows(x, dim=-2):
            with pyro.plate("parts", CLASSES, dim=-1):
                s = pyro.sample("s", dist.Bernoulli(logits=self.prior_logits))
            total = (s * self.loading).sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(total, ones()), obs=x[:, :1])

    def guide(self, x: Tensor) -> None:
        with self.rows(x, dim=-2), pyro.plate("parts", CLASSES, dim=-1):
            pyro.sample("s", dist.Bernoulli(logits=x @ self.encode))


class GlobalDiscrete(Base):
    """One Bernoulli for the whole data set: its score is weighed by all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_logit, self.logit, self.loc = weight(), weight(), weight(2, COLUMNS)

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=self.prior_logit))
        with self.rows(x):
            loc = s[..., None] * self.loc[0] + (1 - s[..., None]) * self.loc[1]
            pyro.sample("x", normal(loc, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("s", dist.Bernoulli(logits=self.logit))


class Mixed(Base):
    """A reparameterised z and a class drawn given it, in one row; the guide of z depends on the class."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.classify = weight(COLUMNS, LATENT), weight(COLUMNS, CLASSES)
        self.shift = weight(CLASSES, LATENT)
        self.decode, self.loc, self.log_scale = weight(LATENT, COLUMNS), weight(CLASSES, COLUMNS), weight(LATENT)
        self.prior_logits = weight(CLASSES)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
            z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            pyro.sample("x", normal(z @ self.decode + self.loc[y], 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=x @ self.classify))
            pyro.sample("z", normal(x @ self.encode + self.shift[y], self.log_scale))


class GlobalLocal(Base):
    """theta for all rows, z for each: theta ~ N(0, 3^2), z_n ~ N(theta, 1), x_n ~ N(z_n c, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale, self.loading = weight(), weight(), weight(COLUMNS)
        self.encode, self.local_scale, self.coupling = weight(COLUMNS), weight(), weight()

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(zeros(), 3 * ones()))
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(theta, ones()))
            pyro.sample("x", normal(z[..., None] * self.loading, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(self.loc, self.log_scale.exp()))
        with self.rows(x):
            pyro.sample("z", dist.Normal(x @ self.encode + self.coupling * theta, self.local_scale.exp()))


class GlobalPlate(Base):
    """Global latent variables in a plate of their own, on the right of "data": a mean and a switch for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale, self.logits = weight(COLUMNS), weight(COLUMNS), weight(COLUMNS)

    def model(self, x: Tensor) -> None:
        columns = pyro.plate("columns", COLUMNS, dim=-1)
        with columns:
            s = pyro.sample("s", dist.Bernoulli(0.3 * ones()))
            w = pyro.sample("w", dist.Normal(zeros(), ones()))
        with self.rows(x, dim=-2), columns:
            pyro.sample("x", dist.Normal(w * s, ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("columns", COLUMNS, dim=-1):
            pyro.sample("s", dist.Bernoulli(logits=self.logits))
            pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()))


class Masked(Plain):
    """Rows left out of the latent terms by poutine.mask, in model and guide, and entries left out of the likelihood."""

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            with poutine.mask(mask=x[:, 0] > 0):
                z = pyro.sample("z", self.prior())
            fn = dist.Bernoulli(logits=z @ self.decode).mask(x > -0.5).to_event(1)
            pyro.sample("x", fn, obs=(x > 0).double())

    def guide(self, x: Tensor) -> None:
        with self.rows(x), poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("z", normal(x @ self.encode, self.log_scale))


class MaskedScore(BernoulliLatent):
    """The same with a score-function site."""

    def model(self, x: Tensor) -> None:
        with poutine.mask(mask=x[:, 0] > 0):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.mask(mask=x[:, 0] > 0):
            super().guide(x)


class Scaled(Mixed):
    """poutine.scale inside the program: the likelihood counts 0.3 times, the latent terms 1.7 times."""

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            with poutine.scale(scale=1.7):
                y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
                z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            with poutine.scale(scale=0.3):
                pyro.sample("x", normal(z @ self.decode + self.loc[y], 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1.7):
            super().guide(x)


class ScaledPlain(Plain):
    """poutine.scale around model and guide, all of it reparameterised."""

    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=1.7):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1.7):
            super().guide(x)


class Auxiliary(Plain):
    """A guide with an auxiliary site of its own, reparameterised: q(u) q(z | x, u)."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = weight(LATENT)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            u = pyro.sample("u", normal(zeros(LATENT), self.spread), infer={"is_auxiliary": True})
            pyro.sample("z", normal(x @ self.encode + u, self.log_scale))


class Auto(Base):
    """Global latent variables under an AutoGuide, which draws through auxiliary sites."""

    def __init__(self, autoguide: Callable[..., Any]) -> None:
        super().__init__()
        self.log_scale = weight()
        self.guide = autoguide(self.model)  # type: ignore[method-assign]

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(zeros(), 3 * ones()))
        w = pyro.sample("w", normal(zeros(COLUMNS), 0.0))
        with self.rows(x):
            pyro.sample("x", normal(theta[..., None] + w, self.log_scale), obs=x)


# --- enumerated pairs ------------------------------------------------------------------------------------------------

PARALLEL = {"enumerate": "parallel"}


class Enumerated(Mixed):
    """The class of a row summed out under q(y | x), beside z ~ q(z | x, y) (M2, Kingma et al. 2014)."""

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=x @ self.classify), infer=PARALLEL)
            pyro.sample("z", normal(x @ self.encode + self.shift[y], self.log_scale))


class Mixture(Base):
    """A class that only the model has: z's prior depends on it, the likelihood does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.log_scale = weight(COLUMNS, LATENT), weight(LATENT)
        self.prior_logits, self.centres, self.decode = weight(CLASSES), weight(CLASSES, LATENT), weight(LATENT, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[y], -0.5))
            pyro.sample("x", normal(z @ self.decode, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            pyro.sample("z", normal(x @ self.encode, self.log_scale))


class DeepMixture(Mixture):
    """The likelihood depends on the class as well, its columns in an inner plate."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = weight(CLASSES, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[y], -0.5))
            with pyro.plate("columns", COLUMNS, dim=-2):
                mean = (z @ self.decode)[..., 0, :, :].transpose(-1, -2) if z.dim() > 2 else (z @ self.decode).T
                pyro.sample("x", dist.Normal(mean + self.loc[y, torch.arange(COLUMNS)[:, None]], ones()), obs=x.T)


class BothSides(Enumerated):
    """y in the guide, c in the model alone: p(y) p(c | y) p(z) p(x | y, z, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.jump = weight(CLASSES, 2), weight(2, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
            c = pyro.sample("c", dist.Categorical(logits=self.table[y]), infer=PARALLEL)
            z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            pyro.sample("x", normal(z @ self.decode + self.loc[y] + self.jump[c], 0.0), obs=x)


class TwoClasses(Base):
    """q(a | x) q(z | x, a) q(b | z, a) with both classes summed out, b one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.shift, self.encode = weight(COLUMNS, 2), weight(2, LATENT), weight(COLUMNS, LATENT)
        self.second, self.offset = weight(LATENT, CLASSES), weight(2, CLASSES)
        self.prior_a, self.prior_b, self.decode = weight(2), weight(2, CLASSES), weight(LATENT, COLUMNS)
        self.loc = weight(CLASSES, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            a = pyro.sample("a", dist.Categorical(logits=self.prior_a))
            z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            b = pyro.sample("b", dist.OneHotCategorical(logits=self.prior_b[a]))
            pyro.sample("x", normal(z @ self.decode + b @ self.loc, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            a = pyro.sample("a", dist.Categorical(logits=x @ self.classify), infer=PARALLEL)
            z = pyro.sample("z", normal(x @ self.encode + self.shift[a], -1.0))
            logits = z @ self.second + self.offset[a]
            pyro.sample("b", dist.OneHotCategorical(logits=logits), infer=PARALLEL)


class EnumeratedBesideScore(Base):
    """y summed out; s drawn without reparameterisation for each y, t before it; z reparameterised."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.switch, self.first = weight(COLUMNS, CLASSES), weight(CLASSES), weight(COLUMNS)
        self.encode, self.prior = weight(COLUMNS, LATENT), weight(3)
        self.prior_logits, self.loc = weight(CLASSES), weight(CLASSES, COLUMNS)
        self.jump, self.decode = weight(COLUMNS), weight(LATENT, COLUMNS)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            t = pyro.sample("t", dist.Bernoulli(logits=self.prior[0]))
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
            s = pyro.sample("s", dist.Bernoulli(logits=self.prior[1] + self.prior[2] * t))
            z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            loc = self.loc[y] + s[..., None] * self.jump + t[..., None] + z @ self.decode
            pyro.sample("x", normal(loc, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            t = pyro.sample("t", dist.Bernoulli(logits=x @ self.first))
            logits = x @ self.classify + t[..., None]
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)
            s = pyro.sample("s", dist.Bernoulli(logits=self.switch[y]))
            pyro.sample("z", normal(x @ self.encode + s[..., None], 0.0))


class ScoreOverMixture(Mixed):
    """y drawn without reparameterisation; a class of the model alone summed out beneath it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.jump = weight(CLASSES, 2), weight(2, COLUMNS)

    model = BothSides.model


class EnumeratedInner(InnerPlate):
    """InnerPlate with its class summed out: each class is weighed in all of its columns."""

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            pyro.sample("y", dist.Categorical(logits=x @ self.encode), infer=PARALLEL)


class EnumeratedColumns(Base):
    """A class of each column of each row, in an inner plate, given a class of the row: all summed out in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.table, self.loc = weight(2), weight(2, CLASSES), weight(CLASSES)
        self.classify, self.columns = weight(COLUMNS, 2), weight(2, CLASSES)

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            g = pyro.sample("g", dist.Categorical(logits=self.prior))
            with pyro.plate("columns", COLUMNS, dim=-2):
                y = pyro.sample("y", dist.Categorical(logits=self.table[g]))
                pyro.sample("x", dist.Normal(self.loc[y], ones()), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            g = pyro.sample("g", dist.Categorical(logits=x @ self.classify), infer=PARALLEL)
            with pyro.plate("columns", COLUMNS, dim=-2):
                logits = self.columns[g] + x.T[..., None]
                pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)


class MixtureColumns(EnumeratedColumns):
    """The same, summed out in the model: the columns first."""

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            g = pyro.sample("g", dist.Categorical(logits=self.prior), infer=PARALLEL)
            with pyro.plate("columns", COLUMNS, dim=-2):
                y = pyro.sample("y", dist.Categorical(logits=self.table[g]), infer=PARALLEL)
                pyro.sample("x", dist.Normal(self.loc[y], ones()), obs=x.T)

    def __init__(self) -> None:
        super().__init__()
        del self.classify, self.columns

    def guide(self, x: Tensor) -> None:
        pass


class EnumeratedGlobal(GlobalDiscrete):
    """One Bernoulli for all rows, summed out, with a class of each row given it."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.prior_y, self.shift = weight(COLUMNS, 2), weight(2), weight(2, COLUMNS)

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=self.prior_logit))
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_y))
            loc = s[..., None] * self.loc[0] + (1 - s[..., None]) * self.loc[1] + self.shift[y]
            pyro.sample("x", normal(loc, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=self.logit), infer=PARALLEL)
        with self.rows(x):
            logits = x @ self.classify + s[..., None]
            pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)


class MixtureGlobal(Base):
    """A Bernoulli for all rows that only the model has: one mixture of two whole data sets."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_logit, self.loc = weight(), weight(2, COLUMNS)

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=self.prior_logit), infer=PARALLEL)
        with self.rows(x):
            pyro.sample("x", normal(0.3 * (s[..., None] * self.loc[0] + self.loc[1]), 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


class EnumeratedMasked(Enumerated):
    """Latent terms of some rows masked, on both sides, and entries of the likelihood."""

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            with poutine.mask(mask=x[:, 0] > 0):
                y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
                z = pyro.sample("z", normal(zeros(LATENT), 0.0))
            fn = dist.Normal(z @ self.decode + self.loc[y], ones()).mask(x > -0.5).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(self, x: Tensor) -> None:
        with poutine.mask(mask=x[:, 0] > 0):
            super().guide(x)


class MixtureMasked(Mixture):
    def model(self, x: Tensor) -> None:
        with poutine.mask(mask=x[:, 0] > 0):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.mask(mask=x[:, 0] > 0):
            super().guide(x)


class EnumeratedScaled(Scaled):
    """Scales of several sizes: what is scaled is each term, not the probability that weighs it."""

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1.7):
            Enumerated.guide(self, x)  # type: ignore[arg-type]


class MixtureScaled(Mixture):
    """One scale for all that is summed together, another for the guide."""

    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=0.4):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1.7):
            super().guide(x)


class ScoreAboveEnumerated(GlobalDiscrete):
    """A drawn Bernoulli for all rows above a class of each row that is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.prior_y, self.shift = weight(COLUMNS, 2), weight(2), weight(2, COLUMNS)

    model = EnumeratedGlobal.model

    def guide(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=self.logit))
        with self.rows(x):
            logits = x @ self.classify + s[..., None]
            pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)


@dataclass(frozen=True)
class Row:
    """A pair and what is known about it: `nesting` plates deep; `analytic`, whether closed-form KL applies to it."""

    name: str
    make: Callable[[], Any]
    nesting: int = 1
    analytic: bool = True
    score: bool = False

    def build(self, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
        """The pair with random weights, and its batch. Draws from torch's global state, seeded."""
        torch.manual_seed(seed)
        x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
        pair = self.make()
        if isinstance(pair.guide, nn.Module):
            pair.guide(x)  # an AutoGuide makes its parameters in its first run
        return pair.double(), {"x": x}


TABLE = [
    Row("plain", Plain),
    Row("no_closed_form", NoClosedForm),
    Row("gamma_latent", GammaLatent),
    Row("hierarchical", Hierarchical),
    Row("bernoulli_latent", BernoulliLatent, analytic=False, score=True),
    Row("inner_plate", InnerPlate, nesting=2, analytic=False, score=True),
    Row("inner_score", InnerScore, nesting=2, analytic=False, score=True),
    Row("global_discrete", GlobalDiscrete, analytic=False, score=True),
    Row("mixed", Mixed, analytic=False, score=True),
    Row("global_local", GlobalLocal),
    Row("global_plate", GlobalPlate, nesting=2, analytic=False, score=True),
    Row("masked", Masked),
    Row("masked_score", MaskedScore, analytic=False, score=True),
    Row("scaled", Scaled, analytic=False, score=True),
    Row("scaled_plain", ScaledPlain),
    Row("auxiliary", Auxiliary),
    Row("auto_normal", lambda: Auto(AutoNormal)),
    Row("auto_mvn", lambda: Auto(AutoMultivariateNormal)),
]


# Pairs with marked sites: `score` where something else is drawn without reparameterisation, `analytic` where the other
# sites have closed-form KL.
ENUMERATED = [
    Row("enumerated", Enumerated),
    Row("mixture", Mixture, analytic=False),
    Row("deep_mixture", DeepMixture, nesting=2, analytic=False),
    Row("both_sides", BothSides),
    Row("two_classes", TwoClasses, analytic=False),
    Row("beside_score", EnumeratedBesideScore, analytic=False, score=True),
    Row("score_over_mixture", ScoreOverMixture, analytic=False, score=True),
    Row("inner", EnumeratedInner, nesting=2),
    Row("columns", EnumeratedColumns, nesting=2),
    Row("mixture_columns", MixtureColumns, nesting=2),
    Row("global", EnumeratedGlobal),
    Row("score_above", ScoreAboveEnumerated, analytic=False, score=True),
    Row("masked", EnumeratedMasked),
    Row("mixture_masked", MixtureMasked, analytic=False),
    Row("scaled", EnumeratedScaled),
    Row("mixture_scaled", MixtureScaled, analytic=False),
]
MIXTURE_GLOBAL = Row("mixture_global", MixtureGlobal)


def value_and_gradients(loss: Tensor, pair: nn.Module) -> dict[str, Tensor]:
    """A loss and its gradient in every parameter, by name."""
    named = dict(pair.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))  # raises for a parameter that is not used
    return {"value": loss.detach(), **dict(zip(named, gradients))}


def ours(
    row: Row,
    pair: Any,
    batch: Mapping[str, Tensor],
    *,
    particles: int = 1,
    kl: Any = None,
    num_rows: int | None = None,
    kl_weight: float | None = None,
    seed: int = 1,
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    layout = described(pair, batch)
    torch.manual_seed(seed)
    loss = pv.Trace_ELBO(particles, kl=kl, baseline=None)
    bound = loss(pair, batch, num_rows=num_rows, kl_weight=kl_weight, layout=layout)
    return value_and_gradients(-bound.objective, pair)


def described(pair: Any, batch: Mapping[str, Tensor]) -> pv.Layout:
    with torch.random.fork_rng():
        return describe(pair, batch)


def pyros(
    row: Row,
    pair: Any,
    batch: Mapping[str, Tensor],
    *,
    particles: int = 1,
    kl: str | None = None,
    num_rows: int | None = None,
    kl_weight: float | None = None,
    seed: int = 1,
) -> dict[str, Tensor]:
    """The same by Pyro: N/B by a subsampling plate, the KL weight by a scale on every latent site."""
    kind = pyro.infer.Trace_ELBO if kl is None else pyro.infer.TraceMeanField_ELBO
    if row in ENUMERATED or row is MIXTURE_GLOBAL:
        kind = pyro.infer.TraceEnum_ELBO
    elbo = kind(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=row.nesting)
    model, guide = pair.model, pair.guide
    if kl_weight is not None:
        model, guide = LatentScale(kl_weight)(model), LatentScale(kl_weight)(guide)
    pair.total = num_rows
    torch.manual_seed(seed)
    try:
        return value_and_gradients(elbo.differentiable_loss(model, guide, **batch), pair)
    finally:
        pair.total = None


class LatentScale(poutine.messenger.Messenger):
    """Scale every site that is not observed: a KL weight, written with Pyro's own means."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|."""
    return ((a - b).abs().max() / b.abs().max()).item()


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[float, float]:
    """The largest relative difference of value, and of gradient over the tensors."""
    assert a.keys() == b.keys()
    return relative_difference(a["value"], b["value"]), max(relative_difference(a[n], b[n]) for n in b if n != "value")


# --- a pair whose posterior is known ---------------------------------------------------------------------------------


class LinearGaussian(nn.Module):
    """z ~ N(0, I_L), x | z ~ N(W z + b, s^2 I_D). The guide is the exact posterior N(m(x), S), moved by `shift`
    posterior standard deviations and with its covariance times `spread`."""

    def __init__(self, latent: int = 2, columns: int = 5, shift: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias, self.noise = weight(columns, latent), weight(columns), 0.7
        self.shift, self.spread = shift, spread
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        precision = torch.eye(self.weight.shape[1], dtype=x.dtype) + self.weight.T @ self.weight / self.noise**2
        covariance = torch.linalg.inv(precision)
        mean = (x - self.bias) @ self.weight @ covariance / self.noise**2
        return dist.MultivariateNormal(mean, covariance)

    def proposal(self, x: Tensor) -> dist.MultivariateNormal:
        exact = self.posterior(x)
        moved = exact.mean + self.shift * exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        return dist.MultivariateNormal(moved, self.spread * exact.covariance_matrix)

    def marginal(self) -> dist.MultivariateNormal:
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype)
        return dist.MultivariateNormal(self.bias, self.weight @ self.weight.T + self.noise**2 * eye)

    def likelihood(self, z: Tensor) -> Any:
        return normal(z @ self.weight.T + self.bias, math.log(self.noise))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(self.weight.shape[1]), 0.0))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.proposal(x))


def unfitted(pair: Any, data: Any) -> pv.Fit:
    """A `Fit` of a pair as it stands, without a step."""
    store: dict[str, Any] = {}
    with param_scope(store), torch.random.fork_rng():
        layout = describe(pair, as_batch(pair, data))
    return pv.Fit(pair=pair, layout=layout, store=store)


def linear_gaussian(rows: int = 20, **options: Any) -> tuple[LinearGaussian, Tensor, pv.Fit]:
    """The pair, rows drawn from its marginal, and a `Fit` of it; always the same."""
    torch.manual_seed(0)
    pair = LinearGaussian(**options)
    x = pair.marginal().sample((rows,))
    return pair, x, unfitted(pair, x)


# --- fits with a known answer ----------------------------------------------------------------------------------------


class GlobalMean(nn.Module):
    """theta ~ N(0, 10^2), x_n ~ N(theta, 1): the posterior is normal."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        global_mean(x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(self.loc, self.log_scale.exp()))


def global_mean(x: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


def fit_global_mean(auto: bool, seed: int = 0) -> tuple[float, float]:
    """(posterior sd / exact sd, (posterior mean - exact mean) / exact sd) after 2,000 steps of 100 of 1,000 rows."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(seed)) + 2
    precision = len(x) + 1 / 10**2
    pair = pv.Pair(global_mean, AutoNormal(global_mean)) if auto else GlobalMean()
    pv.fit(
        pair,
        x,
        epochs=200,
        batch_size=100,
        # Many particles, and a short memory of the gradient's size: the answer, not the optimiser's noise, is wanted.
        loss=pv.Trace_ELBO(100),
        optimizer=lambda leaves: torch.optim.Adam(leaves, betas=(0.9, 0.99), fused=True),
        schedule=pv.schedules.one_cycle(0.1),
        seed=seed,
        progress=False,
    )
    if auto:
        loc, scale = pair.guide.locs.theta, pair.guide.scales.theta  # type: ignore[union-attr]
    else:
        loc, scale = pair.loc, pair.log_scale.exp()  # type: ignore[union-attr]
    exact = precision**-0.5
    return scale.item() / exact, (loc.item() - x.double().sum().item() / precision) / exact


def digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, divided by 16: 1,437 training and 360 test rows."""
    x = torch.from_numpy(load_digits().data).float() / 16
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    return x[:1437], x[1437:]


def linear_vae(latent: int, seed: int = 0) -> tuple[pv.Fit, dist.MultivariateNormal]:
    """A linear VAE fitted to the digits in 3,000 steps of 100 rows, and its marginal N(b, W W' + s^2 I) in float64."""
    train, _ = digits()
    torch.manual_seed(seed)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(latent),
        likelihood=pv.mlp(latent, pv.families.Normal(64, scale="shared"), hidden=()),
        encoder=pv.mlp(64, pv.families.Normal(latent, scale="column"), hidden=()),
    )
    epochs = -(-3000 * 100 // len(train))
    schedule = pv.schedules.one_cycle(2e-2)
    fitted = pv.fit(vae, train, epochs=epochs, batch_size=100, schedule=schedule, seed=seed, progress=False)
    corners = torch.cat([torch.zeros(1, latent), torch.eye(latent)])
    mean = pv.decode(fitted, corners).double()
    weights = (mean[1:] - mean[0]).T
    with torch.no_grad():
        noise = vae.likelihood(corners).base_dist.scale.double().unique()
    if len(noise) != 1:
        raise AssertionError(f"The scale is to be shared, got {noise}.")
    return fitted, dist.MultivariateNormal(mean[0], weights @ weights.T + noise**2 * torch.eye(64, dtype=torch.float64))


def pca_comparison(latent: int, num_samples: int = 1000) -> dict[str, float]:
    """Mean test log p(x) in nats per row: of the fitted linear VAE in closed form, of probabilistic PCA on the same
    rows, and by importance sampling."""
    train, test = (x.double() for x in digits())
    fitted, marginal = linear_vae(latent)
    closed = marginal.log_prob(test)
    found = pv.importance(fitted, test.float(), num_samples, seed=0)
    pca = float(PCA(n_components=latent).fit(train.numpy()).score(test.numpy()))
    return {
        "ours": closed.mean().item(),
        "pca_score": pca,
        "difference": closed.mean().item() - pca,
        "closed_form_minus_importance": (closed - found.log_likelihood).mean().item(),
        "importance_error": found.standard_error.square().mean().sqrt().item() / len(test) ** 0.5,
        "k_hat_above_threshold": found.summary()["k_hat_above_threshold"],
    }
