"""M1+M2 fitted in two stages, as in the article, against the same graph fitted at once.

Stage one is a VAE of all images, without labels. Of its latent dimensions those are kept that vary with the image. Stage two
is a semi-supervised VAE whose data are the codes: for each row the mean and the standard deviation of q(z1|x), from which
every step draws anew. Both are then one graph again, p(y) p(z2) p(z1|z2,y) p(x|z1), which classifies and generates images.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

D, C, L1, L2 = 64, 10, 16, 10  # pixels, classes, dimensions of z1 and z2


def normal(parents: int | tuple[int, ...], size: int) -> nn.Module:
    return pv.mlp(parents, fam.Normal(size), hidden=(200,))


def m1() -> pv.VAE:
    code = fam.Normal(L1)
    return pv.VAE(
        prior=pv.priors.StandardNormal(L1),
        likelihood=pv.mlp(L1, fam.BetaBinomial(D, total_count=16), hidden=(200,)),
        encoder=pv.Conditional(pv.nets.Rescaled(pv.nets.MLP(D, code.param_shape, (200,)), 1 / 16), code),
    )


def m2(size: int) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(L2),
        likelihood=normal((L2, C), size),
        encoder=normal((size, C), L2),
        classifier=pv.mlp(size, fam.Categorical((), C), hidden=(200,), activation=pv.nets.ReLUDropout(0.5)),
        code=pv.nets.OneHot(C),
        alpha=200.0,
    )


def main(smoke: bool) -> None:
    epochs = 5 if smoke else 75
    torch.manual_seed(0)
    x, truth = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x))
    x, truth = x[order].float(), truth[order]
    y = truth.clone()
    y[50:] = -1  # unknown
    train, test = slice(0, 1437), slice(1437, None)
    rate = pv.schedules.one_cycle(3e-3)

    def report(name: str, fitted: pv.Fit) -> None:
        found = pv.classify(fitted, {"x": x[test]}, num_samples=50)
        told = [f"{by} {(p.argmax(-1) == truth[test]).double().mean():.1%}" for by, p in shares(found)]
        print(f"{name:11} {', '.join(told)}")

    def shares(found: pv.Classification) -> list[tuple[str, Tensor]]:
        return [("q(y|x)", found.guide), ("p(y|x)", found.joint)]

    rows = {"x": x[train], "y": y[train]}
    at_once = pv.fit(pv.StackedSSVAE.of(m1(), m2(L1)), rows, epochs=2 * epochs, schedule=rate, seed=0)
    report("at once:", at_once)

    first = pv.fit(m1(), x[train], epochs=2 * epochs, schedule=rate, seed=0)
    kept = pv.active_units(pv.encode(first, x[train]))  # means with an sd over rows above 0.1
    encoder = pv.Marginal(pv.frozen(first.pair.encoder), kept)
    likelihood = pv.Padded(pv.frozen(first.pair.likelihood), kept, size=L1)
    below = pv.VAE(pv.priors.StandardNormal(len(encoder.dims)), likelihood, encoder)
    with first.scope():
        q = encoder(x[train].to(first.device))
    codes = torch.stack([q.mean, q.stddev], 1)  # (N, 2, D), each pair drawn from at every step
    second = pv.fit(
        m2(len(encoder.dims)),
        {"x": codes, "y": y[train]},
        epochs=2 * epochs,
        group_size={"y": 50},
        transform=pv.transforms.DrawNormal(),
        loss=pv.Trace_ELBO(kl="analytic"),  # less noise than at the draws, and z2 is used sooner
        schedule=rate,
        seed=0,
    )
    print(f"kept {len(encoder.dims)} of {L1} dimensions of z1")
    joined = pv.fit(
        pv.StackedSSVAE.of(below, second.pair), rows, epochs=0
    )  # checks it, and takes the weights as they are
    report("two stages:", joined)
    threes = pv.generate(joined, 4, given={"y": torch.full((4,), 3)})
    print(f"images of a three: {tuple(threes.shape)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
