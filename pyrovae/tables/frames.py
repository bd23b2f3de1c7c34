"""Tables of other packages, Polars and Arrow among them, as pandas has them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pyrovae.errors import DataError, MissingPackageError, shortened


def as_frame(function: str, table: Any) -> pd.DataFrame:
    """The table of pandas, or what `to_pandas` of a table of another package gives.

    Args:
        function: The function that was called, for messages.
        table: What a user has given.

    Raises:
        DataError: It is no table, or its own `to_pandas` fails.
        MissingPackageError: Its package needs another one to make it a table of pandas.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if callable(getattr(table, "to_pandas", None)):
        try:
            made = table.to_pandas()
        except ImportError as error:
            raise MissingPackageError(
                f"{_name_of(table)} needs another package to become a table of pandas ({error}): pip install 'pyrovae[arrow]'."
            ) from error
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:  # of Arrow's, too
            raise DataError(
                f"{function}: {_name_of(table)} does not become a table of pandas ({shortened(error)}). Change the column that "
                "it names, or leave it out."
            ) from error
        if isinstance(made, pd.DataFrame):
            return made
    if callable(getattr(table, "collect", None)):
        raise DataError(
            f"{function} takes a table, got a {type(table).__name__}, a query of one: give table.collect()."
        )
    raise DataError(
        f"{function} takes a table, a DataFrame of pandas or Polars, got {_name_of(table)}: write pandas.DataFrame(rows, "
        "columns=names), or read a file by pandas.read_csv."
    )


def _name_of(table: Any) -> str:
    kind = type(table)
    package = kind.__module__.split(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"
