"""scikit-learn estimators: each fits a VAE to the rows of a table, and fits into pipelines and searches.

They are not imported with the package: `from pyrovae.sklearn import VAEDensity`.
"""

from pyrovae.sklearn._clusters import VAECluster
from pyrovae.sklearn._density import VAEDensity, VAETransformer
from pyrovae.sklearn._imputer import VAEImputer
from pyrovae.sklearn._labels import SemiSupervisedVAEClassifier, VAERegressor
from pyrovae.sklearn._outliers import VAEOutlierDetector

__all__ = [
    "SemiSupervisedVAEClassifier",
    "VAECluster",
    "VAEDensity",
    "VAEImputer",
    "VAEOutlierDetector",
    "VAERegressor",
    "VAETransformer",
]
