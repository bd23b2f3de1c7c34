"""A deep hierarchy for images: NVAE, whose latent variables are groups of small maps, from coarse to fine.

The guide draws the groups in the model's order. For each it gives only the difference from the model's prior, so that a group
without information has no KL; the KL term of each group is printed. The picture shows the mean pixels of samples. The data are
8 x 8 digits, or MNIST with --data-root, binarised anew at every step. Vahdat & Kautz 2020, arXiv:2007.03898.
"""

import argparse
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import data
from pyrovae import families as fam


def main(smoke: bool, data_root: Path | None, epochs: int, out: Path) -> None:
    torch.manual_seed(0)
    found = data.load("mnist", data_root=data_root) if data_root else data.load("digits")
    side = 28 if data_root else 8
    x = (found.x / found.x.max()).reshape(-1, side, side)
    x = x[torch.randperm(len(x))]
    x_train, x_test = x[360:], torch.bernoulli(x[:360])
    nvae = pv.NVAE(fam.Bernoulli((side, side)), channels=(16, 32), groups=(1, 2), latent_channels=4)
    fitted = pv.fit(
        nvae,
        x_train[:200] if smoke else x_train,
        epochs=1 if smoke else epochs,
        batch_size=100,
        loss=pv.Trace_ELBO(kl="analytic"),
        schedule=[pv.schedules.one_cycle(5e-3), pv.schedules.kl_warmup(epochs=max(1, 0.3 * epochs))],
        transform=pv.transforms.Binarize(),
        penalty=pv.penalties.spectral_norm(0.01 * len(x_train)),
        clip_norm=200.0,
        seed=0,
    )
    terms = pv.kl_by_site(fitted, x_test)
    print(f"nats a group, coarsest first: {', '.join(f'{site} {kl.mean():.1f}' for site, kl in terms.items())}")
    result = pv.importance(fitted, x_test[: 10 if smoke else 100], 10 if smoke else 200, seed=0).summary()
    print(
        f"log p(x) {result['log_likelihood']:.2f} ± {result['log_likelihood_se']:.2f} nats, ELBO {result['elbo']:.2f}"
    )
    samples = pv.generate(fitted, 40, seed=0, mean=True)
    ax = pv.plots.images(samples.flatten(1), (side, side), columns=10)
    print(f"samples: {pv.plots.save(ax, out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST; 8 x 8 digits without it")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/nvae.png"))
    main(**vars(parser.parse_args()))
