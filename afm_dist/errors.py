"""The errors a stranger may see: one line each, with an exit code."""

from __future__ import annotations


class AfmError(Exception):
    """Base of every error that is reported in one line, without a traceback.

    The message says what is wrong, where (file, field, option), and what to do. Quoted messages
    of other libraries may have several lines: they are joined.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        lines = (line.strip() for line in message.splitlines())
        super().__init__(" ".join(line for line in lines if line))


class OptionError(AfmError, ValueError):
    """An option, or a combination of options, that cannot work. Exit code 2."""

    exit_code = 2


class DataError(AfmError, ValueError):
    """Input data that is missing, malformed, altered, or of another schema. Exit code 1."""


class StageError(AfmError, RuntimeError):
    """A stage that could not finish (workers lost). Exit code 1."""


class ReportError(AfmError, RuntimeError):
    """A report that could not be made of what is there and complete. Exit code 1."""


class StorageError(AfmError, OSError):
    """A file or folder that could not be read or written, though it should be possible. Exit code 1.

    Attributes:
        errno: What the operating system calls it, or would; None for what may pass, such as a store that
            is overloaded.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)
