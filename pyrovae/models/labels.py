"""The semi-supervised VAE with several labels: each of them is known of some rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae._arguments import as_several, told
from pyrovae.errors import OptionError
from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class LabelsVAE(nn.Module):
    """M2 with L labels: model `p(y1) ... p(yL) p(z) p(x|z,y1,...,yL)`, guide `q(y1|x) ... q(yL|x) q(z|x,y1,...,yL)`.

    The data are x, `(N, *event)`, and class numbers y1, ..., yL, `(N,)`, such as the species and the sex of an animal; -1 is
    unknown. `fit` groups rows by which labels are known, and calls the pair without those that are not: there are up to 2^L
    groups, and at most 16 are taken, which suffices for four labels, whatever is known of them. Unknown labels are summed out
    exactly. A row without any label passes encoder and likelihood once for each of the C1 ... CL combinations of classes: these
    are to be few hundred. Each known label adds `alpha log q(yl|x)` to the objective, which trains its classifier; it is not
    part of `log p(x, y1, ..., yL)` and of reported bounds.

    The labels are independent before x is seen, and in the guide given x. By Bayes' rule they are not: `pv.classify(fitted,
    rows, site="y2")` takes other labels into account where the rows have them, and sums over them where they do not. Where
    several are unknown, log p(x) is estimated with draws of the guide, as no proposal is refined for combinations of classes.

    Args:
        label_priors: `p(yl)` of each label, priors over its classes, such as `priors.Categorical(C)`.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z,y1,...,yL)`, a conditional called as `likelihood(z, code1, ..., codeL)`.
        encoder: `q(z|x,y1,...,yL)`, a conditional called as `encoder(x, code1, ..., codeL)`.
        classifiers: `q(yl|x)` of each label, conditionals called as `classifier(x)`, whose families have a finite support.
        codes: What encodes each label for the networks, such as `nets.OneHot(C)`.
        alpha: How many times each known label counts in its classifier's term, positive.

    Attributes:
        optional_arguments: The names of the labels, "y1", ..., "yL".

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: There is no label, or not one prior, classifier and code for each; or `alpha` is not positive.

    References:
        Kingma, Rezende, Mohamed and Welling 2014, arXiv:1406.5298, for one label.

    Example:
        >>> pair = pv.LabelsVAE(
        ...     label_priors=[pv.priors.Categorical(3), pv.priors.Categorical(2)],
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 3, 2), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3, 2), fam.Normal(2), hidden=(8,)),
        ...     classifiers=[pv.mlp(6, fam.Categorical((), classes), hidden=(8,)) for classes in (3, 2)],
        ...     codes=[pv.nets.OneHot(3), pv.nets.OneHot(2)],
        ... )
        >>> x, row = torch.bernoulli(torch.full((40, 6), 0.4)), torch.arange(40)
        >>> y1, y2 = torch.where(row < 20, row % 3, -1), torch.where(row % 4 > 0, row % 2, -1)
        >>> fitted = pv.fit(pair, {"x": x, "y1": y1, "y2": y2}, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, {"x": x, "y1": y1}, site="y2").predicted.shape
        torch.Size([40])
    """

    def __init__(
        self,
        label_priors: Sequence[nn.Module | Distribution],
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifiers: Sequence[nn.Module],
        codes: Sequence[nn.Module],
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        label_priors = as_several("label_priors", label_priors, "priors, one for each label")
        classifiers = as_several("classifiers", classifiers, "conditionals, one for each label")
        codes = as_several("codes", codes, "modules, one for each label")
        for name, parts in (("classifiers", classifiers), ("codes", codes)):
            if wrong := [one for one in parts if not isinstance(one, nn.Module)]:
                raise OptionError(f"{name} must be a list of modules, and {told(wrong[0])} is none.")
        counts = {"label_priors": len(label_priors), "classifiers": len(classifiers), "codes": len(codes)}
        if len(set(counts.values())) > 1 or not len(codes):
            raise OptionError(
                f"Each label needs a prior, a classifier and a code, and there must be a label: got {counts}."
            )
        self.label_priors, self.prior = nn.ModuleList(map(as_prior, label_priors)), as_prior(prior)
        self.likelihood, self.encoder = likelihood, encoder
        self.classifiers, self.codes = nn.ModuleList(classifiers), nn.ModuleList(codes)
        self.alpha = positive_alpha(alpha)
        self.optional_arguments = tuple(f"y{number}" for number in range(1, len(codes) + 1))

    def model(self, x: Tensor, **known: Tensor | None) -> Tensor:
        with pyro.plate("data", len(x)):
            codes = []
            for name, y, prior, classifier, code in self._labels(known):
                if y is not None:
                    with pyro.poutine.scale(scale=self.alpha):
                        pyro.sample(f"{name}|x", classifier(x), obs=y, infer={"objective_only": True})
                codes.append(code(pyro.sample(name, prior(), obs=y)))
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, *codes), obs=x)

    def guide(self, x: Tensor, **known: Tensor | None) -> Tensor:
        with pyro.plate("data", len(x)):
            codes = []
            for name, y, _, classifier, code in self._labels(known):
                if y is None:
                    y = pyro.sample(name, classifier(x), infer={"enumerate": "parallel"})
                codes.append(code(y))
            return pyro.sample("z", self.encoder(x, *codes))

    def _labels(self, known: Mapping[str, Tensor | None]) -> Iterator[tuple[str, Tensor | None, Any, Any, Any]]:
        """The name, the values if they are known, the prior, the classifier and the code of each label."""
        if unknown := sorted(known.keys() - set(self.optional_arguments)):
            raise TypeError(
                f"The labels of this pair are {', '.join(self.optional_arguments)}, got {', '.join(unknown)}."
            )
        values = [known.get(name) for name in self.optional_arguments]
        return zip(self.optional_arguments, values, self.label_priors, self.classifiers, self.codes)
