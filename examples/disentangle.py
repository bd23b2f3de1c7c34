"""Disentanglement: codes whose dimensions each stand for one factor of the images.

Sprites are drawn from five known factors: shape, scale, angle, x and y. A plain VAE mixes them, since nothing keeps its
dimensions from depending on each other. beta-VAE raises the price of the whole KL term, beta-TCVAE that of its one part that
measures this dependence, the total correlation. `pv.kl_parts` shows all three parts, and MIG, DCI and the FactorVAE score
compare codes with factors. In a picture each row is a dimension of z, which goes from -2 to 2, while the others stay as they
are.
"""

import argparse

import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import sprites

SIZE, L, STEPS = 16, 6, 9


def vae() -> pv.VAE:
    return pv.VAE(
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp(L, fam.Bernoulli(SIZE**2), hidden=(128, 128), activation=nn.ReLU),
        encoder=pv.mlp(SIZE**2, fam.Normal(L), hidden=(128, 128), activation=nn.ReLU),
    )


def traversals(fitted: pv.Fit, x: Tensor) -> Tensor:
    """E[x | z] along each dimension of z, from the code of one row: (L * STEPS, SIZE * SIZE)."""
    z = pv.encode(fitted, x).repeat(L, STEPS, 1)
    for unit in range(L):
        z[unit, :, unit] = torch.linspace(-2, 2, STEPS)
    return pv.decode(fitted, {"z": z.flatten(0, 1)})


def main(smoke: bool) -> None:
    data = sprites(400 if smoke else 8000, size=SIZE, levels=(1, 6, 1, 12, 12) if smoke else (3, 6, 4, 12, 12))
    half = len(data.x) // 2
    x_train, x_test, factors = data.x[:half], data.x[half:], data.factors[half:]
    factors = factors[:, factors.amax(0) > 0]
    objectives = {
        "plain": "analytic",
        "beta-VAE": pv.kl.beta(4.0),
        "beta-TCVAE": pv.kl.total_correlation(6.0),
    }
    for name, kl in objectives.items():
        torch.manual_seed(0)
        loss = pv.Trace_ELBO(kl=kl)
        fitted = pv.fit(vae(), x_train, epochs=1 if smoke else 150, batch_size=100, loss=loss, seed=0)
        codes = pv.encode(fitted, x_test)
        mig, votes = (f(codes, factors) for f in (pv.disentanglement.mig, pv.disentanglement.factor_vae_score))
        importance = pv.disentanglement.dci(codes, factors)
        parts = pv.kl_parts(fitted, x_test[:1000])["z"]
        print(
            f"{name:10} MIG {mig:.2f}   disentanglement {importance.disentanglement:.2f}   FactorVAE score {votes:.2f}"
        )
        print(
            f"{'':10} KL {parts.kl:.2f} = information {parts.information:.2f} + total correlation "
            f"{parts.total_correlation:.2f} + dimension-wise KL {parts.dimension_wise:.2f} nats"
        )
        picture = pv.plots.images(traversals(fitted, x_test[:1]), (SIZE, SIZE), columns=STEPS, vmax=1)
        print(f"{'':10} traversals in {pv.plots.save(picture, f'disentangle-{name}.png')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
