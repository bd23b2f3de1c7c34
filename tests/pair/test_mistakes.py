"""What a beginner gets wrong is told with the line that it is in, and with the cure that fits the case."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

N, D, L = 40, 4, 2
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3


class Plain(nn.Module):
    """A right pair, of which the others are faulty copies."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(L, D), nn.Linear(D, 2 * L)

    def q(self, x: Tensor) -> Any:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


class WrongSize(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(L + 1, D)


class Signed(Plain):
    def q(self, x: Tensor) -> Any:
        loc, scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, scale).to_event(1)


class HalfDouble(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = self.decoder.double()


class NoEvent(Plain):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0), obs=x)


class FixedPlate(Plain):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", N + 1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class FixedPlates(FixedPlate):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", N + 1):
            pyro.sample("z", self.q(x))


class Subsamples(Plain):
    """As Pyro's own minibatches: both plates are those of all rows, and all local terms have one scale."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 10 * N, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 10 * N, subsample_size=len(x)):
            pyro.sample("z", self.q(x))


class OtherPlate(Plain):
    def model(self, x: Tensor) -> None:
        with pyro.plate("observed_rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("observed_rows", len(x)):
            pyro.sample("z", self.q(x))


class PlateAsLoop(Plain):
    def model(self, x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample(f"x_{i}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[i])

    def guide(self, x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", self.q(x[i]))


class Loop(PlateAsLoop):
    def model(self, x: Tensor) -> None:
        for i in range(len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample(f"x_{i}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[i])

    def guide(self, x: Tensor) -> None:
        for i in range(len(x)):
            pyro.sample(f"z_{i}", self.q(x[i]))


class TwicePlate(Plain):
    def model(self, x: Tensor) -> None:
        super().model(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])


WRONG: dict[str, tuple[Any, str]] = {
    "a plate that is made twice": (TwicePlate, r"named 'data' .*make it once, rows = pyro.plate\('data', len\(x\)\)"),
    "a layer of another size": (WrongSize, r"cannot be multiplied .*test_mistakes.py, line \d+: pyro.sample\(\"x\""),
    "a scale of either sign": (
        Signed,
        r"the scale of Normal has to be positive: .*softplus.*return dist.Normal\(loc, scale\)",
    ),
    "weights of two dtypes": (
        HalfDouble,
        r"line \d+: .*weights are float32 and float64: make them one, as by pair.float",
    ),
    "no event": (NoEvent, r"at site x dim -1, 40 vs 4 \(test_mistakes.py.*use .to_event\(n\)"),
    "plates of another size": (FixedPlates, r"41 vs 40 .*has 40 rows: write `pyro.plate\('data', len\(x\)\)`"),
    "two sizes of a plate": (
        FixedPlate,
        r"has size 40 in the guide and 41 in the model.*`pyro.plate\('data', len\(x\)\)`",
    ),
    "a plate of another name": (OtherPlate, "is to be named 'data': it is 'observed_rows' here"),
    "a loop": (Loop, r"'x_13', \.\.\. 80 in all\]\)\. That is one site for all rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_its_line_and_its_cure(case: str) -> None:
    pair, message = WRONG[case]
    with pytest.raises(pv.PairError, match=message):
        pv.check_pair(pair(), X)


def test_a_plate_of_all_rows_in_the_model_alone_is_refused_by_a_fit() -> None:
    """Its terms would count N/B times those of the guide, and the guide would be far too sure: nothing else tells."""
    with pytest.raises(pv.PairError, match="has size 20 in the guide and 41 in the model"):
        pv.fit(FixedPlate(), X, epochs=1, batch_size=20, engine="eager", progress=False)
    pv.check_pair(Subsamples(), X)


class Centred(Plain):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + x.mean(0), 1.0).to_event(1), obs=x)


class SiteBelowIf(Plain):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)
            if x.sum() == X.sum():
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])


class OddSums(Plain):
    """Adds up numbers in another order where the number of rows is odd, as products of matrices do for some numbers of rows."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
            some = torch.tensor([1.0, 3.0, 7.0]) / 11 * x[:, :3]
            first, second, third = (some.flip(-1) if len(x) % 2 else some).unbind(-1)
            loc = 0.1 * self.decoder(z) + (first + second + third)[:, None]
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.decoder.weight.new_zeros(L), 1.0).to_event(1))


def test_rounding_of_large_numbers_is_no_dependence() -> None:
    x = 1e5 * torch.arange(1.0, 82.0)[:, None].expand(81, X.shape[1]) / 7
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No gradient reaches 'encoder")
        warnings.filterwarnings("ignore", message=".* columns")
        warnings.filterwarnings("error", message=".*depends on the other rows")
        for rows in (x[:54], x[:58], x[:62]):  # whose halves are odd
            pv.check_pair(OddSums(), rows)


def test_rows_that_depend_on_one_another_are_told() -> None:
    with pytest.warns(UserWarning, match=r"at site 'x' of the model depends on the other rows.*such as x.mean\(0\)"):
        pv.check_pair(Centred(), X)
    with pytest.warns(UserWarning, match=r"Site 'y' is there or not .*torch.where\(...\) in place of an `if`"):
        pv.check_pair(SiteBelowIf(), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair, data in ((Plain(), X), (labelled(), {"x": X, "y": torch.where(Y > 1, -1, Y)}), (Subsamples(), X)):
            pv.check_pair(pair, data)


def test_a_plate_as_a_loop_is_told() -> None:
    with pytest.warns(UserWarning) as told:
        pv.check_pair(PlateAsLoop(), X)
    said = str(told[0].message)
    assert "Site 'z_0' is in a loop" in said and "`with pyro.plate('data', len(x))` once" in said


def test_a_class_in_place_of_an_object_is_told() -> None:
    for ask in (pv.check_pair, lambda pair, x: pv.fit(pair, x, epochs=1, progress=False)):
        with pytest.raises(pv.PairError, match=r"Plain is a class: make one of it, Plain\(...\)"):
            ask(Plain, X)
    with pytest.raises(pv.OptionError, match=r"IWELBO is a class: make one of it, IWELBO\(...\)"):
        pv.fit(Plain(), X, epochs=1, loss=pv.IWELBO, progress=False)


def test_a_scale_that_is_not_positive_is_told_where_torch_does_not_look() -> None:
    torch.manual_seed(0)
    message = r"not finite in \d+ of 40 places: .* values of its scale are not positive, .*softplus"
    with dist.validation_enabled(False), pytest.raises(pv.PairError, match=message):
        pv.check_pair(Signed(), X)


def labelled(classes: int = 3) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(classes),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, classes), fam.Normal(D), hidden=(8,)),
        encoder=pv.mlp((D, classes), fam.Normal(L), hidden=(8,)),
        classifier=pv.mlp(D, fam.Categorical((), num_classes=classes), hidden=(8,)),
        code=pv.nets.OneHot(classes),
    )


class Aged(nn.Module):
    """p(z | age) p(x | z) p(t | z): of two arguments of one number, t is a column, and so is age, if it is given as one."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.mlp(1, fam.Normal(L), hidden=(8,))
        self.likelihood, self.t_given_z = pv.mlp(L, fam.Normal(D), hidden=(8,)), pv.mlp(L, fam.Normal(1), hidden=(8,))
        self.encoder = pv.mlp((D, 1), fam.Normal(L), hidden=(8,))

    def model(self, x: Tensor, t: Tensor, age: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(age))
            pyro.sample("x", self.likelihood(z), obs=x)
            pyro.sample("t", self.t_given_z(z), obs=t)

    def guide(self, x: Tensor, t: Tensor, age: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x, t))


FORMS: dict[str, tuple[Callable[[], Any], dict[str, Tensor], str]] = {
    "a label as a column": (labelled, {"x": X, "y": Y[:, None]}, r"The pair runs if y.squeeze\(1\)"),
    "a label in one-hot form": (
        labelled,
        {"x": X, "y": nn.functional.one_hot(Y, 3)},
        r"The pair runs if y.argmax\(1\)",
    ),
    "a condition of one number": (
        Aged,
        {"x": X, "t": X[:, :1], "age": X[:, 0]},
        r"The pair runs if age.unsqueeze\(1\)",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_argument_that_has_another_form_is_found_by_trying(case: str) -> None:
    """Of several, only the one that is wrong."""
    pair, data, message = FORMS[case]
    with pytest.raises(pv.PairError, match=message):
        pv.check_pair(pair(), data)


def test_a_form_that_would_not_help_is_not_named() -> None:
    class Wrong(Plain):
        def model(self, x: Tensor, c: Tensor) -> None:  # type: ignore[override]
            super().model(x[:, :3])

        def guide(self, x: Tensor, c: Tensor) -> None:  # type: ignore[override]
            super().guide(x)

    with pytest.raises(pv.PairError) as error:
        pv.check_pair(Wrong(), {"x": X, "c": X[:, :1]})
    assert "squeeze" not in str(error.value)


def quick(pair: Any, data: Any) -> pv.Fit:
    return pv.fit(pair, data, epochs=1, seed=0, engine="eager", progress=False)


def test_labels_from_1_are_to_start_at_0() -> None:
    with pytest.raises(pv.DataError, match="numbered from 0, and these go from 1 to 3: subtract 1"):
        quick(labelled(), {"x": X, "y": Y + 1})
    with pytest.raises(pv.DataError, match="build the model for 4 classes, 0 to 3"):
        quick(labelled(), {"x": X, "y": torch.arange(N) % 4})


def test_gaps_name_both_parts_that_have_to_take_them() -> None:
    vae = pv.VAE(
        pv.priors.StandardNormal(L), pv.observed_only(pv.mlp(L, fam.Normal(D))), pv.mlp(D, fam.Normal(L), hidden=(8,))
    )
    gaps = X.masked_fill(X > 1, torch.nan)
    with pytest.raises(pv.DataError, match=r"takes both: .*pv.observed_only\(likelihood\), and an encoder .*WithMask"):
        quick(vae, gaps)


def test_a_table_is_sent_to_the_functions_for_tables() -> None:
    table = pd.DataFrame({"a": ["u", "v"] * 20, "b": np.ones(N)})
    with pytest.raises(pv.DataError, match=r"'u' \(str\) in row 0, column 'a'. pv.tables.infer\(table\)"):
        quick(Plain(), table)


def test_one_row_is_to_have_a_dimension_of_rows() -> None:
    fitted = quick(Plain(), X)
    with pytest.raises(pv.DataError, match=r"For one row, give x\[None\]"):
        pv.encode(fitted, X[0])
    with pytest.raises(pv.PairError, match=r"one row here, of shape \(40, 4\): the first dimension"):
        pv.check_pair(Plain(), X[None])


def test_an_argument_by_another_name_is_told_with_the_names() -> None:
    with pytest.raises(
        pv.DataError, match=r"does not take \['label'\]. Pass a dict whose keys are these names, \{'x': ..., ...\}"
    ):
        quick(labelled(), {"x": X, "label": Y})


def test_a_fit_of_one_epoch_says_so() -> None:
    assert ": 1 epoch, ELBO" in repr(quick(Plain(), X))


NAMES = {"sample": "generate or posterior", "compare": "log_likelihood or stacking_weights", "importence": "importance"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_another_here_is_told(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}' \(did you mean {NAMES[name]}"):
        getattr(pv, name)
    assert not hasattr(pv, "__somewhere__")


def test_names_that_are_suggested_exist() -> None:
    lazily = importlib.import_module("pyrovae._lazily")
    for names in lazily.CALLED_HERE.values():
        for name in names:
            found: Any = pv
            for part in name.split("."):
                found = getattr(found, part)


@pytest.mark.parametrize("through", [False, True], ids=["the guide's Normal refuses NaN", "the density is not finite"])
def test_check_pair_says_what_to_do_about_gaps(through: bool) -> None:
    class Reads(Plain):
        def guide(self, x: Tensor) -> None:
            super().guide(x.nan_to_num() if through else x)

    class Kept(Reads):
        def model(self, x: Tensor) -> None:
            with pyro.validation_enabled(False):
                super().model(x)

    x = X.clone()
    x[3, 0] = torch.nan
    with pytest.raises(
        pv.PairError, match=r"NaN.*likelihood=pv\.observed_only\(likelihood\), and an encoder that takes NaN"
    ):
        pv.check_pair(Kept(), x)
