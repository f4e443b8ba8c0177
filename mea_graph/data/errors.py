"""The error that every fault in a user's data raises."""


class DataError(ValueError):
    """Says that data or a data file is not what it should be.

    One type for all of them, so that a program can show the message without a traceback: it names the file or field, what was
    expected and what came.

    Example:
        >>> issubclass(DataError, ValueError)
        True
    """
