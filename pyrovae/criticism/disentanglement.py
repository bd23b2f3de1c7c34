"""Scores of disentanglement: does each dimension of the codes stand for one factor of variation, and each factor in one?

All take `codes (N, D)`, such as `pv.encode(fitted, x)`, and the true `factors (N, K)` of the same rows, arrays or tensors.
Factors of at most 50 whole numbers are taken as categories, others as continuous. For codes that are the factors themselves,
scores are near 1 where factors are independent of each other and rows are many, in any order, and on any scale of each code as
long as `factor_vae_score` and `infomec` do not leave it out: they do where it spreads less than a twentieth of the largest.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrovae._arguments import as_count, as_seed
from pyrovae._lazily import Lazily
from pyrovae.criticism.factors import (
    BINS,
    Array,
    as_array,
    binned,
    codes_and_factors,
    halves,
    is_continuous,
    levels_of,
    mutual_information,
    rows_that_share,
)
from pyrovae.errors import DataError

ensemble, linear_model, tree = Lazily("sklearn.ensemble"), Lazily("sklearn.linear_model"), Lazily("sklearn.tree")
selection, metrics = Lazily("sklearn.feature_selection"), Lazily("sklearn.metrics")

DEAD = 0.05  # of the largest standard deviation, or range, of a code: below it, a code says nothing

__all__ = ["DCI", "InfoMEC", "beta_vae_score", "dci", "factor_vae_score", "infomec", "mig", "sap"]


def mig(codes: Any, factors: Any, bins: int = BINS) -> float:
    """The mutual information gap, `1/K sum_k (I(z_first; v_k) - I(z_second; v_k)) / H(v_k)`, from 0 to 1.

    First and second are the two codes that say most of a factor. Mutual information is that of a table of counts: codes, and
    continuous factors, are cut into bins of equal width between their smallest and their largest value. Its bias, about
    (levels - 1)(bins - 1)/(2 N) nats, is much the same for both codes.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`.
        bins: Their number, at least 2.

    Raises:
        DataError: The arrays do not fit each other, hold NaN, or a factor has a single value.
        OptionError: `bins` is no whole number of at least 2.

    References:
        Chen et al. 2018, arXiv:1802.04942, section 4. Bins as in Locatello et al. 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.stack(np.meshgrid(range(5), range(5)), -1).reshape(-1, 2)
        >>> round(pv.disentanglement.mig(3.0 - factors[:, ::-1], factors), 3)
        1.0
        >>> both = np.stack([factors[:, 0] + factors[:, 1], factors[:, 0] - factors[:, 1]], 1)
        >>> round(pv.disentanglement.mig(both, factors), 3)
        0.0
    """
    z, v = codes_and_factors(codes, factors)
    bins = as_count("bins", bins, 2)
    gaps = []
    for factor in v.T:
        levels = levels_of(factor, bins)
        information = sorted(mutual_information(binned(code, bins), levels) for code in z.T)
        second = information[-2] if len(information) > 1 else 0.0
        gaps.append((information[-1] - second) / mutual_information(levels, levels))
    return float(np.mean(gaps))


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness and informativeness, each at most 1, as `dci` returns them.

    Attributes:
        disentanglement: 1 where each code is important for one factor only; codes count by their importance.
        completeness: 1 where one code only is important for each factor.
        informativeness: How well factors are predicted on rows that were held out, the mean over factors: accuracy above that
            of the most frequent level, as a share of what was missing to 1, or R^2 of a continuous factor; at least 0.
        importance: `(D, K)`, how much each code contributes to the prediction of each factor; columns sum to 1, or are 0.

    Example:
        >>> pv.disentanglement.DCI(0.9, 0.8, 0.7, np.eye(2)).completeness
        0.8
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Array


def dci(codes: Any, factors: Any, num_trees: int = 20, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness from the importance R of codes in predicting factors.

    `D_d = 1 - H_K(R_d.)` and `C_k = 1 - H_D(R_.k)`, where H_n is the entropy to the base n of what is given, scaled to sum 1.
    Predictors are random forests, one for each factor, on half of the rows; importances are those of impurity.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`.
        num_trees: The trees of a forest.
        seed: Of the forests and of the halves.

    Raises:
        DataError: As for `mig`.
        OptionError: `num_trees` is no whole number of at least 1.

    References:
        Eastwood and Williams 2018, *A framework for the quantitative evaluation of disentangled representations*, ICLR.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 4, (400, 2))
        >>> found = pv.disentanglement.dci(factors[:, ::-1], factors)
        >>> found.informativeness, bool(found.disentanglement > 0.95)
        (1.0, True)
    """
    z, v = codes_and_factors(codes, factors)
    num_trees = as_count("num_trees", num_trees, 1)
    seed = as_seed(seed, least=0, most=2**32 - 1)  # as scikit-learn takes it
    train, test = halves(len(z), seed)
    importance, right = np.zeros((z.shape[1], v.shape[1])), []
    for k, factor in enumerate(v.T):
        levels = None if is_continuous(factor) else levels_of(factor)
        target = factor if levels is None else levels
        forest = ensemble.RandomForestRegressor if levels is None else ensemble.RandomForestClassifier
        predictor = forest(num_trees, random_state=seed, max_features=None).fit(z[train], target[train])
        importance[:, k] = predictor.feature_importances_
        score = predictor.score(z[test], target[test])
        chance = 0.0 if levels is None else np.bincount(levels[test]).max() / len(test)
        right.append(max(0.0, (score - chance) / (1 - chance)) if chance < 1 else 0.0)
    total = importance.sum()
    shares = importance.sum(1) / total if total else np.zeros(len(importance))
    disentanglement = float(shares @ _concentration(importance))
    return DCI(disentanglement, float(_concentration(importance.T).mean()), float(np.mean(right)), importance)


def sap(codes: Any, factors: Any, seed: int = 0) -> float:
    """The separated attribute predictability: how much better the best code alone predicts a factor than the second best.

    The mean over factors, from 0 to 1. A code is judged by R^2, its squared correlation, with a continuous factor, and for one
    of C levels by the balanced accuracy of at most C - 1 thresholds, chosen on half of the rows and judged on the others. The
    accuracy a is counted from chance on, as (a - 1/C)/(1 - 1/C), so that the largest gap is 1 for all factors.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`.
        seed: Of the halves.

    Raises:
        DataError: As for `mig`.

    References:
        Kumar, Sattigeri and Balakrishnan 2018, arXiv:1711.00848, who do not subtract chance.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 3, (300, 2))
        >>> pv.disentanglement.sap(factors, factors) > 0.9
        True
        >>> pv.disentanglement.sap(np.repeat(factors, 2, axis=1), factors)
        0.0
    """
    z, v = codes_and_factors(codes, factors)
    seed = as_seed(seed, least=0, most=2**32 - 1)  # as scikit-learn takes it
    train, test = halves(len(z), seed)
    gaps = []
    for factor in v.T:
        scores = sorted(_predicts(code, factor, train, test, seed) for code in z.T)
        gaps.append(scores[-1] - (scores[-2] if len(scores) > 1 else 0.0))
    return float(np.mean(gaps))


def factor_vae_score(codes: Any, factors: Any, num_votes: int = 500, batch_size: int = 64, seed: int = 0) -> float:
    """How often the code that varies least tells which factor was held: the FactorVAE score, from 1/K (chance) to 1.

    A vote holds one factor, chosen at random, at the value of a random row, takes `batch_size` rows with that value (with
    repetition), and notes which code, in units of its standard deviation, has the least variance. Half of the votes say which
    factor each code stands for, by majority; the score is the accuracy on the other half. Codes of which the standard deviation
    is below a twentieth of the largest take no part; where all are constant the score is 0.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`. Continuous factors are cut into 20 bins of equal width.
        num_votes: In each half.
        batch_size: Rows of a vote, at least 2.
        seed: Of the votes.

    Raises:
        DataError: As for `mig`.
        OptionError: `num_votes` is no whole number of at least 1, or `batch_size` none of at least 2.

    References:
        Kim and Mnih 2018, arXiv:1802.05983, section 4. They draw new rows for each vote, here they are among those given.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 5, (500, 2))
        >>> pv.disentanglement.factor_vae_score(factors, factors)
        1.0
    """
    z, v = codes_and_factors(codes, factors)
    num_votes, batch_size = as_count("num_votes", num_votes, 1), as_count("batch_size", batch_size, 2)
    spread = z.std(0)
    alive = (np.ptp(z, axis=0) > 0) & (spread > DEAD * spread.max())  # that of equal numbers is not 0 to rounding
    if not alive.any():
        return 0.0
    z = z[:, alive] / spread[alive]
    rng = np.random.default_rng(as_seed(seed, least=0))
    held, rows = rows_that_share(v, 2 * num_votes, batch_size, rng)
    least = z[rows].var(1).argmin(1)
    votes = np.zeros((z.shape[1], v.shape[1]), dtype=int)
    np.add.at(votes, (least[:num_votes], held[:num_votes]), 1)
    return float((votes.argmax(1)[least[num_votes:]] == held[num_votes:]).mean())


def beta_vae_score(codes: Any, factors: Any, num_votes: int = 500, batch_size: int = 64, seed: int = 0) -> float:
    """The accuracy of a linear classifier that tells which factor pairs of rows share: the BetaVAE score, 1/K (chance) to 1.

    An example holds one factor, chosen at random, takes `batch_size` pairs of rows that share its value, and averages the
    absolute differences of their codes, in units of the standard deviation of the code.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`. Continuous factors are cut into 20 bins of equal width.
        num_votes: Examples to train on, and as many to test on.
        batch_size: Pairs of an example, at least 2.
        seed: Of the examples.

    Raises:
        DataError: As for `mig`.
        OptionError: As for `factor_vae_score`.

    References:
        Higgins et al. 2017, *beta-VAE*, ICLR. They do not scale the codes.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 5, (500, 2))
        >>> pv.disentanglement.beta_vae_score(factors, factors)
        1.0
    """
    z, v = codes_and_factors(codes, factors)
    num_votes, batch_size = as_count("num_votes", num_votes, 1), as_count("batch_size", batch_size, 2)
    z = z / np.where(np.ptp(z, axis=0) > 0, z.std(0), 1.0)
    rng = np.random.default_rng(as_seed(seed, least=0))
    held, rows = rows_that_share(v, 2 * num_votes, 2 * batch_size, rng, per_value=2)
    difference = np.abs(z[rows[:, ::2]] - z[rows[:, 1::2]]).mean(1)
    if len(np.unique(held[:num_votes])) < 2:  # of a single factor, or of few votes: there is one answer to learn
        return float((held[num_votes:] == held[0]).mean())
    classifier = linear_model.LogisticRegression(C=100.0, max_iter=1000).fit(difference[:num_votes], held[:num_votes])
    return float(classifier.score(difference[num_votes:], held[num_votes:]))


@dataclass(frozen=True)
class InfoMEC:
    """Modularity, explicitness and compactness, each from 0 to 1, as `infomec` returns them.

    Attributes:
        modularity: 1 where each code in use informs of one factor only.
        explicitness: 1 where a linear classifier of all codes tells the levels of each factor.
        compactness: 1 where one code only informs of each factor.
        information: `I(z_d; v_k) / H(v_k)`, `(D, K)`; 0 for codes that are not in use.

    Example:
        >>> pv.disentanglement.InfoMEC(0.9, 0.8, 0.7, np.eye(2)).modularity
        0.9
    """

    modularity: float
    explicitness: float
    compactness: float
    information: Array


def infomec(codes: Any, factors: Any, num_neighbors: int = 10, seed: int = 0) -> InfoMEC:
    """InfoMEC: modularity and compactness from normalised mutual information, explicitness from that of a linear predictor.

    With `R_dk = I(z_d; v_k) / H(v_k)` of the D codes whose range is above a twentieth of the largest,

        modularity  = (1/D sum_d max_k R_dk / sum_k R_dk - 1/K) / (1 - 1/K)
        compactness = (1/K sum_k max_d R_dk / sum_d R_dk - 1/D) / (1 - 1/D)

    and explicitness is `1 - L_k / log C_k`, the mean over factors, where L_k is the log loss of a logistic regression of the
    C_k levels on all codes, on the same rows, with levels weighted alike. Mutual information of codes that are whole numbers is
    that of a table of counts, of others the nearest-neighbour estimate on rows whose level occurs twice, of which H(v_k) is
    then taken, too. Where explicitness is near 0, the other two are shares of next to nothing, and mean nothing.

    Args:
        codes: `(N, D)`.
        factors: `(N, K)`. Continuous factors are cut into 20 bins of equal width.
        num_neighbors: Of the estimate.
        seed: Of the noise that it adds to codes that repeat.

    Returns:
        The three, see `InfoMEC`. With a single factor modularity is 1, with a single code in use compactness is 1; with no code
        in use all are 0.

    Raises:
        DataError: As for `mig`; or fewer than two levels of a factor occur twice, which the nearest-neighbour estimate needs.
        OptionError: `num_neighbors` is no whole number of at least 1.

    References:
        Hsu et al. 2023, arXiv:2305.18378; Ross 2014, *PLoS ONE* 9(2), for the nearest-neighbour estimate.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 4, (400, 2))
        >>> found = pv.disentanglement.infomec(factors, factors)
        >>> bool(min(found.modularity, found.compactness) > 0.95), round(found.explicitness, 2)
        (True, 1.0)
    """
    z, v = codes_and_factors(codes, factors)
    num_neighbors, seed = as_count("num_neighbors", num_neighbors, 1), as_seed(seed, least=0, most=2**32 - 1)
    ranges = np.ptp(z, axis=0)
    alive = ranges > DEAD * ranges.max()
    information = np.zeros((z.shape[1], v.shape[1]))
    if not alive.any():
        return InfoMEC(0.0, 0.0, 0.0, information)
    z = (z - z.mean(0)) / np.where(alive, z.std(0), 1.0)
    explicit = []
    for k, factor in enumerate(v.T):
        levels = levels_of(factor, BINS)
        several = levels[np.bincount(levels)[levels] > 1]  # the rows that have a neighbour of the same level
        for d in np.flatnonzero(alive):
            given = as_array(codes)[:, d]
            if not is_continuous(given):
                information[d, k] = mutual_information(levels_of(given), levels) / mutual_information(levels, levels)
                continue
            if len(np.unique(several)) < 2:
                raise DataError(
                    f"infomec needs two levels of factor {k} that occur at least twice, to estimate what code {d} says of it: "
                    "give it more rows, or a factor of fewer levels."
                )
            found = selection.mutual_info_classif(
                z[:, [d]], levels, discrete_features=False, n_neighbors=num_neighbors, random_state=seed
            )[0]
            information[d, k] = max(0.0, found) / mutual_information(several, several)
        weights = (len(levels) / np.bincount(levels) / len(np.unique(levels)))[levels]
        model = linear_model.LogisticRegression(C=1e3, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of separable levels there is no best fit to converge to
            model.fit(z, levels, sample_weight=weights)
        loss = metrics.log_loss(levels, model.predict_proba(z), sample_weight=weights)
        explicit.append(max(0.0, 1 - loss / np.log(len(np.unique(levels)))))
    return InfoMEC(
        _specific(information[alive]), float(np.mean(explicit)), _specific(information[alive].T), information
    )


# --- what they share -------------------------------------------------------------------------------------------------


def _concentration(weights: Array) -> Array:
    """1 - entropy of each row to the base of its length: 1 for a single entry, 0 for equal ones, and for a row of zeros."""
    total = weights.sum(1, keepdims=True)
    shares = np.divide(weights, total, out=np.full_like(weights, 1 / weights.shape[1]), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    if weights.shape[1] == 1:
        return (total[:, 0] > 0).astype(float)
    found: Array = 1 + (shares * logs).sum(1) / np.log(weights.shape[1])
    return found


def _specific(information: Array) -> float:
    """The mean over rows of the largest share of a row, scaled so that equal shares give 0 and a single one 1."""
    n = information.shape[1]
    total = information.sum(1)
    largest = np.divide(information.max(1), total, out=np.full_like(total, 1 / n), where=total > 0)
    return 1.0 if n == 1 else float((largest.mean() - 1 / n) / (1 - 1 / n))


def _predicts(code: Array, factor: Array, train: Array, test: Array, seed: int) -> float:
    """How well one code predicts one factor, from 0 to 1."""
    if np.ptp(code) == 0:
        return 0.0
    if is_continuous(factor):
        return float(np.corrcoef(code, factor)[0, 1] ** 2)
    levels = levels_of(factor)
    num = int(levels.max()) + 1
    thresholds = tree.DecisionTreeClassifier(max_leaf_nodes=num, class_weight="balanced", random_state=seed)
    found = thresholds.fit(code[train, None], levels[train]).predict(code[test, None])
    there = np.unique(levels[test])
    accuracy = np.mean([(found[levels[test] == level] == level).mean() for level in there])
    return max(0.0, float(accuracy - 1 / num) / (1 - 1 / num))
