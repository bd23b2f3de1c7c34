"""Strange rows of a table: scores, p-values whose rate of false alarms holds whatever the model, and the columns to blame.

Breast masses: a model is fitted to benign ones alone. Others of these are the ordinary rows that new masses are compared with.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

import pyrovae as pv
from pyrovae import families as fam


def main(smoke: bool) -> None:
    data = load_breast_cancer()
    x = torch.tensor(np.log1p(data.data[:, :10]), dtype=torch.float32)  # the ten means, which are skewed
    benign = torch.from_numpy(data.target == 1)
    order = torch.randperm(int(benign.sum()), generator=torch.Generator().manual_seed(0))
    ordinary, malignant = x[benign][order], x[~benign]
    mean, sd = ordinary[:200].mean(0), ordinary[:200].std(0)
    train, calibration, new = ((rows - mean) / sd for rows in (ordinary[:200], ordinary[200:300], ordinary[300:]))
    strange = (malignant - mean) / sd

    torch.manual_seed(0)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(4),
        likelihood=pv.mlp(4, fam.Normal(10, scale="column", floor=0.05), hidden=(32,)),
        encoder=pv.mlp(10, fam.FullNormal(4), hidden=(32,)),
    )
    epochs = 20 if smoke else 400
    fitted = pv.fit(vae, train, epochs=epochs, schedule=pv.schedules.one_cycle(5e-3), seed=0)

    draws = 50 if smoke else 500
    for method in ("log_likelihood", "regret", "typicality"):
        how = {"num_samples": draws, "reference": train, "seed": 0}
        usual, mild, severe = (
            pv.anomaly_score(fitted, rows, method, **how).score for rows in (calibration, new, strange)
        )
        p_mild, p_severe = pv.conformal_p_values(usual, mild), pv.conformal_p_values(usual, severe)
        area = (severe[:, None] > mild).double().mean()
        print(
            f"{method:14} area under the ROC curve {area:.3f}; at p <= 0.05, malignant ones found: "
            f"{(p_severe <= 0.05).double().mean():.1%}, false alarms among ordinary rows: "
            f"{(p_mild <= 0.05).double().mean():.1%}"
        )

    called = pv.benjamini_hochberg(torch.cat([p_mild, p_severe]), rate=0.1)
    print(
        f"called outliers at a rate of 10 %: {int(called.sum())}, of which ordinary: {int(called[: len(mild)].sum())}"
    )
    theirs = pv.entry_densities(fitted, calibration, num_samples=draws, seed=0).leave_one_out
    own = pv.entry_densities(fitted, strange[:5], num_samples=draws, seed=0).leave_one_out
    p = torch.stack([pv.conformal_p_values(-theirs[:, d], -own[:, d]) for d in range(10)], 1)
    for row, values in enumerate(p):
        names = [data.feature_names[d].removeprefix("mean ") for d in values.argsort()[:3] if values[d] <= 0.05]
        print(f"malignant mass {row}: strange in {', '.join(names) or 'no single column'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
