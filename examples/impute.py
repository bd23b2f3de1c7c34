"""Fill in a table with gaps, and analyse it as if it were complete without pretending that it is.

Half of the entries of the wine table are removed, and drawn twenty times given the others (MIWAE and multiple imputation). A
regression on each of the twenty tables gives an interval by Rubin's rules. Then values are removed because they are high, which
`pv.NotMIWAE` knows and the first model does not. Likelihoods are linear in z: where high values are never seen, nothing but the
form of the likelihood says how high they are, and a flexible one goes astray.
"""

import argparse

import torch
from sklearn.datasets import load_wine
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

LATENT = 2


def parts(columns: int) -> dict[str, torch.nn.Module]:
    net = pv.nets.WithMask(pv.nets.MLP((columns, columns), (2, LATENT), (64,)))
    return {
        "likelihood": pv.mlp(LATENT, fam.Normal(columns, scale="shared"), hidden=()),
        "encoder": pv.Conditional(net, fam.Normal(LATENT)),
    }


def filled_in(pair: pv.VAE | pv.NotMIWAE, x: Tensor, epochs: int) -> pv.Imputation:
    loss = pv.IWELBO(num_particles=20)
    fitted = pv.fit(pair, x, epochs=epochs, batch_size=32, loss=loss, seed=0)
    return pv.impute(fitted, x, num_samples=20, seed=0)


def slope(x: Tensor) -> tuple[float, float]:
    """Of proline on alcohol: the coefficient, and its squared standard error."""
    alcohol, proline = x[:, 0] - x[:, 0].mean(), x[:, -1] - x[:, -1].mean()
    found = (alcohol * proline).sum() / alcohol.square().sum()
    rest = (proline - found * alcohol).square().sum() / (len(x) - 2)
    return found.item(), (rest / alcohol.square().sum()).item()


def main(smoke: bool) -> None:
    whole = torch.tensor(load_wine().data, dtype=torch.float32)
    whole = (whole - whole.mean(0)) / whole.std(0)
    columns, epochs = whole.shape[1], 5 if smoke else 200
    gaps = torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.manual_seed(0)
    imputed = filled_in(
        pv.VAE(pv.priors.StandardNormal(LATENT), **wrapped(parts(columns))), whole.masked_fill(gaps, torch.nan), epochs
    )
    rmse = (imputed.mean - whole)[gaps].square().mean().sqrt()
    low, high = imputed.interval(0.9)
    inside = ((low <= whole) & (whole <= high))[gaps].float().mean()
    print(f"half missing at random: RMSE {rmse:.2f} (column means: 1.00), 90 % intervals contain {inside:.0%}")

    slopes, variances = zip(*(slope(imputed.complete(k)) for k in range(20)))
    pooled = pv.pool(slopes, variances, df=len(whole) - 2)
    low_end, high_end = pooled.interval(0.95)
    print(f"slope of proline on alcohol: {slope(whole)[0]:.2f} with all data, {pooled.estimate:.2f} from")
    print(
        f"{low_end:.2f} to {high_end:.2f} with half of them; {pooled.missing_information:.0%} of the information is missing"
    )

    dark = (whole > 0) & (torch.arange(columns) < columns // 2)
    x = whole.masked_fill(dark, torch.nan)
    masking = pv.Conditional(pv.nets.SelfMasking(columns, missing="high"), fam.Bernoulli(columns))
    for name, pair in {
        "MIWAE": pv.VAE(pv.priors.StandardNormal(LATENT), **wrapped(parts(columns))),
        "not-MIWAE": pv.NotMIWAE(pv.priors.StandardNormal(LATENT), **parts(columns), missingness=masking),
    }.items():
        found = filled_in(pair, x, epochs)
        print(f"high values missing: {name:9} RMSE {(found.mean - whole)[dark].square().mean().sqrt():.2f}")


def wrapped(pieces: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """The same, with a likelihood that leaves missing entries out."""
    return {**pieces, "likelihood": pv.observed_only(pieces["likelihood"])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
