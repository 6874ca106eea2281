"""The one exception for bad input: its message is shown to the user as it stands."""


class UserError(ValueError):
    """Input that the user can mend: a file, a flag, a tensor, a shape.

    The message is one line that names the thing (file:line, tensor, flag, shape) and says what to do.
    Programs print it as `error: ...` and exit with 1; library callers may catch it as a ValueError.
    """
