"""A standard VAE on handwritten digits: put the parts of the graph together, fit, and look at what was learned.

The pixels are counts from 0 to 16, so the likelihood is a BetaBinomial. It gives probabilities, not densities, so log p(x) can
be compared with that of any other model of the same counts.
"""

import argparse

import torch
from sklearn.datasets import load_digits

import pyrovae as pv
from pyrovae import families as fam


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    x = torch.tensor(load_digits().data, dtype=torch.float32)  # (1797, 64), counts 0..16
    x = x[torch.randperm(len(x))]
    x_train, x_test = x[:1437], x[1437:]

    vae = pv.VAE(
        prior=pv.priors.StandardNormal(10),
        likelihood=pv.mlp(10, fam.BetaBinomial(64, total_count=16)),
        encoder=pv.mlp(64, fam.Normal(10)),
    )
    print(pv.check_pair(vae, x_train[:100]))

    fitted = pv.fit(
        vae,
        x_train,
        epochs=2 if smoke else 150,
        batch_size=100,
        validation=0.1,
        schedule=[pv.schedules.one_cycle(3e-3), pv.schedules.kl_warmup(epochs=10)],
        seed=0,
    )

    # log p(x) by importance sampling; above the threshold of k-hat, a row's estimate is unreliable
    found = pv.importance(fitted, x_test, num_samples=50 if smoke else 1000, seed=0)
    result = found.summary()
    print(f"ELBO     {result['elbo']:8.2f} ± {result['elbo_se']:.2f} nats per row")
    print(f"log p(x) {result['log_likelihood']:8.2f} ± {result['log_likelihood_se']:.2f} nats per row")
    print(f"rows with k-hat > {result['k_hat_threshold']:.2f}: {result['k_hat_above_threshold']:.0%}")

    z = pv.encode(fitted, x_test)  # (360, 10), posterior means
    print(f"active units: {int(pv.active_units(z).sum())} of {z.shape[1]}")
    print(f"new digits: {tuple(pv.generate(fitted, 16, seed=0).shape)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
