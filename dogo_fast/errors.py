"""What can go wrong in a run and is not a fault of the program: the command line prints one line, no traceback."""


class UserError(ValueError):
    """An option, a file or a folder that the user can put right. The message says what it is and what is allowed."""


class DivergedError(RuntimeError):
    """A loss that is not finite any more."""
