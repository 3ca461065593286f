# SPDX-License-Identifier: Apache-2.0
"""The dashboard as one document with markup, style and scripts. It loads no other files."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("dashboard")
STYLE: Final = "style.css"
SCRIPTS: Final = ("format.js", "server.js", "heat_map.js", "usage_chart.js", "plan.js", "page.js")
"""Ordered so that each script uses only scripts before it."""


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hashed(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _page(style: str, script: str) -> str:
    page = _read("index.html")
    page = page.replace("<style></style>", f"<style>{style}</style>")
    return page.replace("<script></script>", f"<script>{script}</script>")


def _headers(style: str, script: str) -> dict[str, str]:
    """Headers for the browser: load nothing, run only our script, connect only to this server."""
    policy = {
        "default-src": "'none'",
        "style-src": _hashed(style),
        "script-src": _hashed(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


_STYLE, _SCRIPT = _read(STYLE), "\n".join(_read(name) for name in SCRIPTS)
PAGE: Final = _page(_STYLE, _SCRIPT)
PAGE_HEADERS: Final = _headers(_STYLE, _SCRIPT)
