"""The error that is the user's to mend: one line naming the place and the remedy."""


class CramError(ValueError):
    """A wrong configuration, input or file. The command line prints the message alone and exits with code 2."""


class Exploded(CramError):
    """A run whose loss kept exploding: nothing but another configuration helps."""
