"""A VAE as a step of a scikit-learn pipeline: its codes as features, a search over their number, densities compared.

Then fifty labels for many digits: a classifier that learns from all rows, against one of the labelled rows alone.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyrovae.sklearn import SemiSupervisedVAEClassifier, VAEDensity, VAETransformer


def main(smoke: bool) -> None:
    epochs = 3 if smoke else 200
    X, y = load_wine(return_X_y=True)

    pipeline = make_pipeline(VAETransformer(max_iter=epochs, random_state=0), LogisticRegression())
    search = GridSearchCV(pipeline, {"vaetransformer__n_components": [1, 2, 4]}, cv=3, n_jobs=1).fit(X, y)
    best = search.best_params_["vaetransformer__n_components"]
    print(f"best number of components: {best}, accuracy {search.best_score_:.3f}")

    X = StandardScaler().fit_transform(X)
    densities = {
        "VAEDensity": VAEDensity(max_iter=epochs, proposal="laplace", random_state=0),
        "GaussianMixture": GaussianMixture(3, covariance_type="full", reg_covar=1e-2, random_state=0),
    }
    for name, density in densities.items():
        score = cross_val_score(density, X, cv=3)
        print(f"{name:15}: log p(x) of held-out rows {score.mean():.2f} nats")

    X, y = load_digits(return_X_y=True)
    X = X[:300] if smoke else X
    y = y[: len(X)]
    few = np.full_like(y, -1)
    for c in range(10):
        few[np.flatnonzero(y == c)[:5]] = c
    model = SemiSupervisedVAEClassifier(max_iter=epochs // 2 + 1, hidden_layer_sizes=(200,), random_state=0).fit(X, few)
    alone = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X[few >= 0], few[few >= 0])
    print(
        f"50 labels: {model.score(X[few < 0], y[few < 0]):.1%} of the others right, by a logistic regression ", end=""
    )
    print(f"{alone.score(X[few < 0], y[few < 0]):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
