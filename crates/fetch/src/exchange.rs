//! One request and its answer: connections kept for the next, redirects, credentials, cookies.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue,
    LOCATION, RETRY_AFTER, SET_COOKIE, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Request, StatusCode, Uri, Version};
use tokio::time::timeout;
use url::{Position, Url};

use crate::backoff;
use crate::connect::{Connection, Connector, NoBody, from_hyper};
use crate::digest::Challenge;
use crate::error::{Error, Kind, Result};
use crate::job::Options;
use crate::locked;
use crate::proxy::{self, Proxy};

/// Bytes of an unwanted body to read, so that its connection can be used again; a longer one costs the
/// connection.
const SMALL_BODY: usize = 64 * 1024;

/// Times that a request goes again at once since the server did not take it.
const STALE_TRIES: usize = 5;
/// Bytes to write in one go, of those that have come.
const GATHERED: usize = 256 * 1024;

type Gate = tokio::sync::Mutex<bool>;

/// The connections of a run, and how requests are made on them.
pub struct Client {
    connector: Connector,
    /// By scheme, host and port: idle HTTP/1 connections, or handles to HTTP/2 ones.
    idle: Mutex<HashMap<String, Vec<Connection>>>,
    /// What every request says.
    headers: HeaderMap,
    /// By the same key, for servers that may speak HTTP/2: whether connections are still opened one by
    /// one, since the first may do for all.
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    /// By origin, the challenge that its last answers were to.
    challenges: Mutex<HashMap<String, Challenge>>,
}

impl Client {
    /// A client for a run with these options and that many transfers at a time.
    pub fn new(options: &Options, transfers: usize) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        // A file is wanted as it is: its length and its checksum are those of the plain bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        add(&mut headers, "user-agent", &options.user_agent)?;
        if options.user_agent.is_empty() {
            headers.remove(USER_AGENT);
        }
        for (name, value) in &options.headers {
            add(&mut headers, name, value)?;
        }
        // A limited rate is kept the better, the smaller the pieces are.
        let transfers = if options.rate.is_some() { usize::MAX } else { transfers };
        Ok(Self {
            connector: Connector::new(transfers),
            idle: Mutex::default(),
            gates: Mutex::default(),
            headers,
            challenges: Mutex::default(),
        })
    }

    /// GET a URL, following redirects. `own` are the job's headers, `extra` those of this request.
    pub async fn get(
        &self,
        options: &Options,
        url: &Url,
        own: &[(String, String)],
        extra: &HeaderMap,
    ) -> Result<Answer<'_>> {
        let mut url = url.clone();
        let origin = url.origin();
        for _ in 0..=options.max_redirects {
            let same_origin = url.origin() == origin;
            let headers = self.headers(options, &url, own, extra, same_origin)?;
            let mut answer = self.send(options, &url, headers).await?;
            if answer.status.as_u16() == 401
                && self.is_challenged(options, &url, &answer, same_origin)
            {
                answer.discard(options).await;
                let headers = self.headers(options, &url, own, extra, same_origin)?;
                answer = self.send(options, &url, headers).await?;
            }
            for cookie in answer.headers.get_all(SET_COOKIE) {
                if let Ok(text) = cookie.to_str() {
                    options.cookies.store(&url, text);
                }
            }
            if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let Some(location) = answer.headers.get(LOCATION) else { return Ok(answer) };
            let next = redirect(&url, location)?;
            answer.discard(options).await;
            url = next;
        }
        let text = format!("more than {} redirects", options.max_redirects);
        // No attempt will end differently.
        Err(Error::new(Kind::Status(310), text))
    }

    fn headers(
        &self,
        options: &Options,
        url: &Url,
        own: &[(String, String)],
        extra: &HeaderMap,
        same_origin: bool,
    ) -> Result<HeaderMap> {
        let mut headers = self.headers.clone();
        for (name, value) in own {
            add(&mut headers, name, value)?;
        }
        if !same_origin {
            // What is meant for one server is not another's to know.
            headers.remove(AUTHORIZATION);
            headers.remove(COOKIE);
        }
        for (name, value) in extra {
            headers.insert(name, value.clone());
        }
        if !headers.contains_key(AUTHORIZATION) {
            if let Some((user, password)) = credentials(options, url, same_origin) {
                let mut challenges = locked(&self.challenges);
                let value = match challenges.get_mut(&origin_of(url)) {
                    None => proxy::basic(&user, &password),
                    Some(challenge) => {
                        let path = &url[Position::BeforePath..Position::AfterQuery];
                        let own = format!("{:x}{:x}", random_bits(), random_bits());
                        challenge.answer(&user, &password, path, &own)
                    }
                };
                add(&mut headers, "authorization", &value)?;
            }
        }
        if let Some(cookies) = options.cookies.header(url) {
            let given = headers.get(COOKIE).and_then(|value| value.to_str().ok());
            let all = given.map_or(cookies.clone(), |given| format!("{given}; {cookies}"));
            add(&mut headers, "cookie", &all)?;
        }
        Ok(headers)
    }

    /// Whether the server asks for digest authentication and there is something to answer.
    fn is_challenged(
        &self,
        options: &Options,
        url: &Url,
        answer: &Answer<'_>,
        same_origin: bool,
    ) -> bool {
        let found = answer
            .headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|header| header.to_str().ok())
            .find_map(Challenge::find);
        let Some(challenge) = found.filter(|_| credentials(options, url, same_origin).is_some())
        else {
            return false;
        };
        locked(&self.challenges).insert(origin_of(url), challenge);
        true
    }

    /// One request, on an idle connection or a new one.
    async fn send(&self, options: &Options, url: &Url, headers: HeaderMap) -> Result<Answer<'_>> {
        let proxy = options.proxies.find(url);
        let key = url[..Position::BeforePath].to_owned();
        let mut tries = STALE_TRIES;
        loop {
            let reused = self.take(&key).await;
            let fresh = reused.is_none();
            let mut connection = match reused {
                Some(connection) => connection,
                None => Box::pin(self.open(&key, url, proxy, options)).await?,
            };
            tries -= 1;
            let outcome = {
                let request = request(url, proxy, &connection, &headers)?;
                let sent = async {
                    match &mut connection {
                        Connection::Http1(sender) => sender.send_request(request).await,
                        Connection::Http2(sender) => sender.send_request(request).await,
                    }
                };
                timeout(options.idle_timeout, sent).await
            };
            match outcome {
                Err(_) => return Err(silence(options)),
                Ok(Ok(response)) => {
                    let (parts, body) = response.into_parts();
                    return Ok(Answer {
                        status: parts.status,
                        headers: parts.headers,
                        version: parts.version,
                        url: url.clone(),
                        body,
                        ahead: None,
                        connection: Some(connection),
                        key,
                        client: self,
                    });
                }
                // The server closed an idle connection just when it was to be used; a GET may go again.
                Ok(Err(error)) if tries > 0 && !fresh && is_stale(&error) => self.forget(&key),
                Ok(Err(error)) if tries > 0 && is_refused(&error) => {
                    if is_leaving(&error) {
                        self.forget(&key);
                    }
                }
                Ok(Err(error)) => return Err(from_hyper("no answer", &error)),
            }
        }
    }

    /// An idle connection that still works.
    async fn take(&self, key: &str) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut idle = locked(&self.idle);
                let of_server = idle.get_mut(key)?;
                match of_server.last()? {
                    Connection::Http2(sender) if !sender.is_closed() => {
                        return Some(Connection::Http2(sender.clone()));
                    }
                    _ => of_server.pop()?,
                }
            };
            if let Connection::Http1(sender) = &mut connection {
                if sender.ready().await.is_ok() {
                    return Some(connection);
                }
            }
        }
    }

    /// A new connection; or, where one HTTP/2 connection does for all, the one that another request
    /// opened meanwhile.
    async fn open(
        &self,
        key: &str,
        url: &Url,
        proxy: Option<&Proxy>,
        options: &Options,
    ) -> Result<Connection> {
        if url.scheme() != "https" || !options.http2 {
            return self.connector.connect(url, proxy, options).await;
        }
        let gate = {
            let mut gates = locked(&self.gates);
            Arc::clone(gates.entry(key.to_owned()).or_insert_with(|| Arc::new(Gate::new(true))))
        };
        let mut one_by_one = gate.lock().await;
        if !*one_by_one {
            drop(one_by_one);
            return self.connector.connect(url, proxy, options).await;
        }
        if let Some(connection) = self.take(key).await {
            return Ok(connection);
        }
        let opened = self.connector.connect(url, proxy, options).await;
        match &opened {
            Ok(Connection::Http2(sender)) => {
                self.give_back(key, Connection::Http2(sender.clone()));
            }
            // A server that does not answer costs everybody's time at once, not in turn.
            _ => *one_by_one = false,
        }
        opened
    }

    /// No further request goes over the server's HTTP/2 connection.
    fn forget(&self, key: &str) {
        if let Some(of_server) = locked(&self.idle).get_mut(key) {
            of_server.retain(|connection| matches!(connection, Connection::Http1(_)));
        }
    }

    fn give_back(&self, key: &str, connection: Connection) {
        let mut idle = locked(&self.idle);
        match idle.get_mut(key) {
            Some(of_server) => of_server.push(connection),
            None => drop(idle.insert(key.to_owned(), vec![connection])),
        }
    }
}

/// Name and password for a URL's server; those of the command line are for the URLs' own.
fn credentials(options: &Options, url: &Url, same_origin: bool) -> Option<(String, String)> {
    let given = options.user.clone().filter(|_| same_origin);
    proxy::of_url(url).or(given).or_else(|| {
        let (user, password) = options.netrc.find(url.host_str().unwrap_or_default())?;
        Some((user.to_owned(), password.to_owned()))
    })
}

/// A URL's scheme, host and port.
fn origin_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn random_bits() -> u64 {
    (backoff::random() * 1e18) as u64
}

fn is_stale(error: &hyper::Error) -> bool {
    error.is_canceled()
        || error.is_closed()
        || error.is_incomplete_message()
        || from_hyper("", error).kind == Kind::Connection
}

/// Whether an HTTP/2 server says that it has not looked at the request (RFC 9113, 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    reason(error) == Some(h2::Reason::REFUSED_STREAM) || is_leaving(error)
}

/// Whether it takes no further requests on this connection.
fn is_leaving(error: &hyper::Error) -> bool {
    http2_cause(error).is_some_and(h2::Error::is_go_away)
        && reason(error) == Some(h2::Reason::NO_ERROR)
}

fn reason(error: &hyper::Error) -> Option<h2::Reason> {
    http2_cause(error).and_then(h2::Error::reason)
}

fn http2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error).and_then(|cause| cause.downcast_ref())
}

fn silence(options: &Options) -> Error {
    let seconds = options.idle_timeout.as_secs_f64();
    Error::new(Kind::Timeout, format!("nothing came from the server for {seconds} s"))
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) -> Result<()> {
    let wrong = |_| Error::new(Kind::Input, format!("{name:?}: {value:?} is not a header"));
    let header = HeaderName::try_from(name).map_err(|_| wrong(()))?;
    headers.insert(header, HeaderValue::try_from(value).map_err(|_| wrong(()))?);
    Ok(())
}

fn request(
    url: &Url,
    proxy: Option<&Proxy>,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Request<NoBody>> {
    let mut headers = headers.clone();
    let is_http2 = matches!(connection, Connection::Http2(_));
    let plain_proxy = proxy.filter(|proxy| url.scheme() == "http" && proxy.is_asked());
    let target = if is_http2 || plain_proxy.is_some() {
        let host = &url[Position::BeforeHost..Position::AfterPort];
        format!("{}://{host}{}", url.scheme(), &url[Position::BeforePath..Position::AfterQuery])
    } else {
        url[Position::BeforePath..Position::AfterQuery].to_owned()
    };
    let wrong = || Error::new(Kind::Input, format!("cannot ask for {target:?}"));
    let uri = Uri::try_from(target.as_str()).map_err(|_| wrong())?;
    if !is_http2 && !headers.contains_key(HOST) {
        add(&mut headers, "host", &url[Position::BeforeHost..Position::AfterPort])?;
    }
    if let Some(value) = plain_proxy.and_then(Proxy::authorization) {
        add(&mut headers, "proxy-authorization", &value)?;
    }
    let mut request = Request::new(NoBody::new());
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Where a redirect leads.
fn redirect(from: &Url, location: &HeaderValue) -> Result<Url> {
    let text = String::from_utf8_lossy(location.as_bytes());
    let refused = |why: &str| {
        Error::new(Kind::Status(310), format!("the server redirects to {text:?}, {why}"))
    };
    let mut url = from.join(&text).map_err(|_| refused("which is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(refused("which is not HTTP"));
    }
    if url.fragment().is_none() {
        url.set_fragment(from.fragment());
    }
    Ok(url)
}

/// The head of an answer, and its body to come.
pub struct Answer<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// HTTP's version.
    pub version: Version,
    /// The URL that answered, after redirects.
    pub url: Url,
    body: Incoming,
    /// What was read of the body beyond what was asked for: its end, or an error.
    ahead: Option<Result<Option<Bytes>>>,
    connection: Option<Connection>,
    key: String,
    client: &'a Client,
}

impl Answer<'_> {
    /// The next piece of the body; None after the last, when the connection is free again.
    pub async fn chunk(&mut self, options: &Options) -> Result<Option<Bytes>> {
        let next = match self.ahead.take() {
            Some(next) => next,
            None => {
                let next = poll_fn(|context| self.poll_chunk(context));
                timeout(options.idle_timeout, next).await.unwrap_or_else(|_| Err(silence(options)))
            }
        };
        if matches!(next, Ok(None)) {
            self.release();
        }
        next
    }

    /// The next pieces of the body into `pieces`; whether there were any. HTTP/2's are small, and those
    /// that have come are worth one write.
    pub async fn chunks(&mut self, options: &Options, pieces: &mut Vec<Bytes>) -> Result<bool> {
        pieces.clear();
        let Some(first) = self.chunk(options).await? else { return Ok(false) };
        let mut size = first.len();
        pieces.push(first);
        // The waker is of no use: the next call asks again.
        let mut context = Context::from_waker(Waker::noop());
        while self.version == Version::HTTP_2 && size < GATHERED {
            match self.poll_chunk(&mut context) {
                Poll::Ready(Ok(Some(piece))) => {
                    size += piece.len();
                    pieces.push(piece);
                }
                Poll::Ready(last) => {
                    self.ahead = Some(last);
                    break;
                }
                Poll::Pending => break,
            }
        }
        Ok(true)
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => Ok(None),
                Some(Err(error)) => Err(from_hyper("the transfer broke off", &error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => Ok(Some(data)),
                    // Trailers say nothing about a file.
                    _ => continue,
                },
            });
        }
    }

    fn release(&mut self) {
        if let Some(connection @ Connection::Http1(_)) = self.connection.take() {
            self.client.give_back(&self.key, connection);
        }
    }

    /// Read what is left of the body if that is little, for the sake of the connection.
    pub async fn discard(mut self, options: &Options) {
        let mut left = SMALL_BODY;
        if self.length().is_some_and(|length| length > SMALL_BODY as u64) {
            return;
        }
        while let Ok(Some(data)) = self.chunk(options).await {
            left = left.saturating_sub(data.len());
            if left == 0 {
                return;
            }
        }
    }

    /// Whether nothing of the body is left to come.
    pub fn is_at_end(&self) -> bool {
        self.body.is_end_stream() || self.length() == Some(0)
    }

    /// A header's text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body's length in bytes, if the server says.
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The error that a status without a file means.
    pub fn refusal(&self) -> Error {
        let reason = self.status.canonical_reason().unwrap_or("an unknown status");
        let text = format!("the server answers {} {reason}", self.status.as_u16());
        let retry_after = self
            .header(RETRY_AFTER)
            .and_then(|text| backoff::retry_after(text, std::time::SystemTime::now()));
        Error { retry_after, ..Error::new(Kind::Status(self.status.as_u16()), text) }
    }
}
