"""Every public name, argument and attribute of aiohttp's client: there, or absent for a reason."""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from http_peers import CLIENTS, raw_server, web_server
from rondel import http
from rondel.http.ws_connect import connect
from support import HOST, run_on
from yarl import URL

DEPRECATED = "deprecated by aiohttp, which names what to use instead"
SERVER = "of the server, of multipart bodies that are read, or of body classes of one's own"
INSIDE = "how aiohttp works inside"
HEADS = "a head's size has one limit (128 KiB) that cannot be chosen"
TYPES = "only a type, for annotations of aiohttp's own arguments"
UPLOADS = "progress of uploads: an iterator as `data` can count for itself"


def _each(names: str, reason: str, prefix: str = "") -> dict[str, str]:
    return {prefix + name: reason for name in names.split()}


#: What is not there, and why: names, `Class.attribute`, and `function(argument)`.
ABSENT: dict[str, str] = {
    **_each(
        """BadContentDispositionHeader BadContentDispositionParam BodyPartReader MultipartReader
        MultipartWriter content_disposition_filename parse_content_disposition AsyncIterablePayload
        BufferedReaderPayload BytesIOPayload BytesPayload IOBasePayload JsonPayload PAYLOAD_REGISTRY
        Payload StringIOPayload StringPayload TextIOPayload get_payload payload_type streamer
        GunicornUVLoopWebWorker GunicornWebWorker ETag ChainMapProxy""",
        SERVER,
    ),
    **_each("DataQueue EMPTY_PAYLOAD FlowControlDataQueue", INSIDE),
    **_each("AddrInfoType SocketFactoryType", TYPES),
    **_each("UploadAbortedError UploadTracker request(upload_tracker)", UPLOADS),
    **_each("""ClientResponse.output_size ClientResponse.upload_complete""", UPLOADS),
    **_each(
        "AsyncResolver DefaultResolver ThreadedResolver",
        "names are looked up by the loop's getaddrinfo; aiohttp's own can be given as `resolver`",
    ),
    "NamedPipeConnector": "of Windows",
    "set_zlib_backend": "bodies are decoded natively",
    **_each(
        """ClientSession.__init__(max_line_size) ClientSession.__init__(max_field_size)
        ClientSession.__init__(max_headers) request(max_line_size) request(max_field_size)
        request(max_headers) StreamReader.readline(max_line_length)
        StreamReader.readuntil(max_size)""",
        HEADS,
    ),
    **_each(
        """ClientSession.__init__(conn_timeout) ClientSession.__init__(read_timeout)
        ClientSession.__init__(ssl_shutdown_timeout) TCPConnector.__init__(ssl_shutdown_timeout)
        TCPConnector.__init__(verify_ssl) TCPConnector.__init__(fingerprint)
        TCPConnector.__init__(ssl_context) request(verify_ssl) request(fingerprint)
        request(ssl_context) ws(verify_ssl) ws(fingerprint) ws(ssl_context) ClientResponse.url_obj
        StreamReader.unread_data FormData.add_field(content_transfer_encoding)""",
        DEPRECATED,
    ),
    **{
        f"{name}{what}": DEPRECATED
        for name in (
            "ClientHttpProxyError",
            "ClientResponseError",
            "ContentTypeError",
            "TooManyRedirects",
            "WSServerHandshakeError",
        )
        for what in (".code", ".__init__(code)")
    },
    "ClientSession.__init__(request_class)": "a middleware changes requests",
    "ClientSession.__init__(ws_response_class)": "a WebSocket is made by ws_connect()",
    "ClientSession.__init__(version)": "requests are HTTP/1.1",
    "Fingerprint.HASHFUNC_BY_DIGESTLEN": "SHA-256 is the only one allowed",
    "TCPConnector.__init__(dns_cache_max_size)": "there is no cache of names",
    "TCPConnector.__init__(socket_factory)": "the loop makes the sockets",
    **{
        f"{name}{what}": INSIDE
        for name in ("BaseConnector", "TCPConnector", "UnixConnector")
        for what in (
            ".allowed_protocol_schema_set",
            ".close(abort_ssl)",
            ".connect(req)",
            ".connect(traces)",
        )
    },
    "BaseConnector.__init__(timeout_ceil_threshold)": INSIDE,
    "TCPConnector.__init__(timeout_ceil_threshold)": INSIDE,
    **_each("ClientSession.ATTRS ClientResponse.ATTRS ClientResponse.start", INSIDE),
    **_each(
        "begin_http_chunk_receiving end_http_chunk_receiving feed_data feed_eof on_eof wait_eof "
        "get_read_buffer_limits set_read_chunk_size total_compressed_bytes total_raw_bytes "
        "set_exception(exc) set_exception(exc_cause)",
        "for whoever feeds the stream, which is native",
        "StreamReader.",
    ),
    **_each(
        "DATE_DAY_OF_MONTH_RE DATE_HMS_TIME_RE DATE_MONTH_RE DATE_TOKENS_RE DATE_YEAR_RE MAX_TIME "
        "SUB_MAX_TIME cookies host_only_cookies",
        INSIDE,
        "CookieJar.",
    ),
    **_each("cookies host_only_cookies", INSIDE, "DummyCookieJar."),
}
#: Classes whose objects the library makes: their constructors are its own.
MADE_BY_THE_LIBRARY = ("ClientRequest", "ClientResponse", "ClientWebSocketResponse", "StreamReader")
#: What a middleware is given; the rest of aiohttp's class builds and sends requests.
REQUEST = (
    "body chunked compress connection_key headers host is_ssl loop method original_url port proxy "
    "proxy_auth proxy_headers request_info server_hostname session skip_auto_headers ssl "
    "update_body url version"
)


def _arguments(function: Any) -> tuple[set[str], bool]:
    """The names of arguments, and whether there may be others."""
    parameters = inspect.signature(function).parameters.values()
    many = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {p.name for p in parameters if p.kind not in many} - {"self"}
    return names, any(p.kind is many[0] for p in parameters)


def _lacking(name: str, theirs: Any, ours: Any) -> set[str]:
    try:
        wanted, _ = _arguments(theirs)
        there, others = _arguments(ours)
    except (TypeError, ValueError):
        return set()
    return set() if others else {f"{name}({argument})" for argument in wanted - there}


def _of_class(name: str, theirs: Any, ours: Any) -> set[str]:
    found = set()
    for attribute in ["__init__", *(a for a in dir(theirs) if not a.startswith("_"))]:
        of_theirs = getattr(theirs, attribute)
        if not hasattr(ours, attribute):
            found.add(f"{name}.{attribute}")
        elif callable(of_theirs) and (attribute != "__init__" or name not in MADE_BY_THE_LIBRARY):
            found |= _lacking(f"{name}.{attribute}", of_theirs, getattr(ours, attribute))
    return found


def missing() -> set[str]:
    """What aiohttp has and rondel.http does not."""
    found = set()
    for name in aiohttp.__all__:
        theirs, ours = getattr(aiohttp, name), getattr(http, name, None)
        if ours is None:
            found.add(name)
        elif inspect.isclass(theirs) and name not in ("ClientRequest", "TraceConfig"):
            found |= _of_class(name, theirs, ours)
        elif inspect.isfunction(theirs):
            found |= _lacking(name, theirs, ours)
    session = aiohttp.ClientSession
    found |= _lacking("request", session._request, http.ClientSession._request)
    found |= _lacking("ws", session._ws_connect, connect)
    return found


def test_the_whole_interface() -> None:
    found = missing()
    assert sorted(found - set(ABSENT)) == [], "neither there nor explained"
    assert sorted(set(ABSENT) - found) == [], "explained, but there (or gone from aiohttp)"


def test_names_of_trace_signals_and_header_fields() -> None:
    theirs, ours = aiohttp.TraceConfig(), http.TraceConfig()
    assert {a for a in dir(theirs) if a.startswith("on_")} <= set(dir(ours))
    for name, value in vars(aiohttp.hdrs).items():
        if name.isupper() and isinstance(value, str):
            assert getattr(http.hdrs, name) == value


def test_what_middlewares_are_given(rondel_loop: Any) -> None:
    async def check(request: Any, handler: Any) -> Any:
        assert [name for name in REQUEST.split(" ") if not hasattr(request, name)] == []
        return await handler(request)

    async def main() -> None:
        async with web_server() as base:
            for client in CLIENTS:
                async with client.ClientSession(middlewares=[check]) as session:
                    async with session.get(base + "/small") as response:
                        assert response.status == 200

    run_on(rondel_loop, main)


FIELDS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "next": [("Link", '</page?2>; rel="next"; title="a"')],
    "several": [("Link", '<a,b>; rel=x, <http://h/c>; rel="y z"'), ("Link", "<d>")],
    "odd": [("Link", "<a>; rel; x='y'; , nothing, <b>; rel=")],
    "attachment": [("Content-Disposition", 'attachment; filename="a b.txt"')],
    "token": [("Content-Disposition", "INLINE; FileName=x.txt")],
    "extended": [("Content-Disposition", "attachment; filename=e; filename*=UTF-8''%e2%82%ac.txt")],
    "bare": [("Content-Disposition", "attachment")],
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_responses(rondel_loop: Any, case: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in FIELDS[case])
    answer = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n".encode()

    async def main() -> None:
        async with raw_server(answer) as url:
            told = []
            for client in CLIENTS:
                async with client.ClientSession() as session, session.get(url + "x/y") as response:
                    found = response.content_disposition
                    links = [(key, list(link.items())) for key, link in response.links.items()]
                    told.append((links, found and (found.type, dict(found.parameters))))
                    told[-1] += (found and found.filename,)
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_cookie_files(rondel_loop: Any, tmp_path: Path) -> None:
    """Each client reads what the other has written."""
    url = URL("https://a.example.org/deep/x")
    fields = [
        "plain=1",
        "deep=2; Path=/deep",
        "domain=3; Domain=example.org; Secure; HttpOnly; SameSite=Lax",
        'late=4; Max-Age=5000; Path="/"',
        'quoted="a b"; Expires=Fri, 01 Jan 2100 00:00:00 GMT',
    ]

    def seen(jar: Any) -> Any:
        asked = (url, URL("https://example.org/"), URL("http://b.a.example.org/deep"))
        sent = [sorted((m.key, m.value) for m in jar.filter_cookies(u).values()) for u in asked]
        return sent, sorted((m.key, m.value, m["domain"], m["path"]) for m in jar)

    async def main() -> None:
        told = []
        for client in CLIENTS:
            jar = client.CookieJar()
            jar.update_cookies_from_headers(fields, url)
            path = tmp_path / client.__name__
            jar.save(path)
            assert path.stat().st_mode & 0o777 == 0o600
            for reader in CLIENTS:
                other = reader.CookieJar()
                other.update_cookies({"before": "gone"})
                other.load(path)
                told.append(seen(other))
        assert told[1:] == told[:-1] and len(told[0][1]) == 5
        for wrong in ("[]", '{"a": 1}', '{"a|/": {"x": {"key": "x"}}}', "nothing"):
            (tmp_path / "wrong").write_text(wrong)
            jar = http.CookieJar()
            jar.update_cookies({"kept": "1"})
            with pytest.raises(ValueError):
                jar.load(tmp_path / "wrong")
            assert len(jar) == 1

    run_on(rondel_loop, main)


class _Names:
    """A resolver that knows one name, at two addresses."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        if host != "known.example":
            raise OSError("no such name")
        info = {"hostname": host, "port": port, "family": 2, "proto": 6, "flags": 0}
        return [{**info, "host": "127.0.0.2"}, {**info, "host": HOST}]

    async def close(self) -> None:
        pass


def test_resolvers(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            told = []
            for client in CLIENTS:
                connector = client.TCPConnector(resolver=_Names())
                async with client.ClientSession(connector=connector) as session:
                    url = base.replace(HOST, "known.example")
                    async with session.get(url + "/small") as response:
                        told.append((response.status, response.url))
                    with pytest.raises(client.ClientConnectorDNSError):
                        await session.get("http://unknown.example/")
                    connector.clear_dns_cache()
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_small_things(rondel_loop: Any) -> None:
    class Response(http.ClientResponse):
        """A program's own."""

    async def main() -> None:
        assert http.encode_basic_auth("ä", "b") == aiohttp.encode_basic_auth("ä", "b")
        assert http.BasicAuth.from_url(URL("http://a:b%40@c/")) == ("a", "b@", "latin1")
        assert http.BasicAuth.from_url(URL("http://c/")) is None
        arguments: dict[str, Any] = {
            "response_class": Response,
            "json_serialize_bytes": lambda value: json.dumps(value).encode() + b" ",
        }
        async with web_server() as base, http.ClientSession(**arguments) as session:
            assert session.version == http.HttpVersion11 and session.trace_configs == []
            for _ in range(2):
                async with session.get(base + "/small") as response:
                    assert type(response) is Response
                await asyncio.sleep(0)
            async with session.post(base + "/echo", json=[1]) as response:
                assert (await response.json())["body"] == "[1] "
        assert http.Options.__annotations__["headers"]

    run_on(rondel_loop, main)
