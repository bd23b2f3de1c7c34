"""A transform may change values, shapes and dtypes, and add arguments; what it returns is checked before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import pyrovae as pv
import pyrovae.families as fam

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 10, "seed": 0, "progress": False}


def raw_bytes(n: int = 30, *shape: int) -> Tensor:
    return torch.randint(0, 256, (n, *(shape or (6,))), dtype=torch.uint8)


def vae() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp(2, fam.ContinuousBernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
    )


class Predicts(nn.Module):
    """p(x | y) with an optional weight: a model of several arguments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 6)

    def model(self, x: Tensor, y: Tensor, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(y + z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(y, 1.0).to_event(1))


def scaled(b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": b["x"].float() / 255}


def flat(b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": b["x"].flatten(1).float() / 255}


def with_y(b: dict[str, Tensor]) -> dict[str, Tensor]:
    x = b["x"].float() / 255
    return {"x": x, "y": x[:, :2]}


def from_image(b: dict[str, Tensor]) -> dict[str, Tensor]:
    return with_y({"x": b["image"]})


# transform, pair, data as they are, and the same data as the model takes them
CASES: dict[str, tuple[Any, Callable[[], Any], Any, Callable[[Any], Any]]] = {
    "a dtype": (scaled, vae, raw_bytes, scaled),
    "a shape": (flat, vae, lambda: raw_bytes(30, 2, 3), flat),
    "an argument more": (with_y, Predicts, raw_bytes, with_y),
    "other names": (from_image, Predicts, lambda: {"image": raw_bytes()}, from_image),
}


class Listed(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def questions(fitted: pv.Fit, data: Any) -> list[Tensor]:
    return [
        pv.importance(fitted, data, 5, seed=0, proposal="guide").elbo,
        pv.prior_log_likelihood(fitted, data, 5, seed=0),
        pv.posterior(fitted, data, 1, num_particles=5, seed=0, proposal="guide"),
        pv.encode(fitted, data),
        pv.reconstruct(fitted, data),
        pv.kl_by_site(fitted, data)["z"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["tensor", *(pytest.param(form, marks=pytest.mark.slow) for form in ("array", "dataset"))]
)
@pytest.mark.parametrize("name", CASES)
def test_every_verb_applies_the_transform(name: str, form: str, tmp_path: Path) -> None:
    """Fit and questions on the data as they are equal those on data that were transformed beforehand."""
    transform, build, make, before = CASES[name]
    torch.manual_seed(1)
    raw = make()
    named = raw if isinstance(raw, dict) else {"x": raw}
    ready = before(named)
    given: Any = {n: v.numpy() for n, v in named.items()} if form == "array" else named
    if form == "dataset":
        given = Listed([{n: v[i] for n, v in named.items()} for i in range(30)])
    engine = "traced" if (name, form) in (("a dtype", "dataset"), ("other names", "tensor")) else "eager"
    found = pv.fit(build(), given, transform=transform, engine=engine, **OPTIONS)
    wanted = pv.fit(build(), ready, engine=engine, **OPTIONS)
    assert [row["elbo"] for row in found.history] == [row["elbo"] for row in wanted.history]
    if form != "array":
        assert all(torch.equal(a, b) for a, b in zip(questions(found, given), questions(wanted, ready), strict=True))
    pair = pv.load(pv.save(found, tmp_path / "run"), build(), transform=transform)
    assert torch.equal(pv.encode(pair, given), pv.encode(wanted, ready))


def test_validation_rows_are_transformed_too() -> None:
    torch.manual_seed(1)
    raw = raw_bytes()
    found = pv.fit(vae(), raw, validation=raw[:9], check_also=raw, transform=scaled, engine="eager", **OPTIONS)
    ready = scaled({"x": raw})["x"]
    wanted = pv.fit(vae(), ready, validation=ready[:9], engine="eager", **OPTIONS)
    assert found.history[-1]["validation_elbo"] == wanted.history[-1]["validation_elbo"]


def test_rows_that_were_transformed_already_are_refused() -> None:
    raw = raw_bytes()
    fitted = pv.fit(vae(), raw, transform=scaled, engine="eager", **OPTIONS)
    for ask in (pv.encode, pv.importance, pv.reconstruct):
        with pytest.raises(pv.DataError, match=r"dtype uint8, as in the fit, got \(6,\) float32"):
            ask(fitted, raw.float() / 255)
    assert pv.decode(fitted, torch.zeros(3, 2)).shape == (3, 6)
    assert pv.generate(fitted, 4).shape == (4, 6)


BAD: dict[str, tuple[Any, str]] = {
    "no dict": (lambda b: b["x"], "dict of tensors"),
    "no tensor": (lambda b: {"x": b["x"].numpy()}, "dict of tensors"),
    "a number": (lambda b: {"x": b["x"].sum()}, "dict of tensors"),
    "a name too many": (lambda b: {**b, "mask": b["x"] > 0}, r"returns \['mask'\].*takes only \(x, y, w\)"),
    "nothing of y": (lambda b: {"x": b["x"]}, r"leaves out \['y', 'w'\]"),
    "nothing of w": (lambda b: {"x": b["x"], "y": b["y"]}, r"leaves out \['w'\]"),
    "fewer rows": (lambda b: {n: v[1:] for n, v in b.items()}, "must keep the 10 rows"),
    "rows of one": (lambda b: {**b, "y": b["y"][:3]}, "must keep the 10 rows.*'y': 3"),
    "what is not there": (lambda b: {**b, "x": b["mask"]}, "reads 'mask', and these rows have only 'x', 'y', 'w'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_transform_returns_is_checked(name: str) -> None:
    transform, match = BAD[name]
    data = {"x": torch.rand(30, 6), "y": torch.rand(30, 2), "w": torch.rand(30)}
    with pytest.raises(pv.OptionError, match=match):
        pv.fit(Predicts(), data, transform=transform, **OPTIONS)


def test_data_that_no_transform_completes_are_refused() -> None:
    with pytest.raises(pv.DataError, match=r"also needs \['y'\]"):
        pv.fit(Predicts(), raw_bytes(), **OPTIONS)
    for transform in (scaled, lambda b: b, pv.transforms.Binarize()):
        with pytest.raises(pv.DataError, match=r"neither the data nor transform give \['y'\]"):
            pv.fit(Predicts(), torch.rand(30, 6), transform=transform, **OPTIONS)


def test_codes_are_drawn_from_their_means_and_standard_deviations() -> None:
    torch.manual_seed(0)
    mean, sd = torch.tensor([[-3.0, 0.0], [5.0, 1.0]]), torch.tensor([[0.5, 2.0], [1.0, 0.0]])
    batch = {"x": torch.stack([mean, sd], 1), "w": torch.zeros(2)}
    draws = torch.stack([pv.transforms.DrawNormal()(batch)["x"] for _ in range(4000)]).double()
    # 4 means and 4 standard deviations within 5 standard errors each: a false alarm in some 200,000 runs
    assert ((draws.mean(0) - mean).abs() <= 5 * sd / 4000**0.5 + 1e-6).all()
    assert ((draws.std(0) - sd).abs() <= 5 * sd / 8000**0.5 + 1e-6).all()
    assert draws[:, 1, 1].unique().tolist() == [1.0]  # at a standard deviation of 0 it is the mean


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (torch.rand(30, 6), r"\(N, 2, \*event\), got float32 \(30, 6\)|got float32 \(10, 6\)"),
        (torch.rand(30), "got float32"),
        (torch.ones(30, 2, 6, dtype=torch.int64), "got int64"),
        (-torch.rand(30, 2, 6), "negative or NaN"),
        (torch.rand(30, 2, 6) / torch.tensor([1.0, 0.0])[:, None] * 0, "NaN"),
    ],
    ids=["no pairs", "numbers", "integers", "negative", "nan"],
)
def test_what_are_no_codes_is_refused(rows: Tensor, match: str) -> None:
    with pytest.raises(pv.DataError, match=match):
        pv.fit(vae(), rows, transform=pv.transforms.DrawNormal(), **OPTIONS)


def test_codes_of_another_name_are_refused() -> None:
    with pytest.raises(pv.DataError, match=r"DrawNormal\('z'\): the data have no such argument, only \['x'\]"):
        pv.fit(vae(), torch.rand(30, 6), transform=pv.transforms.DrawNormal("z"), **OPTIONS)
