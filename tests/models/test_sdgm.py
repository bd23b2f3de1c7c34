"""The skip deep generative model: its terms are those of the article's factorisation, and a is integrated out right."""

import math

import torch
from support.programs import CLASSES, LATENT, binary, labels, sdgm
from torch.distributions import Normal

import pyrovae as pv
import pyrovae.families as fam


def test_terms_are_those_of_the_graph() -> None:
    """With labels: log p(y) + log p(z) + log p(a|z,y) + log p(x|a,z,y), alpha log q(y|a,x), and log q(a|x) + log q(z|a,x,y)."""
    torch.manual_seed(0)
    pair, x, y = sdgm(), binary(10), labels(10, known=10)
    run = pv.terms(pair, {"x": x, "y": y})
    a, z, code = run.sites["a"].value, run.sites["z"].value, torch.eye(CLASSES)[y]
    prior = pv.priors.StandardNormal(LATENT)()
    wanted = {
        "y": (torch.full((10,), -math.log(CLASSES)), None),
        "z": (prior.log_prob(z), pair.encoder(a, x, code).log_prob(z)),
        "a": (pair.auxiliary(z, code).log_prob(a), pair.auxiliary_encoder(x).log_prob(a)),
        "x": (pair.likelihood(a, z, code).log_prob(x), None),
        "y|a,x": (pair.classifier(a, x).log_prob(y), None),
    }
    assert set(run.sites) == set(wanted)
    for name, sides in wanted.items():
        term = run.sites[name]
        for side, log_prob in zip((term.p, term.q), sides):
            assert (side is None) == (log_prob is None)
            if side is not None and log_prob is not None:
                torch.testing.assert_close(side.log_prob, log_prob)
    alpha = run.sites["y|a,x"].p
    assert run.sites["y|a,x"].objective_only and alpha is not None and alpha.scale == pair.alpha == 2.0


def test_unknown_classes_are_summed_out_under_the_guide() -> None:
    torch.manual_seed(0)
    pair, x = sdgm(), binary(10)
    run = pv.terms(pair, {"x": x})
    a, z = run.sites["a"].value, run.sites["z"].value  # z for each class
    code = torch.eye(CLASSES)[:, None]
    q = pair.classifier(a, x).logits.log_softmax(-1).T
    log_w = pv.priors.StandardNormal(LATENT)().log_prob(z) - math.log(CLASSES) - pair.encoder(a, x, code).log_prob(z)
    log_w = log_w + pair.auxiliary(z, code).log_prob(a) + pair.likelihood(a, z, code).log_prob(x)
    wanted = (q.exp() * (log_w - q)).sum(0) - pair.auxiliary_encoder(x).log_prob(a)
    torch.testing.assert_close(pv.elbo(run).elbo, wanted.sum().detach(), rtol=1e-5, atol=1e-5)


def test_both_layers_are_integrated_out() -> None:
    """log p(x, y) of one latent dimension in each layer, by quadrature over a grid of both, in float64."""
    torch.manual_seed(1)
    small = {"hidden": (4,)}
    pair = pv.SDGM(
        label_prior=pv.priors.Categorical(2),
        prior=pv.priors.StandardNormal(1),
        auxiliary=pv.mlp((1, 2), fam.Normal(1), **small),
        likelihood=pv.mlp((1, 1, 2), fam.Bernoulli(4), **small),
        auxiliary_encoder=pv.mlp(4, fam.Normal(1), **small),
        classifier=pv.mlp((1, 4), fam.Categorical((), 2), **small),
        encoder=pv.mlp((1, 4, 2), fam.Normal(1), **small),
        code=pv.nets.OneHot(2),
    ).double()
    with torch.no_grad():
        for part in (pair.auxiliary_encoder, pair.encoder):  # a guide that is wider than the posterior
            part.net.rest[-1].weight.zero_()
            part.net.rest[-1].bias.copy_(torch.tensor([0.0, 2.0]))
    x = torch.bernoulli(torch.full((6, 4), 0.5, dtype=torch.float64))
    y = torch.arange(6) % 2
    fitted = pv.fit(pair, {"x": x, "y": y}, epochs=0)
    found = pv.importance(fitted, {"x": x, "y": y}, num_samples=4000, proposal="guide", seed=0)
    points = torch.linspace(-9, 9, 361, dtype=torch.float64)
    z, a = torch.meshgrid(points, points, indexing="ij")
    z, a = z[..., None, None], a[..., None, None]
    code = torch.eye(2, dtype=torch.float64)[y]
    with torch.no_grad():
        log_p = Normal(0.0, 1.0).log_prob(z).squeeze(-1) + pair.auxiliary(z, code).log_prob(a)
        log_p = log_p + pair.likelihood(a, z, code).log_prob(x) - math.log(2)
    wanted = log_p.flatten(0, 1).logsumexp(0) + 2 * math.log(float(points[1] - points[0]))
    assert (found.standard_error < 0.05).all()
    # six rows within 4.5 standard errors: a false alarm in 20,000 seeds
    assert ((found.log_likelihood - wanted).abs() < 4.5 * found.standard_error).all()
