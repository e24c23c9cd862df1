"""The HTTP API's description at /schema, behind the operators' guard. Nothing on the page comes from another host."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from litestar import Request, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.static_files import create_static_files_router

from app.web.auth import ASK
from app.web.pages import page, policy
from app.web.session import Sessions, secured

PATH = "/schema"
FILES = Path(__file__).parent / "static" / "swagger"
# Swagger UI draws with inline styles and data images; it runs no inline script.
POLICY = policy(script_src="'self'", style_src="'self' 'unsafe-inline'", img_src="'self' data:", connect_src="'self'")


class Page(OpenAPIRenderPlugin):
    """Swagger UI from our own files; it fetches the schema by itself."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page as it is on disk."""
        return page("schema").encode()


def config(sessions: Sessions) -> OpenAPIConfig:
    """What Litestar needs to serve /schema and /schema/openapi.json."""
    guarded = Router(
        path=PATH,
        route_handlers=[create_static_files_router("/static", [FILES], name="swagger")],
        guards=[sessions.guard],
        middleware=[secured(POLICY), sessions.middleware],
        exception_handlers=ASK,
        include_in_schema=False,
    )
    return OpenAPIConfig(
        title="Qasid",
        version=version("qasid"),
        render_plugins=[Page(path="/"), JsonRenderPlugin()],
        openapi_router=guarded,
    )
