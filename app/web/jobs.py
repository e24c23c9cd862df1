"""SAQ's page at /jobs, behind the operators' guard, its files too. It shows wake-ups: which lanes are worked on now.

It stops and retries nothing that matters: a wake-up carries no truth.
"""

from litestar import Router
from litestar.di import NamedDependency, Provide
from litestar.response import Redirect
from litestar.static_files import create_static_files_router
from litestar_saq import SAQConfig, TaskQueues
from litestar_saq.controllers import build_controller
from saq.queue import Queue

from app.web.auth import ASK, AnyRequest
from app.web.pages import policy
from app.web.session import Sessions, secured

PATH = "/jobs"

# The page of litestar-saq has one inline script; a test compares its hash with what is served.
INLINE = f'<script>const root_path = "{PATH}";</script>'
POLICY = policy(INLINE, script_src="'self'", style_src="'self'", img_src="data:", connect_src="'self'")


def routes(queue: Queue, sessions: Sessions) -> Router:
    """The page and its API over `queue`. A router of our own instead of SAQPlugin, whose files stand in the open."""
    config = SAQConfig(queue_instances={queue.name: queue}, queue_configs=[])

    async def task_queues() -> TaskQueues:
        await queue.connect()  # once; until PostgreSQL is there, again each time
        return config.get_queues()

    return Router(
        path="/",
        route_handlers=[
            build_controller(PATH),
            create_static_files_router(f"{PATH}/static", [config.static_files], name="saq"),
        ],
        guards=[sessions.guard],
        middleware=[secured(POLICY), sessions.middleware],
        before_request=_with_slash,
        exception_handlers=ASK,
        dependencies={config.queues_dependency_key: Provide(task_queues)},
        # litestar-saq lets Litestar infer its dependency, which warns: under this name it is explicit.
        signature_namespace={**config.signature_namespace, "TaskQueues": NamedDependency[TaskQueues]},
        include_in_schema=False,
    )


async def _with_slash(request: AnyRequest) -> Redirect | None:
    """SAQ's page finds out by its address what to show, and knows its first view as `/jobs/` only."""
    return Redirect(f"{PATH}/") if request.scope["raw_path"] == PATH.encode() else None
