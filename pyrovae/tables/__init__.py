"""Tables as people have them: what each column is, rows as tensors and back, and a model that fits them without settings."""

from pyrovae.tables.baselines import baselines
from pyrovae.tables.columns import Column
from pyrovae.tables.infer import infer
from pyrovae.tables.recipe import cvae, vae
from pyrovae.tables.schema import Schema

__all__ = ["Column", "Schema", "baselines", "cvae", "infer", "vae"]
