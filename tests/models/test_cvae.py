"""A prior of a conditional VAE that all values of c share: codes then leave out what c says."""

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.errors import PairError


def batches() -> dict[str, Tensor]:
    """Rows of two batches, of which one is moved by 3 in every column."""
    generator = torch.Generator().manual_seed(0)
    c = torch.arange(400) % 2
    z = torch.randn(400, 1, generator=generator)
    x = z * torch.tensor([1.0, -1.0, 0.5, 1.0]) + 0.3 * torch.randn(400, 4, generator=generator)
    return {"x": x + 3.0 * c[:, None], "c": c}


def build(prior: object) -> pv.CVAE:
    torch.manual_seed(0)
    return pv.CVAE(
        condition=pv.nets.OneHot(2),
        prior=prior,  # type: ignore[arg-type]
        likelihood=pv.mlp((1, 2), fam.Normal(4, scale="shared"), hidden=(16,)),
        encoder=pv.mlp((4, 2), fam.Normal(1), hidden=(16,)),
    )


def test_codes_under_a_prior_that_batches_share_do_not_tell_the_batch() -> None:
    data = batches()
    fitted = pv.fit(build(pv.priors.StandardNormal(1)), data, epochs=40, learning_rate=1e-2, progress=False, seed=0)
    z = pv.encode(fitted, data)[:, 0]
    apart = (z[data["c"] == 1].mean() - z[data["c"] == 0].mean()).abs() / z.std()
    assert apart < 0.3  # and what z is worth is still in it:
    assert torch.corrcoef(torch.stack([z, data["x"][:, 0] - 3.0 * data["c"]]))[0, 1].abs() > 0.9


@pytest.mark.parametrize(
    "prior",
    [
        pv.priors.StandardNormal(1),
        pv.priors.MixtureOfNormals(1, num_components=3),
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
    ],
)
def test_any_prior_without_parents_can_be_shared(prior: object, tmp_path: Path) -> None:
    data, pair = batches(), build(prior)
    assert "p(z) p(x | z, c)" in pv.graph_text(pair, data)
    fitted = pv.fit(pair, data, epochs=1, engine="eager", progress=False, seed=0)
    pv.save(fitted, tmp_path / "run")
    again = pv.load(tmp_path / "run")
    rows = {name: part[:5] for name, part in data.items()}
    expected = pv.log_likelihood(fitted, rows, 10, seed=0)
    torch.testing.assert_close(pv.log_likelihood(again, rows, 10, seed=0), expected)
    assert pv.generate(again, 3, given={"c": torch.tensor([0, 1, 1])}).shape == (3, 4)


def test_a_prior_that_is_given_c_still_is() -> None:
    assert "p(z | c) p(x | z, c)" in pv.graph_text(build(pv.mlp(2, fam.Normal(1), hidden=())), batches())


def test_what_is_no_prior_is_refused() -> None:
    with pytest.raises(PairError, match="A prior is a distribution"):
        build("normal")
