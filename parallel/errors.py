"""The errors that a user can meet. Everything else that escapes is a fault of our own."""


class ShardrunError(Exception):
    """Root of the errors whose text is meant for the user: one sentence, and what to do.

    `exit_code` is what a process ends with when nobody catches the error.
    """

    exit_code = 1

    def __str__(self) -> str:
        # Names in it may come from a file that somebody made: what would control a terminal is shown, not sent.
        return "".join(
            letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
            for letter in super().__str__()
        )


class RefusedError(ShardrunError, ValueError):
    """Bad input, file, configuration or environment: nothing was run."""

    exit_code = 2


class AbsentError(RefusedError):
    """Another rank did not come: it, or whoever started it, knows why."""


class UnreachedError(AbsentError):
    """A rank could not reach rank 0, so that nobody else can say why it ends."""


class RankFailedError(ShardrunError, RuntimeError):
    """A rank failed while running."""

    exit_code = 3


class PeerFailedError(RankFailedError):
    """Another rank failed; that rank knows the cause."""


def one_of(choices: list[str] | list[int]) -> str:
    """'1, 2 or 4' of [1, 2, 4]: how a list of choices stands in a sentence."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
