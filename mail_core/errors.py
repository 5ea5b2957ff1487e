"""The one exception for what a user can mend: bad input or arguments, an absent table. Jobs then exit with 2."""


class InputError(ValueError):
    """Bad input from outside; the message names the file, row, column or key, the value, and what was expected."""
