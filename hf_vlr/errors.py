"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Something in the user's data, recipe or checkpoint is wrong.

    The message is one line, names the thing that is wrong and says how to mend it. The command line prints it
    after `error:` without a traceback and exits with status 2; from Python it is an ordinary `ValueError`.
    """
