"""What counts as a failure of the database, a channel, an assistant and its helpers, and when to ask again. Data, no machine."""

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from app.breaker import Open, Policy, Verdict
from app.errors import (
    AssistantBusy,
    AssistantRefused,
    DatabaseUnavailable,
    HeldBack,
    NeverLeft,
    Overloaded,
    Refused,
    SendError,
    TranslatorBusy,
    TranslatorRefused,
)

# The server refused the data itself: the same rows would be refused again, other rows would not.
BAD_DATA = (
    psycopg.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,  # JSON that is nested too deeply for the server
)


class DatabaseOpen(Open, DatabaseUnavailable):
    """Nothing was asked of the database, so nothing happened."""


class ChannelOpen(Open, NeverLeft):
    """Nothing of the request left us: sending again is safe."""


class AssistantOpen(Open, AssistantBusy):
    """The assistant was not asked."""


class AssistantSkipped(Open, AssistantRefused):
    """Likewise, and whoever wanted to ask it goes on without: nobody waits until it may be asked."""


class TranslatorOpen(Open, TranslatorRefused):
    """The translator was not asked: the original stands, at once."""


class TranscriberOpen(Open, AssistantRefused):
    """Nobody was asked to write down what was said: the person is told so, at once."""


def of_database(error: Exception) -> Verdict:
    """Refused data, our own pool's saturation and mistakes of ours say nothing about the server.

    `DatabaseUnavailable` means what its cause means; without one, that no answer came in time. A deadlock and a
    serialization failure are the answer of a server in good health.
    """
    if isinstance(error, NOT_THE_SERVERS):
        return "neither"
    if isinstance(error, DatabaseUnavailable):
        cause = error.__cause__
        if isinstance(cause, Open):
            return "neither"
        return of_database(cause) if isinstance(cause, Exception) else "late"
    if isinstance(error, LATE):
        return "late"
    return "failed" if isinstance(error, FAILED) else "neither"


def of_channel(error: Exception) -> Verdict:
    """A refusal is an answer: its waits bind whom they bind elsewhere. No answer, or none that makes sense, is a failure."""
    if isinstance(error, Refused):
        return "good"
    if isinstance(error, HeldBack):
        return "neither"
    return "failed" if isinstance(error, (SendError, OSError)) else "neither"


def of_assistant(error: Exception) -> Verdict:
    """A wrong key or a refusal to answer is an answer; overloaded, unreachable and cut in mid-stream are failures.

    So it is with those who translate and transcribe.
    """
    if isinstance(error, (AssistantRefused, TranslatorRefused)):
        return "good"
    if isinstance(error.__cause__, HeldBack):
        return "neither"
    return "failed" if isinstance(error, (AssistantBusy, TranslatorBusy, OSError)) else "neither"


NOT_THE_SERVERS = (
    *BAD_DATA,
    Overloaded,
    PoolTimeout,
    TooManyRequests,
    PoolClosed,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
LATE = (
    TimeoutError,
    psycopg.errors.ConnectionTimeout,
    psycopg.errors.QueryCanceled,  # by `statement_timeout`: nobody else cancels a statement that is still waited for
    psycopg.errors.LockNotAvailable,  # by `lock_timeout`: we have no NOWAIT
)
# InternalError: a server that is read-only (25006), or takes data for corrupt.
FAILED = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError)

DATABASE = Policy(judge=of_database, refusal=DatabaseOpen, failures=5, deadlines=2, slow=0.5, answers=3)
CHANNEL = Policy(judge=of_channel, refusal=ChannelOpen, share=0.5, pause=1.0)
# An answer may take a minute; of the one that asks whether it is there the first words will do: `Call.began`.
ASSISTANT = Policy(judge=of_assistant, refusal=AssistantOpen, share=0.5, pause=1.0, longest_probe=75.0)
# Of a quiet tenant's translations and voice messages ten are never under way within ten seconds, and each that fails has
# kept a person waiting for what they can do without: three in a row are enough (workers/breakers.py, `now`).
TRANSLATOR = Policy(judge=of_assistant, refusal=TranslatorOpen, failures=3, pause=1.0, longest_probe=75.0)
TRANSCRIBER = Policy(judge=of_assistant, refusal=TranscriberOpen, failures=3, pause=1.0, longest_probe=75.0)
