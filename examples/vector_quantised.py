"""A VQ-VAE in two stages: an image is a small grid of codes, and a prior of the codes is learned once they stand.

The first fit has a uniform prior, under which each code costs log K nats. The second one learns an autoregressive prior of the
code numbers, with all else frozen: the reconstructions stay as they are, and the bound rises by what the prior has learned.
The picture shows draws under both priors. The data are 8 x 8 digits. van den Oord et al. 2017, arXiv:1711.00937; the codes are
those of Mentzer et al. 2023, arXiv:2309.15505.
"""

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import pyrovae as pv
from pyrovae import families as fam


def main(smoke: bool, epochs: int, out: Path) -> None:
    torch.manual_seed(0)
    x = torch.tensor(load_digits().data, dtype=torch.float32).reshape(-1, 8, 8)
    x = x[torch.randperm(len(x))]
    x_train, x_validation, x_test = x[:1257], x[1257:1437], x[1437:]
    family = fam.BetaBinomial((8, 8), total_count=16)
    encoder = pv.nets.GridEncoder((8, 8), width=3, channels=(32, 64), rescale=1 / 16)
    codes = pv.nets.FSQ((8, 6, 5), encoder.grid)  # 240 codes at each of 2 x 2 places
    likelihood = pv.Conditional(pv.nets.GridDecoder(3, family.param_shape, channels=(32, 64)), family)
    uniform = pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape)
    pair = pv.VQVAE(uniform, likelihood, encoder, codes)
    how = {"epochs": 1 if smoke else epochs, "validation": x_validation, "keep_best": True, "seed": 0}
    first = pv.fit(pair, x_train, schedule=pv.schedules.one_cycle(3e-3), **how)
    usage = pv.code_usage(first, x_test)
    print(f"perplexity of codes {usage.perplexity.item():.0f}, {usage.used.item()} of {usage.num_codes} in use")

    pair.requires_grad_(False)
    learned = pv.priors.Autoregressive(codes.num_codes, codes.index_shape, width=32, layers=1)
    second = pv.fit(
        pv.VQVAE(learned, likelihood, encoder, codes), x_train, schedule=pv.schedules.one_cycle(3e-3), **how
    )
    for name, fitted in (("uniform", first), ("learned", second)):
        bound = pv.importance(fitted, x_test, 1, proposal="guide").elbo.mean().item()
        kl = pv.kl_by_site(fitted, x_test, 1)["z"].mean().item()
        bits = -bound / (64 * math.log(2))
        print(f"{name} prior: log p(x) at least {bound:.2f} nats, {bits:.3f} bits a pixel; KL {kl:.2f} nats")
    samples = [pv.generate(fitted, 20, seed=0, mean=True).flatten(1) for fitted in (first, second)]
    ax = pv.plots.images(torch.cat(samples), (8, 8), columns=10)
    print(f"samples, two rows of each prior: {pv.plots.save(ax, out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/vector-quantised.png"))
    main(**vars(parser.parse_args()))
