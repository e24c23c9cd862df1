"""HTML pages, as files. `page` reads one once; `policy` is the Content-Security-Policy that lets its own parts run."""

import base64
import functools
import hashlib
import re
from pathlib import Path

_INLINE = {
    "script-src": re.compile(r"<script>(.*?)</script>", re.DOTALL),
    "style-src": re.compile(r"<style>(.*?)</style>", re.DOTALL),
}


@functools.cache
def page(name: str) -> str:
    """The text of `name`.html."""
    return (Path(__file__).parent / f"{name}.html").read_text()


def policy(html: str = "", **allowed: str) -> str:
    """A Content-Security-Policy: nothing loads but what is `allowed` and, by their hashes, the inline parts of `html`.

    Keys of `allowed` are directives with `_` for `-`, e.g. `img_src="data:"`.
    """
    directives = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    directives |= {key.replace("_", "-"): sources for key, sources in allowed.items()}
    for directive, inline in _INLINE.items():
        for part in inline.findall(html):
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            directives[directive] = f"{directives.get(directive, '')} 'sha256-{digest}'".strip()
    return "; ".join(f"{directive} {sources}" for directive, sources in directives.items())
