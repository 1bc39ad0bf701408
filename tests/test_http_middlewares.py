"""Middlewares of rondel.http and aiohttp: the same ones see the same."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from http_peers import CLIENTS, lineage, web_server
from rondel import http
from support import HOST, run_on
from yarl import URL

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


class Recorder:
    """Notes what it sees of requests and responses."""

    def __init__(self, name: str, seen: list[Any]) -> None:
        self.name = name
        self.seen = seen

    async def __call__(self, request: Any, handler: Any) -> Any:
        own = ("host", "user-agent", "accept-encoding")
        fields = sorted((n.lower(), v) for n, v in request.headers.items() if n.lower() not in own)
        # Without a body aiohttp adds this one after the middlewares.
        fields = [field for field in fields if field[1] != "application/octet-stream"]
        body = request.body
        data = body if isinstance(body, bytes) else await body.as_bytes()
        told = (request.method, request.url.path, request.is_ssl(), fields, data, request.ssl)
        self.seen.append((self.name, *told, request.host == request.url.host, request.port))
        assert request.session.closed is False
        response = await handler(request)
        self.seen.append((self.name, response.status, response.url.path))
        return response


async def _adds_a_field(request: Any, handler: Any) -> Any:
    request.headers["X-Added"] = "1"
    request.headers.pop("Accept", None)
    return await handler(request)


async def _twice(request: Any, handler: Any) -> Any:
    (await handler(request)).release()
    request.headers["X-Again"] = "yes"
    return await handler(request)


async def _other_body(request: Any, handler: Any) -> Any:
    await request.update_body(b"another")
    return await handler(request)


async def _form_body(request: Any, handler: Any) -> Any:
    await request.update_body({"a": "b"})
    return await handler(request)


async def _no_body(request: Any, handler: Any) -> Any:
    await request.update_body(None)
    return await handler(request)


async def _own_request(request: Any, handler: Any) -> Any:
    url = request.url.with_path("/small")
    async with request.session.get(url, middlewares=()) as response:
        request.headers["X-Size"] = str(len(await response.read()))
    return await handler(request)


async def _raises(request: Any, handler: Any) -> Any:
    raise ValueError("no")


CASES: dict[str, tuple[list[Any], str, dict[str, Any]]] = {
    "none": ([], "/echo", {}),
    "field": ([_adds_a_field], "/echo", {"data": b"abc"}),
    "twice": ([_twice], "/echo", {"data": b"abc"}),
    "redirects": ([_adds_a_field], "/redirect?to=/echo&code=307", {"data": b"abc"}),
    "redirects to GET": ([], "/redirect?to=/echo&code=303", {"data": b"abc"}),
    "body": ([_other_body], "/echo", {"data": b"abc"}),
    "form": ([_form_body], "/echo", {"json": {"a": 1}}),
    "no body": ([_no_body], "/echo", {"data": b"abc"}),
    "first body": ([_other_body], "/echo", {}),
    "own request": ([_own_request], "/echo", {}),
    "raises": ([_raises], "/echo", {}),
    "params": ([_adds_a_field], "/echo", {"params": {"a": "ü"}, "cookies": {"c": "d"}}),
    "status": ([_adds_a_field], "/status/404", {"raise_for_status": True}),
}


async def outcome(client: Any, base: str, case: str, where: str) -> Any:
    middlewares, path, arguments = CASES[case]
    seen: list[Any] = []
    chain = (Recorder("first", seen), *middlewares, Recorder("last", seen))
    session_arguments: dict[str, Any] = {"middlewares": chain} if where == "session" else {}
    if where == "request":
        arguments = {**arguments, "middlewares": chain}
        session_arguments["middlewares"] = (_raises,)
    async with client.ClientSession(**session_arguments) as session:
        try:
            async with session.post(base + path, **arguments) as response:
                text = await response.text()
                sent = sorted(n.lower() for n in response.request_info.headers)
                hops = [(r.status, r.url.path) for r in response.history]
                seen.append((response.status, response.url.path, hops, sent))
                seen.append(re.sub(r'\["host".*?\]', "", text))
        except (client.ClientError, ValueError) as error:
            seen.append((lineage(error), str(error)))
    return seen


@pytest.mark.parametrize("where", ["session", "request"])
@pytest.mark.parametrize("case", CASES)
def test_same_as_aiohttp(rondel_loop: Any, case: str, where: str) -> None:
    async def main() -> None:
        async with web_server() as base:
            told = [await outcome(client, base, case, where) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_not_called_on_the_way_to_another_host(rondel_loop: Any) -> None:
    """A middleware that changes the host: the request goes there."""

    async def main() -> None:
        async with web_server() as base:

            async def redirects(request: Any, handler: Any) -> Any:
                request.url = URL(base).join(request.url.relative())
                return await handler(request)

            async with http.ClientSession(middlewares=(redirects,)) as session:
                assert session.middlewares == (redirects,)
                async with session.get("http://nowhere.invalid/echo") as response:
                    told = await response.json()
                    assert ["host", base.removeprefix("http://")] in told["headers"]
                    assert response.url == URL(base + "/echo")

    run_on(rondel_loop, main)


def test_with_retries_and_traces(rondel_loop: Any) -> None:
    """The middlewares are inside of both: called for each attempt."""
    calls: list[str] = []

    async def counts(request: http.ClientRequest, handler: http.ClientHandlerType) -> Any:
        calls.append(repr(request))
        return await handler(request)

    async def main() -> None:
        config = http.TraceConfig()
        ended: list[str] = []

        async def end(session: Any, context: Any, params: Any) -> None:
            ended.append(params.method)

        config.on_request_end.append(end)
        retry = http.Retry(attempts=3, backoff=0.001)
        arguments: dict[str, Any] = {"retry": retry, "trace_configs": [config]}
        async with (
            web_server() as base,
            http.ClientSession(middlewares=[counts], **arguments) as session,
            session.get(base + "/status/503") as response,
        ):
            assert response.status == 503
        assert len(calls) == 3 and "/status/503" in calls[0] and ended == ["GET"] * 3

    run_on(rondel_loop, main)


# Digest authentication.


def _hash(name: str, *parts: str) -> str:
    return hashlib.new(name, ":".join(parts).encode()).hexdigest()


class Guarded:
    """A server that checks digests by RFC 7616, in its own words."""

    def __init__(self, algorithm: str, qop: str | None, extra: str = "") -> None:
        self.algorithm = algorithm
        self.qop = qop
        self.extra = extra
        self.nonce = 0
        self.seen: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        field = request.headers.get("Authorization", "")
        verdict = self._verdict(request, body, field) if field else "nothing"
        self.seen.append(verdict)
        if verdict.startswith("right"):
            return web.json_response([body, verdict])
        self.nonce += 1
        challenge = f'Digest realm="r, \\"x\\"", nonce="n{self.nonce}", opaque="o"{self.extra}'
        if self.algorithm:
            challenge += f", algorithm={self.algorithm}"
        if self.qop is not None:
            challenge += f', qop="{self.qop}"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge}, text="who?")

    def _verdict(self, request: web.Request, body: str, field: str) -> str:
        pairs = re.findall(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^ ,]+))', field)
        given = {name: quoted.replace('\\"', '"') or plain for name, quoted, plain in pairs}
        name = (self.algorithm or "MD5").lower().removesuffix("-sess").replace("-", "")
        secret = _hash(name, "me", 'r, "x"', "secret")
        if self.algorithm.lower().endswith("-sess"):
            secret = _hash(name, secret, given["nonce"], given["cnonce"])
        asked = [request.method, request.raw_path]
        if given.get("qop") == "auth-int":
            asked.append(_hash(name, body))
        middle = [given["nonce"]]
        if self.qop is not None:
            middle += [given["nc"], given["cnonce"], given["qop"]]
        right = _hash(name, secret, *middle, _hash(name, *asked)) == given["response"]
        known = given["nonce"] == f"n{self.nonce}" and given["uri"] == request.raw_path
        assert given["username"] == "me" and given["opaque"] == "o"
        return f"right {given.get('nc')}" if right and known else "wrong"


@contextlib.asynccontextmanager
async def guarded_server(guard: Guarded) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", guard.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("preemptive", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "qop"),
    [
        ("", None),
        ("MD5", "auth"),
        ("MD5-sess", "auth"),
        ("SHA-256", "auth"),
        ("SHA-256", "auth-int"),
        ("SHA-512", "auth"),
        ("sha-256-sess", "auth-int"),
    ],
)
def test_digest(rondel_loop: Any, algorithm: str, qop: str | None, preemptive: bool) -> None:
    async def main() -> None:
        told = []
        for client in CLIENTS:
            guard = Guarded(algorithm, qop)
            digest = client.DigestAuthMiddleware("me", "secret", preemptive=preemptive)
            async with (
                guarded_server(guard) as base,
                client.ClientSession(middlewares=(digest,)) as session,
            ):
                answers = []
                for path in ("/a?x=1%202", "/b/ü", "/c"):
                    async with session.post(base + path, data=b"the body") as response:
                        answers.append((response.status, await response.json()))
            told.append((answers, guard.seen))
        assert told[1] == told[0]
        assert [status for status, _ in told[1][0]] == [200] * 3

    run_on(rondel_loop, main)


@pytest.mark.parametrize(
    "case", ["wrong password", "other qop", "other algorithm", "other origin", "domain"]
)
def test_digest_that_fails(rondel_loop: Any, case: str) -> None:
    async def main() -> None:
        told: list[Any] = []
        for client in CLIENTS:
            qop = "other" if case == "other qop" else "auth"
            algorithm = "MD4" if case == "other algorithm" else "MD5"
            extra = ', domain="/in /also"' if case == "domain" else ""
            guard = Guarded(algorithm, qop, extra)
            password = "x" if case == "wrong password" else "secret"
            digest = client.DigestAuthMiddleware("me", password)
            async with (
                guarded_server(guard) as base,
                guarded_server(Guarded("MD5", "auth")) as other,
                client.ClientSession(middlewares=(digest,)) as session,
            ):
                for url in (base + "/in/a", base + "/out", base + "/also/b", other + "/"):
                    try:
                        async with session.get(url) as response:
                            told.append((response.status, await response.text()))
                    except client.ClientError as error:
                        told.append(lineage(error))
                if not case.startswith("other "):
                    told.append(guard.seen)
        half = len(told) // 2
        assert told[half:] == told[:half]

    run_on(rondel_loop, main)


def test_digest_of_nobody() -> None:
    arguments: list[Any] = [(None, "x"), ("x", None), ("a:b", "x")]
    for client in CLIENTS:
        for pair in arguments:
            with pytest.raises(ValueError):
                client.DigestAuthMiddleware(*pair)
    assert asyncio.iscoroutinefunction(http.DigestAuthMiddleware.__call__)
