"""The answers over HTTP: who may ask, and how."""

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from analyze.serve.answers import Answers, answer
from analyze.serve.page import serve_page
from schemas import LakeError, MissingRunError, UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names under which the page may be asked for where there is no token."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may ask: nobody by another name or from another site, and where there is a token only who has it.

    A page of another site can make a browser ask what it likes, also under a name of its own that leads here. So the
    name must be one of this server's; with a token any name will do, as a foreign name brings no token.
    """

    app: Any
    token: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal = self.refusal(scope, headers)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                protect(MutableHeaders(scope=message))
            with suppress(LocalProtocolError):  # what was asked went on as no HTTP, and that has been answered
                await send(message)

        await (refusal or self.app)(scope, receive, guarded)

    def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """What is answered to those who may not ask; ``None``: they may."""
        names = headers.getlist("host")
        if len(names) != 1 or (not self.token and host_of(names[0]) not in LOOPBACK):
            return PlainTextResponse(f"this page is at {LOOPBACK[0]}, not at another name\n", 421)
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin.partition("://")[2] != names[0]
        if foreign or (site not in ("same-origin", "none") and scope["path"] != "/"):
            return PlainTextResponse("pages of other sites may not ask this one\n", 403)
        return self.token_refusal(scope, headers) if self.token else None

    def token_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """As :meth:`refusal`, for the token: it comes with the address first and with a cookie from then on."""
        port = (scope.get("server") or ("", ""))[1]
        cookie = f"lake-{port}"
        given = QueryParams(scope["query_string"]).get("token", "")
        if scope["path"] == "/" and same(given, self.token):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(cookie, self.token, httponly=True, samesite="strict")
            return entered
        if same(Request(scope).cookies.get(cookie, ""), self.token):
            return None
        if same(headers.get("authorization", ""), f"Bearer {self.token}"):
            return None
        return PlainTextResponse("open the address that lake serve printed: it ends in ?token=..\n", 401)


def same(given: str, wanted: str) -> bool:
    """Whether two texts are the same, in a time that does not say how far."""
    return secrets.compare_digest(given.encode(), wanted.encode())


def host_of(name: str) -> str:
    """Name in a Host header, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{name}").hostname or ""
    except ValueError:
        return ""


def protect(headers: MutableHeaders) -> None:
    """Headers of every answer: browsers keep it from other sites, and take it for nothing but what it says."""
    headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers["cross-origin-opener-policy"] = "same-origin"
    headers["cache-control"] = "no-store"


def application(answers: Answers, *, token: str = "") -> Gate:
    """The page and its answers as an ASGI application; it has no address that names a file.

    Parameters
    ----------
    answers
        Of the lake.
    token
        Asked of every visitor; empty: nobody is asked.
    """

    def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        allowed = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(serve_page(answers.title, nonce), headers={"content-security-policy": allowed})

    def api(request: Request) -> Response:
        code, held = 200, answers.state()
        try:
            content = answer(answers, request.path_params["question"], request.query_params)
        except LakeError as error:
            code = 404 if isinstance(error, MissingRunError) else 400 if isinstance(error, UsageError) else 500
            content = json.dumps({"error": str(error)}).encode()
        except Exception as error:  # a result that another version or Python wrote; the page says so and goes on
            code, content = 500, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        return Response(content, code, {"lake-state": held}, "application/json")

    routes = [Route("/", page), Route("/api/{question}", api)]
    return Gate(GZipMiddleware(Starlette(routes=routes)), token)
