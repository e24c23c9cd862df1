"""`python -m tests.bench.unwatched web`: `qasid web` whose database has no breaker and no prober, to measure what they cost."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from app import db
from app.breaker import Breaker

if TYPE_CHECKING:
    from litestar import Litestar


class Unheard(Breaker):
    """Hears nothing, refuses nothing."""

    def check(self) -> None:
        """Whoever asks may call."""

    def late(self) -> None:
        """Nobody counts."""


class NoProber:
    """Asks nothing."""

    def __init__(self, *_: object) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def create_app() -> "Litestar":
    """What granian loads."""
    from app import asgi, served

    vars(asgi).update(Breaker=Unheard, Prober=NoProber)
    # Whoever gives a pool a breaker gives it to nobody.
    db.Pool.breaker = property(lambda _: None, lambda *_: None)  # type: ignore[assignment]
    return served.create_app()


if __name__ == "__main__":
    from app import cli

    watched = cli.granian
    cli.granian = lambda settings: [*watched(settings)[:-1], "tests.bench.unwatched:create_app"]
    cli.main()
