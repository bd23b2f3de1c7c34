"""M1+M2 in two stages: the second is the whole pair with the first as it stands, also on some dimensions of z1."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import CLASSES, LATENT, SMALL, binary, labels
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.errors import OptionError

D = 3  # dimensions of z1


def of_images() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior=pv.priors.StandardNormal(D),
        likelihood=pv.mlp(D, fam.Bernoulli(6), **SMALL),
        encoder=pv.mlp(6, fam.Normal(D), **SMALL),
    )


def of_codes(size: int = D) -> pv.SSVAE:
    torch.manual_seed(1)
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(CLASSES, learned=True),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, CLASSES), fam.Normal(size), **SMALL),
        encoder=pv.mlp((size, CLASSES), fam.Normal(LATENT), **SMALL),
        classifier=pv.mlp(size, fam.Categorical((), CLASSES), **SMALL),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


@pytest.mark.parametrize("known", [True, False], ids=["labelled", "unlabelled"])
def test_the_second_stage_has_the_gradient_of_the_whole_pair(known: bool) -> None:
    m1, m2 = of_images(), of_codes()
    pair, x = pv.StackedSSVAE.of(m1, m2), binary()
    more = {"y": labels(known=40)} if known else {}
    layouts = [pv.check_pair(one, {"x": rows, **more}) for one, rows in ((m2, torch.randn(40, D)), (pair, x))]
    torch.manual_seed(2)
    z1 = m1.encoder(x).sample()  # the same noise as that of the pair, whose first draw it is
    above = pv.Trace_ELBO()(m2, {"x": z1, **more}, layout=layouts[0])
    torch.manual_seed(2)
    whole = pv.Trace_ELBO()(pair, {"x": x, **more}, layout=layouts[1])
    below = (m1.likelihood(z1).log_prob(x) - m1.encoder(x).log_prob(z1)).sum()
    torch.testing.assert_close(whole.elbo, above.elbo + below)
    parameters = dict(m2.named_parameters())
    wanted = torch.autograd.grad(above.objective, list(parameters.values()))
    found = torch.autograd.grad(whole.objective, list(parameters.values()))
    for name, one, other in zip(parameters, found, wanted):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_both_stages_and_the_pair_that_joins_them(tmp_path: Path) -> None:
    x, y = binary(), labels()
    common: dict[str, Any] = {"seed": 0, "engine": "eager", "progress": False}
    m1 = pv.fit(of_images(), x, epochs=1, **common)
    with m1.scope():
        q = m1.pair.encoder(x)  # type: ignore[attr-defined]
    codes = torch.stack([q.mean, q.stddev], 1)
    m2 = pv.fit(of_codes(), {"x": codes, "y": y}, epochs=1, transform=pv.transforms.DrawNormal(), **common)
    both = pv.fit(pv.StackedSSVAE.of(m1.pair, m2.pair), {"x": x, "y": y}, epochs=0, **common)  # type: ignore[arg-type]
    assert both.history == [] and pv.generate(both, 3, seed=0).shape == (3, 6)
    torch.testing.assert_close(pv.encode(both, x, site="z1"), pv.encode(m1, x))
    # q(y | x) = E_q(z1 | x)[q(y | z1)], and at a standard deviation of 0 that of the mean
    draws = 2000
    with both.scope():
        torch.manual_seed(0)
        wanted = both.pair.classifier(q.sample((draws,))).probs.mean(0)  # type: ignore[attr-defined]
        at_mean = both.pair.classifier(q.mean).probs  # type: ignore[attr-defined]
    found = pv.classify(both, x, num_samples=draws)
    # errors of two averages of numbers between 0 and 1: 10 standard errors of the difference, at most
    torch.testing.assert_close(found.guide, wanted.double(), rtol=0, atol=10 * 0.5 * (2 / draws) ** 0.5)
    still = torch.stack([q.mean, torch.zeros_like(q.stddev)], 1)
    torch.testing.assert_close(pv.classify(m2, still, num_samples=1).guide, at_mean.double())
    loaded = pv.load(pv.save(both, tmp_path / "run"))
    assert torch.equal(pv.classify(loaded, x, num_samples=5).joint, pv.classify(both, x, num_samples=5).joint)


def encoders() -> dict[str, Any]:
    return {
        "normal": fam.Normal(4),
        "one scale": fam.Normal(4, scale="shared"),
        "column scales": fam.Normal(4, scale="column"),
        "full": fam.FullNormal(4),
        "low-rank": fam.LowRankNormal(4, 2),
    }


def covariance(q: Any) -> Tensor:
    if hasattr(q, "factor"):  # S (I + A A') S
        root = (
            torch.cat([torch.eye(q.loc.shape[-1]).expand(*q.factor.shape[:-1], -1), q.factor], -1) * q.scale[..., None]
        )
        return root @ root.mT
    return q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)


@pytest.mark.parametrize("family", encoders().values(), ids=encoders())
@pytest.mark.parametrize("dims", [(2, 0), [3], torch.tensor([True, False, True, False])], ids=str)
def test_the_marginal_of_a_normal_has_its_moments(family: Any, dims: Any) -> None:
    torch.manual_seed(0)
    encoder = pv.mlp(6, family, **SMALL)
    some = pv.Marginal(encoder, dims)
    x = torch.rand(2, 5, 6)
    whole, q = encoder(x), some(x)
    numbers = list(some.dims)
    assert q.batch_shape == (2, 5) and q.event_shape == some.event_shape == (len(numbers),)
    torch.testing.assert_close(q.mean, whole.mean[..., numbers])
    torch.testing.assert_close(covariance(q), covariance(whole)[..., numbers, :][..., numbers], rtol=1e-4, atol=1e-5)
    z = q.rsample()
    assert q.log_prob(z).shape == (2, 5) and z.requires_grad


def test_dimensions_that_the_decoder_ignores_can_go() -> None:
    """log p(x) by quadrature in two dimensions, and in the one that is left."""
    torch.manual_seed(0)
    decoder, encoder = pv.mlp(2, fam.Bernoulli(6), hidden=()), pv.mlp(6, fam.Normal(2), hidden=())
    with torch.no_grad():
        (weight,) = (p for p in decoder.parameters() if p.dim() == 2)
        weight[:, 0] = 0.0
    x = binary()[:10]
    full = pv.VAE(pv.priors.StandardNormal(2), decoder, encoder)
    few = pv.VAE(pv.priors.StandardNormal(1), pv.Padded(decoder, (1,), 2), pv.Marginal(encoder, (1,)))
    one, two = (pv.fit(pair, x, epochs=0, progress=False) for pair in (few, full))
    found, wanted = (pv.quadrature(fitted, x).log_likelihood for fitted in (one, two))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_padded_puts_zeros_for_the_others() -> None:
    torch.manual_seed(0)
    decoder = pv.mlp((4, 2), fam.Normal(6), **SMALL)
    z, other = torch.randn(3, 5, 2), torch.randn(5, 2)
    wanted = torch.zeros(3, 5, 4)
    wanted[..., 3], wanted[..., 1] = z.unbind(-1)
    found, expected = pv.Padded(decoder, (3, 1), size=4)(z, other), decoder(wanted, other)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.stddev, expected.stddev)


def test_dimensions_in_a_run_folder(tmp_path: Path) -> None:
    whole, x = of_images(), binary()
    dims = (2, 0)
    pair = pv.VAE(pv.priors.StandardNormal(2), pv.Padded(whole.likelihood, dims, D), pv.Marginal(whole.encoder, dims))
    fitted = pv.fit(pair, x, epochs=2, batch_size=20, seed=0, engine="traced", progress=False)
    loaded = pv.load(pv.save(fitted, tmp_path / "run"))
    assert torch.equal(pv.encode(loaded, x), pv.encode(fitted, x))


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Independent(torch.distributions.Laplace(x, 1.0), 1)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: pv.Marginal(Flat(), ()), pv.OptionError, "different ints"),
        (lambda: pv.Marginal(Flat(), (0, 0)), pv.OptionError, "different ints"),
        (lambda: pv.Marginal(Flat(), (-1,)), pv.OptionError, "different ints"),
        (lambda: pv.Marginal(Flat(), (0.5,)), pv.OptionError, "different ints"),
        (lambda: pv.Marginal(Flat(), torch.zeros(6, dtype=torch.bool)), pv.OptionError, "at least one True"),
        (lambda: pv.Marginal(Flat(), (6,))(torch.zeros(1, 6)), pv.PairError, "events have shape (6,)"),
        (lambda: pv.Marginal(Flat(), (1,))(torch.zeros(1, 6)), pv.PairError, "got Independent"),
        (lambda: pv.Marginal(Flat(), ("z",)), pv.OptionError, "different ints"),  # type: ignore[arg-type]
        (lambda: pv.Marginal(Flat(), None), pv.OptionError, "different ints"),  # type: ignore[arg-type]
        (lambda: pv.Padded(Flat(), (6,), 6), pv.OptionError, "from 0 to 5"),
        (lambda: pv.Padded(Flat(), torch.ones(5, dtype=torch.bool), 6), pv.OptionError, "a mask of 6 bools"),
        (lambda: pv.Padded(Flat(), (0, 1), 6)(torch.zeros(4, 3)), pv.ShapeError, "(*batch, 2), got (4, 3)"),
    ],
)
def test_dimensions_that_cannot_be_are_refused(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)


def test_of_joins_pairs_of_the_two_kinds() -> None:
    for wrong in ((1, 2), (None, None)):
        with pytest.raises(OptionError, match="joins a VAE and an SSVAE"):
            pv.StackedSSVAE.of(*wrong)  # type: ignore[arg-type]
