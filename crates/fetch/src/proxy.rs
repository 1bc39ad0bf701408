//! Which proxy a URL goes through, by option or by the environment, and basic credentials.

use url::{Host, Url};

use crate::socks::Socks;

/// Where SOCKS proxies listen unless the URL says.
const SOCKS_PORT: u16 = 1080;

/// The proxies of a run.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    /// Hosts that go direct.
    direct: Vec<String>,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its host; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What is spoken to it.
    pub kind: ProxyKind,
    /// The user and the password for it.
    pub credentials: Option<(String, String)>,
}

/// What is spoken to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP.
    Http,
    /// HTTP, within TLS.
    Https,
    /// SOCKS.
    Socks(Socks),
}

impl Proxy {
    /// Read `http://user:password@host:port`, or the like with https, socks4, socks4a, socks5 or
    /// socks5h; the scheme may be missing. The error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("cannot use the proxy {text:?}: {why}");
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&full).map_err(|error| wrong(error.to_string()))?;
        let kind = match (url.scheme(), Socks::of_scheme(url.scheme())) {
            (_, Some(socks)) => ProxyKind::Socks(socks),
            ("http", None) => ProxyKind::Http,
            ("https", None) => ProxyKind::Https,
            (other, None) => {
                return Err(wrong(format!(
                    "only http, https and SOCKS proxies are known, not {other}"
                )));
            }
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("it has no host".into()))?;
        let usual = if matches!(kind, ProxyKind::Socks(_)) { SOCKS_PORT } else { 80 };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default().unwrap_or(usual),
            kind,
            credentials: of_url(&url),
        })
    }

    /// Whether URLs without TLS are asked of the proxy itself, in full.
    pub fn is_asked(&self) -> bool {
        !matches!(self.kind, ProxyKind::Socks(_))
    }

    /// The Proxy-Authorization header.
    pub fn authorization(&self) -> Option<String> {
        self.credentials.as_ref().map(|(user, password)| basic(user, password))
    }
}

impl Proxies {
    /// The same proxy for everything.
    pub fn all(proxy: Proxy) -> Self {
        Self { http: Some(proxy.clone()), https: Some(proxy), direct: Vec::new() }
    }

    /// What the environment says: http_proxy (in lower case only, since a web server sets the other one
    /// from a client's header), https_proxy, all_proxy and no_proxy.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let any = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| get(name).filter(|value| !value.trim().is_empty()))
                .map(|value| Proxy::parse(value.trim()))
                .transpose()
        };
        let hosts = get("no_proxy").or_else(|| get("NO_PROXY")).unwrap_or_default();
        Ok(Self {
            http: any(&["http_proxy", "all_proxy", "ALL_PROXY"])?,
            https: any(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            direct: hosts
                .split([',', ' '])
                .map(|host| host.trim().trim_start_matches("*.").trim_start_matches('.'))
                .filter(|host| !host.is_empty())
                .map(str::to_ascii_lowercase)
                .collect(),
        })
    }

    /// The proxy for a URL, or None for a direct connection.
    pub fn find(&self, url: &Url) -> Option<&Proxy> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() };
        proxy.filter(|_| !self.is_direct(url))
    }

    fn is_direct(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let is_name = matches!(url.host(), Some(Host::Domain(_)));
        self.direct.iter().any(|entry| {
            let entry = match entry.rsplit_once(':') {
                // A port, unless it is an IPv6 address.
                Some((name, port)) if !name.contains(':') => {
                    if url.port_or_known_default().map(|port| port.to_string()).as_deref()
                        != Some(port)
                    {
                        return false;
                    }
                    name
                }
                _ => entry.as_str(),
            };
            entry == "*"
                || entry == host
                || is_name && host.strip_suffix(entry).is_some_and(|front| front.ends_with('.'))
        })
    }
}

/// User and password of a URL, decoded.
pub fn of_url(url: &Url) -> Option<(String, String)> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decode = |text| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(url.username()), decode(url.password().unwrap_or_default())))
}

/// The value of an Authorization header with basic credentials.
pub fn basic(user: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for group in format!("{user}:{password}").as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials() {
        // RFC 7617's own example, and each length of the last group.
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("a", "b"), "Basic YTpi");
        assert_eq!(basic("a", "bc"), "Basic YTpiYw==");
        assert_eq!(basic("a", "bcd"), "Basic YTpiY2Q=");
    }

    fn proxies(pairs: &[(&str, &str)]) -> Proxies {
        let get = |name: &str| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Proxies::from_environment(get).unwrap()
    }

    #[test]
    fn which_proxy() {
        let found = proxies(&[
            ("http_proxy", "http://u:p%40@proxy:3128"),
            ("HTTPS_PROXY", "secure"),
            ("no_proxy", "localhost, .inner.example,*.other,[::1],10.0.0.1,port.example:81"),
        ]);
        let host = |url: &str| {
            found
                .find(&Url::parse(url).unwrap())
                .map(|proxy| format!("{}:{}", proxy.host, proxy.port))
        };
        assert_eq!(host("http://a.example/").as_deref(), Some("proxy:3128"));
        assert_eq!(host("https://a.example/").as_deref(), Some("secure:80"));
        for direct in [
            "http://localhost/",
            "https://x.inner.example/",
            "http://inner.example/",
            "http://y.other/",
            "http://10.0.0.1/",
            "http://port.example:81/",
        ] {
            assert_eq!(host(direct), None, "{direct}");
        }
        for through in ["http://notinner.example/", "http://110.0.0.1/", "http://port.example/"] {
            assert!(host(through).is_some(), "{through}");
        }
        let url = Url::parse("http://a/").unwrap();
        assert_eq!(
            found.find(&url).unwrap().authorization().as_deref(),
            Some(basic("u", "p@").as_str())
        );
        assert!(proxies(&[("HTTP_PROXY", "http://x")]).find(&url).is_none());
        assert!(proxies(&[("ALL_PROXY", "http://x")]).find(&url).is_some());
        assert!(proxies(&[("ALL_PROXY", "http://x"), ("no_proxy", "*")]).find(&url).is_none());
        assert!(Proxy::parse("ftp://x").is_err() && Proxy::parse("http://").is_err());
        assert_eq!(Proxy::parse("https://p").unwrap().kind, ProxyKind::Https);
        let socks = Proxy::parse("socks5h://me:s%3A@[::1]").unwrap();
        assert_eq!((socks.host.as_str(), socks.port), ("::1", 1080));
        assert_eq!(socks.kind, ProxyKind::Socks(Socks::V5h));
        assert_eq!(socks.credentials, Some(("me".to_owned(), "s:".to_owned())));
        assert!(Proxy::parse("socks6://x").is_err() && Proxy::parse("socks5://").is_err());
    }
}
