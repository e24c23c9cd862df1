"""One file that came with a message: fetched by its id, checked, bounded. How many a turn has, and makes of them, others know.

Whatever keeps it from us is told of here, once.
"""

from collections.abc import Sequence

import httpx
import structlog

from app import metrics
from app.alerts import alert
from app.channels import Attachment, Media, provider
from app.directory import Channel, Tenant, Watch
from app.errors import MediaBusy, MediaError, MediaForbidden
from app.store.turns import Asked

log = structlog.get_logger(__name__)

# A file takes at most this share of the time that an answer has; so much of it is the answer's own, whatever files took.
SHARE = 0.5


class Fetching:
    """`fetch` the `attachment` of a message."""

    def __init__(
        self, directory: Watch, client: httpx.AsyncClient, outside: httpx.AsyncClient, *, hosts: Sequence[str] = ()
    ) -> None:
        """`client` is for what the operator configured, `outside` for URLs that came in data: `Provider.media`."""
        self._directory = directory
        self._client = client
        self._outside = outside
        self._hosts = tuple(hosts)

    def attachment(self, channel: Channel, message: Asked) -> Attachment | None:
        """What its last edit brought, or else what it brought itself."""
        transport = provider(self._directory.current.endpoint_of(channel).kind)
        return transport.attachment(bytes(message.edited)) or transport.attachment(bytes(message.raw))

    async def fetch(
        self, tenant: Tenant, channel: Channel, message: Asked, file: Attachment, *, most: int, deadline: float
    ) -> Media:
        """At most so many bytes, before `deadline` (monotonic).

        Raises:
            MediaError: as `Provider.media` does; it has been told of.
        """
        transport = provider(self._directory.current.endpoint_of(channel).kind)
        of = {
            "kind": message.kind,
            "tenant": tenant.slug,
            "channel": channel.slug,
            "correlation": message.correlation,
        }
        try:
            found = await transport.media(
                self._client, self._outside, channel, file, hosts=self._hosts, most=most, deadline=deadline
            )
        except MediaForbidden as error:
            metrics.file("forbidden")
            alert(
                log.error,
                "media_forbidden",
                "a file lies where we may not ask",
                reason=str(error),
                **of,
            )
            raise
        except MediaError as error:
            metrics.file("busy" if isinstance(error, MediaBusy) else "refused")
            log.warning(
                "file not fetched",
                reason=str(error),
                **of,
            )
            raise
        metrics.file("read")
        return found


def kept_out(tenant: Tenant, message: Asked) -> None:
    """Of the tenant nobody was served while it waited to be fetched: it counts as not read."""
    metrics.file("busy")
    log.warning("files wait in vain", kind=message.kind, tenant=tenant.slug, correlation=message.correlation)
