"""Clusters of digits without labels: GMVAE and VaDE, with the number of clusters chosen by held-out log p(x).

Both have the model p(y) p(z|y) p(x|z). The guide of the GMVAE is q(y|x) q(z|x,y), which costs one decoding per cluster; that of
VaDE is q(z|x), and the cluster is summed out in the model. Labels are used only at the end: each cluster stands for the digit
that is most frequent among its training rows. The adjusted mutual information of clusters and digits is 0 for chance.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

L, D = 6, 64


def gmvae(num_clusters: int) -> pv.GMVAE:
    return pv.GMVAE(
        cluster_prior=pv.priors.Categorical(num_clusters),
        prior=pv.mlp(num_clusters, fam.Normal(L), hidden=()),
        likelihood=pv.mlp(L, fam.BetaBinomial(D, total_count=16), hidden=(100,)),
        encoder=pv.mlp((D, num_clusters), fam.Normal(L), hidden=(100,)),
        classifier=pv.mlp(D, fam.Categorical((), num_clusters), hidden=(100,)),
        code=pv.nets.OneHot(num_clusters),
    )


def vade(num_clusters: int) -> pv.VaDE:
    return pv.VaDE(
        cluster_prior=pv.priors.Categorical(num_clusters, learned=True),
        prior=pv.mlp(num_clusters, fam.Normal(L), hidden=()),
        likelihood=pv.mlp(L, fam.BetaBinomial(D, total_count=16), hidden=(100,)),
        encoder=pv.mlp(D, fam.Normal(L), hidden=(100,)),
        code=pv.nets.OneHot(num_clusters),
    )


def agreement(fitted: pv.Fit, x: Tensor, y: Tensor, test: slice) -> str:
    """How well clusters, the most probable ones under p(y|x) of the joint model, agree with the digits of test rows."""
    clusters = pv.classify(fitted, x, num_samples=20).predicted
    counts = torch.zeros(int(clusters.max()) + 1, 10).index_put_((clusters, y), torch.ones(len(y)), accumulate=True)
    right = (counts.argmax(1)[clusters] == y)[test].double().mean()
    information = adjusted_mutual_info_score(y[test].numpy(), clusters[test].numpy())
    return f"{int((counts.sum(1) > 0).sum())} in use, right {right:.0%}, adjusted mutual information {information:.2f}"


def main(smoke: bool) -> None:
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    train, valid, test = slice(0, 1077), slice(1077, 1117 if smoke else 1437), slice(1437, None)
    for build in (gmvae, vade):
        found: dict[int, tuple[float, pv.Fit]] = {}
        for num_clusters in (2, 3) if smoke else (1, 5, 10, 20):
            torch.manual_seed(0)
            pair, epochs = build(num_clusters), 1 if smoke else 100
            schedule = [pv.schedules.one_cycle(5e-3), pv.schedules.kl_warmup(epochs=max(1, epochs // 10))]
            fitted = pv.fit(pair, x[train], epochs=epochs, batch_size=100, schedule=schedule, seed=0)
            score = pv.log_likelihood(fitted, x[valid], 25 if smoke else 200, seed=0).mean().item()
            found[num_clusters] = score, fitted
            print(f"{build.__name__} of {num_clusters:2} clusters: validation log p(x) {score:.2f}")
        best = max(found, key=lambda k: found[k][0])
        print(f"{build.__name__}: {best} clusters chosen, {agreement(found[best][1], x, y, test)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
