"""Who may use the page: nobody but the person to whom `dnc watch` gave its address.

The page can reset sessions, and it acts with the token that `dnc watch` was given. Three things keep others out:
- a web site that makes its own name point here (DNS rebinding) sends that name as `Host`;
- a web site that sends requests from its own pages has another `Origin`;
- other users of the machine don't know the secret in the address. It stands behind the `#`, which browsers keep to
  themselves, and the page sends it as a header, which no other site can.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

SECRET_HEADER = "X-Dnc-Watch"  # noqa: S105  its name
_PAGE_POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def guarded(secret: str) -> Middleware:
    """The middleware: answers 403 to whoever may not ask; all under /api/ needs the secret."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_loopback(request.host):
            return _refused(f"Host is {request.host!r}; this page is for localhost only")
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.host}":
            return _refused(f"Origin is {origin!r}; this page takes requests from itself only")
        shown = request.headers.get(SECRET_HEADER, "")
        if request.path.startswith("/api/") and not hmac.compare_digest(shown.encode(), secret.encode()):
            return _refused("open the address that dnc watch printed: it holds the secret of this page")
        return await handler(request)

    return guard


async def add_policy(request: web.Request, response: web.StreamResponse) -> None:
    """What browsers may do with an answer; to be called before it is sent."""
    response.headers.update(_PAGE_POLICY)


def is_loopback(host: str) -> bool:
    """Whether a `Host` header names this machine; the port may be that of a tunnel."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refused(why: str) -> web.Response:
    return web.json_response({"reason": "REFUSED", "message": why}, status=403)
