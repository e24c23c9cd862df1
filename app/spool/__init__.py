"""The spool: a folder that holds authentic webhooks while PostgreSQL cannot take them, sealed and on the disk before 200.

`Spool` is all that others need; and `require`, before they start. It knows neither HTTP nor ingest nor the database, and
never drops what it holds.
"""

from app.errors import SpoolError, SpoolFailed, SpoolFull
from app.spool.folder import require
from app.spool.frames import Record
from app.spool.replay import Report
from app.spool.spool import Spool
from app.spool.state import State

__all__ = ["Record", "Report", "Spool", "SpoolError", "SpoolFailed", "SpoolFull", "State", "require"]
