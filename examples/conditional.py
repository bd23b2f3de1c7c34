"""A conditional VAE: ask for a digit and get it. What the label says, the latent variables need not encode again.

I(z; c), the mutual information of z and the label c, is bounded from below on held-out rows by H(c) minus the cross-entropy of
a classifier trained on draws of z for training rows (Barber & Agakov 2003). Under a learned prior p(z|c), z may separate the
labels at no cost in the ELBO; under a prior p(z), information on c in z costs as much as any other.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

L, TRAIN = 6, 1437


class Unconditional(nn.Module):
    """p(z | c) = N(z; 0, I): a prior that ignores the label."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(L)

    def forward(self, code: Tensor) -> object:
        return self.prior()


def cvae(prior: nn.Module) -> pv.CVAE:
    likelihood = pv.mlp((L, 10), fam.BetaBinomial(64, total_count=16), hidden=(200,))
    encoder = pv.mlp((64, 10), fam.Normal(L), hidden=(200,))
    return pv.CVAE(pv.nets.OneHot(10), prior, likelihood, encoder)


def vae() -> pv.VAE:
    likelihood = pv.mlp(L, fam.BetaBinomial(64, total_count=16), hidden=(200,))
    return pv.VAE(pv.priors.StandardNormal(L), likelihood, pv.mlp(64, fam.Normal(L), hidden=(200,)))


def information(z: Tensor, c: Tensor) -> str:
    """H(c) - E[-log r(c | z)] in nats, and its standard error over held-out rows. z: draws, (S, N, L); c: (N,)."""
    classifier = MLPClassifier((100,), alpha=0.1, early_stopping=True, random_state=0)
    classifier.fit(z[:, :TRAIN].flatten(0, 1).numpy(), c[:TRAIN].repeat(len(z)).numpy())
    held_out = c[TRAIN:].expand(len(z), -1)
    log_r = torch.tensor(classifier.predict_log_proba(z[:, TRAIN:].flatten(0, 1).numpy())).reshape(len(z), -1, 10)
    cross_entropy = -log_r.gather(2, held_out[..., None]).mean((0, 2))
    bound = torch.distributions.Categorical(torch.bincount(c[TRAIN:])).entropy() - cross_entropy
    return f"{bound.mean():5.2f} ± {bound.std() / len(bound) ** 0.5:.2f}"


def main(smoke: bool) -> None:
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    x, c = torch.tensor(digits.data, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    for name in ("VAE", "CVAE, p(z)", "CVAE, p(z|c)"):
        torch.manual_seed(0)
        prior = pv.mlp(10, fam.Normal(L), hidden=(50,)) if name == "CVAE, p(z|c)" else Unconditional()
        pair, data = (vae(), {"x": x}) if name == "VAE" else (cvae(prior), {"x": x, "c": c})
        train, test = ({key: rows[part] for key, rows in data.items()} for part in (slice(TRAIN), slice(TRAIN, None)))
        epochs, schedule = 1 if smoke else 150, pv.schedules.one_cycle(3e-3)
        fitted = pv.fit(pair, train, epochs=epochs, batch_size=100, schedule=schedule, seed=0)
        with fitted.scope():
            rows = fitted.batch(data)  # on the device of the fit
            q = pair.encoder(rows["x"]) if name == "VAE" else pair.encoder(rows["x"], pair.condition(rows["c"]))
        z = q.sample((1 if smoke else 5,)).cpu()
        score = pv.log_likelihood(fitted, test, 25 if smoke else 1000, seed=0).mean()
        what = "log p(x)" if name == "VAE" else "log p(x|c)"
        print(f"{name:13} I(z; c) at least {information(z, c)} nats   {what} {score:.2f}")

    wanted = torch.arange(10).repeat_interleave(50)
    made = pv.generate(fitted, 500, given={"c": wanted}, mean=True, seed=0).cpu()
    read = LogisticRegression(max_iter=5000).fit(x[:TRAIN] / 16, c[:TRAIN]).predict(made / 16)
    print(f"of 500 digits asked for, a classifier of real ones reads {(read == wanted.numpy()).mean():.0%} as asked")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
