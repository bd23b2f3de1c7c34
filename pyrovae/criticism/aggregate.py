"""The aggregate posterior against the prior: can a classifier tell codes of rows from codes that the model draws?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.criticism.evidence import Evidence
from pyrovae.criticism.findings import Finding, grade

linear_model, preprocessing = Lazily("sklearn.linear_model"), Lazily("sklearn.preprocessing")
pipeline, approximation = Lazily("sklearn.pipeline"), Lazily("sklearn.kernel_approximation")
decomposition, stats = Lazily("sklearn.decomposition"), Lazily("scipy.stats")

PART = "latent variables"
MOST_UNITS = 30  # beyond which codes are projected at random
QUADRATIC_UNITS = 12  # up to which products of units are features, too
SHOWN = 400  # points of the picture


def aggregate_posterior(evidence: Evidence) -> list[Finding]:
    """A classifier two-sample test of codes of the rows, one posterior draw each, against codes drawn from the model.

    A logistic regression on the units, their squares and products, and random features of a Gaussian kernel is trained on half
    of the codes, and its accuracy on the other half is compared with 1/2 by the binomial test. Draws are from the posterior,
    not the guide, so that an inexact guide is not taken for a prior at odds with the data.

    References:
        Lopez-Paz & Oquab 2017, arXiv:1610.06545. Makhzani et al. 2016, arXiv:1511.05644, for the aggregate posterior.
    """
    posterior = evidence.posterior
    prior = [evidence.simulate(part, len(part.rows), evidence.seed + 10) for part in evidence.parts]
    names = [n for n in posterior[0] if all(n in draws and n in one.latent for draws, one in zip(posterior, prior))]
    if not names:
        return []
    of_rows = [torch.cat([draws[name][0] for draws in posterior]) for name in names]
    of_prior = [torch.cat([one.latent[name] for one in prior]) for name in names]
    both = _features([torch.cat(values) for values in zip(of_rows, of_prior)])
    codes, drawn = np.split(both, [len(of_rows[0])])
    rng = np.random.default_rng(evidence.seed)
    width = both.shape[1]
    if width > MOST_UNITS:
        projection = rng.normal(size=(width, MOST_UNITS)) / np.sqrt(width)
        codes, drawn = codes @ projection, drawn @ projection
    right, tested = _accuracy(codes, drawn, rng)
    share = right / tested
    spread = drawn.std(0)
    varies = spread > 1e-9  # of a class that the prior has not drawn there is no such unit
    moved = np.divide(codes.mean(0) - drawn.mean(0), spread, out=np.zeros_like(spread), where=varies)
    ratio = np.divide(codes.std(0), spread, out=np.ones_like(spread), where=varies)
    unit = int(np.abs(moved).argmax())
    site = ", ".join(names)
    return [
        Finding(
            "aggregate posterior",
            PART,
            f"a classifier tells codes of rows from codes of the prior in {share:.1%} of {tested} cases; means of units differ "
            f"by up to {abs(moved[unit]):.2f} sd, sd are {ratio.min():.2f} to {ratio.max():.2f} of the prior's ({site})",
            "50 %, as by chance: the codes of all rows together follow the prior",
            grade(share - 0.5, 0.05, 0.15),
            "The prior is at odds with the codes: some rows drawn from it look like none of the data. Learn the prior "
            "(mixture, vamp, flow), or train for longer.",
            values={"accuracy": share, "tested": float(tested), "largest_shift": float(abs(moved[unit]))},
            p_value=float(stats.binom.sf(right - 1, tested, 0.5)),
            curves=_picture(codes, drawn),
        )
    ]


def _features(values: list[Tensor]) -> NDArray[Any]:
    """Codes `(N, *event)` of several sites as `(N, D)`; class numbers become indicators of those that occur in any row."""
    columns = []
    for value in values:
        rows = value.reshape(len(value), -1).double().cpu()
        if not value.is_floating_point() and rows.shape[1] == 1 and rows.max() < 100:
            rows = torch.nn.functional.one_hot(rows.squeeze(1).long()).double()
        columns.append(rows)
    return torch.cat(columns, 1).numpy()


def _accuracy(codes: NDArray[Any], drawn: NDArray[Any], rng: np.random.Generator) -> tuple[int, int]:
    """How many of the second half are told apart by a classifier that is trained on the first half."""
    x = np.concatenate([codes, drawn])
    y = np.repeat([1, 0], [len(codes), len(drawn)])
    halves = rng.permutation(len(codes)), rng.permutation(len(drawn)) + len(codes)
    train, test = (
        np.concatenate([h[: len(h) // 2] if first else h[len(h) // 2 :] for h in halves]) for first in (True, False)
    )
    seed = int(rng.integers(2**31))
    kernel = approximation.RBFSampler(gamma=1 / (2 * x.shape[1]), n_components=60, random_state=seed)
    quadratic = preprocessing.PolynomialFeatures(2, include_bias=False)
    plain = preprocessing.FunctionTransformer(lambda v: np.concatenate([v, v**2], 1))
    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        pipeline.make_union(quadratic if x.shape[1] <= QUADRATIC_UNITS else plain, kernel),
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=0.1, max_iter=300),
    )
    model.fit(x[train], y[train])
    return int((model.predict(x[test]) == y[test]).sum()), len(test)


def _picture(codes: NDArray[Any], drawn: NDArray[Any]) -> dict[str, Any]:
    """Two coordinates of both: the units themselves, or the principal components of the codes."""
    if codes.shape[1] == 1:
        return {"codes": codes[:SHOWN].tolist(), "prior": drawn[:SHOWN].tolist()}
    if codes.shape[1] > 2:
        components = decomposition.PCA(2, random_state=0).fit(codes)
        codes, drawn = components.transform(codes), components.transform(drawn)
    return {"codes": codes[:SHOWN].tolist(), "prior": drawn[:SHOWN].tolist()}
