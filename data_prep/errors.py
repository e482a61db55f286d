"""The one error that bad input raises."""


class DataError(ValueError):
    """Text that cannot be used: the message names the place and the remedy, in one line."""
