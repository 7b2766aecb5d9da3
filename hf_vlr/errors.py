"""The exceptions that a user is meant to read."""

import signal


class UserError(ValueError):
    """Something in the user's data, recipe or checkpoint is wrong.

    The message is one line, names the thing that is wrong and says how to mend it. The command line prints it
    after `error:` without a traceback and exits with status 2; from Python it is an ordinary `ValueError`.
    """


class Stopped(UserError):
    """A signal asked a run to stop, and it has saved where it stands.

    The command line prints the message and exits with `code`, 128 + the signal's number, as shells have it for a
    process that a signal ends: 143 for SIGTERM, 138 for SIGUSR1 (on Linux).
    """

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved; go on with --resume")
        self.code = 128 + number


def first_line(error: BaseException) -> str:
    """The first line of an error's text, else its kind: what others' errors contribute to one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
