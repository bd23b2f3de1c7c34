"""What the estimators share: rows are checked as scikit-learn does it, scaled, fitted in float64, and asked one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyrovae._arguments import as_number, as_widths, index_of, told
from pyrovae._lazily import Lazily
from pyrovae.batching.splits import Split
from pyrovae.criticism.proposals import check_proposal
from pyrovae.data.scaling import Standardize
from pyrovae.errors import DataError, OptionError, PairError, counted
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.common import common_draws
from pyrovae.pair.parameters import every_module, fork_rng, seed_torch
from pyrovae.pair.program import PairLike, arguments
from pyrovae.pair.turns import turn
from pyrovae.sklearn._search import RATE, Judge, Start, best_fit
from pyrovae.tables.recipe import EM_STEPS
from pyrovae.training import schedules
from pyrovae.training.fit import fit

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

Array = NDArray[Any]
Graph = Callable[..., PairLike]

DRAW_SEED = 20_131_220  # of the base draws that all rows share
EAGER_BELOW = 300  # steps, in which a trace would not pay off
FEWEST_VALIDATION_ROWS = 10
UNTRAINED: dict[str, Any] = {"epochs": 0, "validation": None, "patience": None, "schedule": None}


class VAEEstimator(BaseEstimator):
    """The base of all estimators: options of the fit, and how rows become tensors."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # --- rows

    def _rows(self, X: Any, *, reset: bool) -> Array:
        """Rows as float64, NaN where missing, checked as scikit-learn does."""
        return self._given(X, reset=reset).astype(np.float64, copy=False)

    def _given(self, X: Any, *, reset: bool) -> Array:
        """Rows as float64, or float32 where they are given so, as `_rows` checks them."""
        refuse_repeated(X)
        refuse_categories(X)
        X = with_nan(X)
        checked: Array = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
        )
        if reset and np.isnan(checked).all():
            raise DataError("Input X contains NaN in every entry: at least one column needs an observed one.")
        return checked

    def _learn_scale(self, X: Array) -> None:
        self._scaling = self._scaling_of(X)

    def _scaling_of(self, X: Array) -> Standardize:
        x = as_tensor(X)
        if self.standardize:
            return Standardize.fit(x)
        return Standardize(torch.zeros_like(x[0]), torch.ones_like(x[0]))

    def _scaled(self, X: Array) -> Tensor:
        return self._scaling.apply(as_tensor(X))

    def _unscaled(self, x: Tensor) -> Array:
        found: Array = self._scaling.invert(x.double()).cpu().numpy()
        return found

    # --- fitting

    def _fit_pair(self, rows: Sequence[Tensor], default: Graph, **options: Any) -> None:
        """Fit the graph, or the default one, to rows, one tensor an argument of the model, and leave `fit_` and `n_iter_`.

        Torch's random state is as before afterwards. Weights are float64.
        """
        check_options(self)
        seed = seed_of(self.random_state)
        with float64(), fork_rng():
            seed_torch(seed)
            pair = make_pair(self.graph, default, rows)
            self._keep(self._train(pair, rows, seed, **options))

    def _fit_best(self, x: Tensor, starts: Sequence[Start], judge: Judge, **options: Any) -> None:
        """Fit the given graph, or of some default ones the one that is best in the validation rows, as `_fit_pair` does.

        Default graphs are made from the rows that they learn from: of one that starts as a density of the validation rows, too,
        these would prefer the first epochs, in which it still knows them.
        """
        if self.graph is not None:
            return self._fit_pair([x], starts[0].graph, rate=RATE, **options)
        check_options(self)
        seed = seed_of(self.random_state)
        judges = self._held_out_by(seed, len(x))
        learned = np.setdiff1d(np.arange(len(x)), judges)

        def fit_one(start: Start) -> Fit:
            seed_torch(seed)
            pair = make_pair(None, start.graph, [x[learned]])
            how = options | ({} if start.trained else UNTRAINED)
            return self._train(pair, [x], seed, rate=start.rate, **how)

        with float64(), fork_rng():
            self._keep(best_fit(starts if len(judges) else starts[:1], fit_one, judge, x[judges]))

    def _held_out_by(self, seed: int, num_rows: int) -> Array:
        """The numbers of the rows that a fit with this seed holds out, none of few."""
        share = float(self.validation_fraction or 0.0) if self._validates(num_rows) else 0.0
        return Split(num_rows, test_fraction=0.0, validation_fraction=share, seed=seed).validation.numpy()

    def _validates(self, num_rows: int) -> bool:
        """Whether some of the rows are held out to find the best epoch. OptionError where all of them would be."""
        share = self.validation_fraction
        if share is None or self.n_iter_no_change is None or share * num_rows < FEWEST_VALIDATION_ROWS:
            return False
        if math.ceil(share * num_rows) >= num_rows:
            raise OptionError(
                f"validation_fraction={share:g} leaves none of {counted(num_rows, 'row')} to learn from. A tenth, 0.1, is "
                "usual."
            )
        return True

    def _keep(self, fitted: Fit) -> None:
        names = self._columns()
        self.fit_: Fit = fitted
        self.fit_.columns = {next(iter(arguments(fitted.pair))): names} if names else {}
        self.n_iter_ = len(fitted.history) or EM_STEPS  # a Normal is found by EM

    def _columns(self) -> list[str]:
        """The names of the columns that the model has; none where rows come without."""
        return [str(name) for name in getattr(self, "feature_names_in_", ())]

    def _train(
        self, pair: PairLike, rows: Sequence[Tensor], seed: int, *, rate: float | None = None, **options: Any
    ) -> Fit:
        """Fit a pair, with the options of `pv.fit` that differ from those of the estimator.

        Args:
            pair: The pair.
            rows: One tensor for each argument of the model.
            seed: The seed of the fit.
            rate: The highest learning rate where the estimator is given none.
            options: Of `pv.fit`.
        """
        num_rows, share = len(rows[0]), self.validation_fraction
        size = min(self.batch_size, num_rows)
        if share is not None and self._validates(num_rows):
            options = {"validation": float(share), "patience": self.n_iter_no_change} | options
            size = min(size, num_rows - math.ceil(share * num_rows))
        rate = self._rate(rate)
        options = {"batch_size": size, "schedule": schedules.one_cycle(rate), "epochs": self.max_iter} | options
        names = list(arguments(pair))
        if len(names) < len(rows):
            raise PairError(
                f"The model of the graph takes ({', '.join(names)}), and needs {len(rows)} arguments: x and y."
            )
        return fit(
            pair,
            dict(zip(names, rows)),
            learning_rate=rate,
            seed=seed,
            device="cpu",
            engine="eager" if self.max_iter * math.ceil(num_rows / size) < EAGER_BELOW else "traced",
            progress=None if self.verbose else False,
            **options,
        )

    def _rate(self, usual: float | None) -> float:
        """The highest learning rate: the given one, or the usual one of a start."""
        rate = usual if self.learning_rate_init is None else self.learning_rate_init
        if rate is None:
            raise OptionError("learning_rate_init must be positive, got None.")
        return float(rate)

    # --- asking

    def _fitted(self) -> Fit:
        check_is_fitted(self, "fit_")
        return self.fit_

    @contextmanager
    def _asking(self) -> Iterator[Fit]:
        """The fit, to be asked with one set of base draws for all rows: a row's answer depends on that row alone."""
        with float64(), common_draws(DRAW_SEED):
            yield self._fitted()


class VAETransformerMixin(TransformerMixin):
    """A transformer whose answers are float32 for rows of float32; they are computed in float64."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


# --- options

FLAGS = {"standardize", "sample_posterior", "add_indicator", "keep_empty_features"}
COUNTS = {
    "n_components",
    "max_iter",
    "batch_size",
    "n_draws",
    "n_particles",
    "n_clusters",
    "n_neighbors",
    "n_iter_no_change",
}
SEARCHES = ("auto", "none")
MAY_BE_NONE = {"n_components", "n_neighbors", "n_iter_no_change"}


def check_options(estimator: Any) -> None:
    """OptionError unless the options that all estimators have are possible."""
    given = estimator.get_params(deep=False)
    for name in COUNTS & set(given):
        if (value := given[name]) is None and name in MAY_BE_NONE:
            continue
        if (number := index_of(value)) is None or number < 1:
            none = ", or None" if name in MAY_BE_NONE else ""
            raise OptionError(f"{name} must be a whole number of at least 1{none}, got {told(value)}.")
    for name in FLAGS & set(given):
        if not isinstance(value := given[name], (bool, np.bool_)):
            raise OptionError(f"{name} must be True or False, got {told(value)}.")
    as_widths("hidden_layer_sizes", given["hidden_layer_sizes"])
    if (share := given["validation_fraction"]) is not None:
        as_number("validation_fraction", share, above=0, below=1, also=", or None")
    if (rate := given["learning_rate_init"]) is not None:
        as_number("learning_rate_init", rate, above=0)
    if "search" in given and given["search"] not in SEARCHES:
        raise OptionError(f"search must be {' or '.join(map(repr, SEARCHES))}, got {told(given['search'])}.")
    if "contamination" in given and not is_auto(given["contamination"]):
        as_number("contamination", given["contamination"], above=0, most=0.5, also=', or "auto"')
    if "false_alarm_rate" in given:
        as_number("false_alarm_rate", given["false_alarm_rate"], above=0, most=0.5)
    if "proposal" in given:
        check_proposal(given["proposal"])


def is_auto(value: Any) -> bool:
    """Whether an option is "auto"."""
    return isinstance(value, str) and value == "auto"


def seed_of(random_state: Any) -> int:
    """The seed that an estimator's `random_state` gives. OptionError for what scikit-learn does not take as one."""
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        raise OptionError(
            f"random_state must be a whole number from 0 to {2**32 - 1}, a numpy.random.RandomState, or None, got "
            f"{told(random_state)}."
        ) from error


def as_tensor(X: Array) -> Tensor:
    """A copy of an array, which may be read-only, or turned around."""
    return torch.from_numpy(np.array(X, dtype=np.float64, order="C"))


def make_pair(graph: Any, default: Graph, rows: Sequence[Tensor]) -> PairLike:
    """The pair to fit, with float64 weights: a copy of the given one, or what the given or the default function returns."""
    if graph is None:
        pair = default(*rows)
    elif callable(getattr(graph, "model", None)) and callable(getattr(graph, "guide", None)):
        if isinstance(graph, type):
            raise PairError(
                f"graph={graph.__name__} is a class: give a pair, or a function of the rows that returns one."
            )
        pair = copy.deepcopy(graph)
    elif callable(graph):
        pair = graph(*rows)
    else:
        given = "x, y" if len(rows) > 1 else "x"
        raise PairError(
            f"graph must be a pair, with `model` and `guide`, or a function of the training rows, graph({given}), that returns "
            f"one; got {graph!r:.80}."
        )
    for side in ("model", "guide"):
        if not callable(getattr(pair, side, None)):
            raise PairError(f"graph returned {type(pair).__name__}, which has no `{side}`: return a pair.")
    for module in every_module(pair).values():
        module.double()
    return pair


@contextmanager
def float64() -> Iterator[None]:
    """Let tensors that are made without a dtype be float64 inside."""
    with turn():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def refuse_repeated(X: Any) -> None:
    """DataError for a DataFrame in which several columns have the same name; it says which."""
    columns: Any = getattr(X, "columns", None)
    if not getattr(columns, "is_unique", True):
        repeated = columns[columns.duplicated()].unique()
        raise DataError(
            f"X must have columns of different names, and several are called {', '.join(map(repr, repeated[:5]))}: rename "
            "them, leave all but one out, or pass X.to_numpy()."
        )


def refuse_categories(X: Any) -> None:
    """DataError for a DataFrame with columns of text or categories, which names them and the cure."""
    if not hasattr(X, "dtypes") or not hasattr(X, "columns") or not hasattr(X, "iloc"):
        return
    wrong = [str(name) for i, (name, kind) in enumerate(zip(X.columns, X.dtypes)) if not _is_number(X, i, kind)]
    if wrong:
        listed = ", ".join(map(repr, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise DataError(
            f"X must be numbers, and {len(wrong)} of {len(X.columns)} columns are not: {listed}. Encode them, as by "
            "sklearn.preprocessing.OneHotEncoder in a ColumnTransformer, or leave them out."
        )


def with_nan(X: Any) -> Any:
    """Masked entries, and gaps of any kind among objects, as NaN; other rows as they are. What is given is not changed."""
    if np.ma.isMaskedArray(X):
        return np.where(np.ma.getmaskarray(X), np.nan, np.ma.getdata(X))
    if hasattr(X, "isetitem"):  # a DataFrame of pandas, which is not imported to ask
        for place in np.flatnonzero([pd.api.types.is_object_dtype(kind) for kind in X.dtypes]):
            X = X.copy(deep=False)
            X.isetitem(int(place), pd.to_numeric(X.iloc[:, place], errors="coerce"))
    elif isinstance(X, np.ndarray) and X.dtype == object:
        return np.where(pd.isna(X), np.nan, X)
    return X


def _is_number(X: Any, place: int, kind: Any) -> bool:
    if pd.api.types.is_numeric_dtype(kind):
        return True
    if not pd.api.types.is_object_dtype(kind):
        return False
    column = X.iloc[:, place]  # numbers, and gaps of any kind
    return bool(pd.to_numeric(column, errors="coerce").notna().eq(column.notna()).to_numpy().all())
