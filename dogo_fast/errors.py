"""What can go wrong in a run and is not a fault of the program: the command line prints one line, no traceback."""

import signal


class UserError(ValueError):
    """An option, a file or a folder that the user can put right. The message says what it is and what is allowed."""


class DivergedError(RuntimeError):
    """A loss that is not finite any more."""


class RunInterrupted(BaseException):
    """A signal ended the run; what was to be saved is, and the message says how to go on.

    No Exception, as KeyboardInterrupt is none: who catches those of a decoder must not catch this.
    """


class StoppedBySignal(BaseException):
    """A signal ended a command that cannot go on later: which signal, and what is left. No Exception, as above."""

    def __init__(self, number: int, left: str) -> None:
        super().__init__(number, left)
        self.number = number
        self.left = left

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.left}"


class DamagedImageError(ValueError):
    """An image that cannot be decoded: which one, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both as arguments, so that it can be pickled in a worker process
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} is damaged ({self.reason})"
