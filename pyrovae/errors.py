"""The exceptions that pyrovae raises. Each message says what was expected, what was given, and how to fix it."""


class PyrovaeError(Exception):
    """Base class of all exceptions that pyrovae raises on purpose."""


class ShapeError(PyrovaeError, ValueError):
    """The shape or dtype of a tensor differs from what the component that receives it expects."""


class PairError(PyrovaeError, ValueError):
    """A model and its guide do not match each other or the batch, or a component cannot be part of a pair."""


class DataError(PyrovaeError, ValueError):
    """Data are empty, missing, outside the support of a likelihood, or cannot be found."""


class OptionError(PyrovaeError, ValueError):
    """An option has an unknown or invalid value. The message lists the valid ones."""


class MissingPackageError(OptionError):
    """An option needs a package that is not installed. The message says how to install it."""


class NotFiniteError(PyrovaeError, ArithmeticError):
    """A loss became NaN or infinite. The message names the epoch and the step."""


class CheckpointError(PyrovaeError):
    """A run folder already exists, is damaged, does not match the pair, or was written by a newer version."""
