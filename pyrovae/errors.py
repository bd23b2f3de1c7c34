"""The errors that pyrovae raises. Each message names what was wanted, what came, and the cure."""


class PyrovaeError(Exception):
    """Root of all errors that a caller of pyrovae may want to catch."""


class ShapeError(PyrovaeError, ValueError):
    """A tensor has another shape or dtype than the part that takes it declares."""


class PairError(PyrovaeError, ValueError):
    """A model and its guide do not fit each other, or do not fit the batch."""


class DataError(PyrovaeError, ValueError):
    """Data are empty, missing, outside a likelihood's support, or cannot be found."""


class OptionError(PyrovaeError, ValueError):
    """An option has a value that is not known; the message lists the known ones."""


class NotFiniteError(PyrovaeError, ArithmeticError):
    """A loss became NaN or infinite. The message names the epoch and the step."""


class CheckpointError(PyrovaeError):
    """A run folder exists already, is damaged, does not match, or comes from a newer version."""
