"""The one exception for what a user can mend: bad input, bad arguments, an absent table. Jobs end with exit code 2 on it."""


class InputError(ValueError):
    """Bad input from outside; the message names the file, row, column or key, the value, and what was expected."""
