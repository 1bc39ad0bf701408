//! Cookies that one run of downloads gathers and sends back (RFC 6265), and the Netscape file of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use url::{Host, Url};

use crate::locked;

/// More than these per run are a server's mistake; the oldest go.
const MOST: usize = 3_000;
/// Name and value together, in bytes.
const LONGEST: usize = 4_096;

/// The jar that all requests of a run share.
#[derive(Debug, Default)]
pub struct Jar {
    cookies: Mutex<Vec<Cookie>>,
    /// Most runs never see a cookie; their requests take no lock.
    used: AtomicBool,
}

#[derive(Clone, Debug, PartialEq)]
struct Cookie {
    name: String,
    value: String,
    domain: String,
    /// Only the very host that set it, not the hosts below.
    host_only: bool,
    path: String,
    secure: bool,
    expires: Option<SystemTime>,
}

impl Jar {
    /// Take in a Set-Cookie header that came from `url`. What is malformed or foreign is ignored.
    pub fn store(&self, url: &Url, header: &str) {
        let Some(cookie) = Cookie::parse(url, header) else { return };
        self.insert(cookie);
    }

    fn insert(&self, cookie: Cookie) {
        let mut cookies = locked(&self.cookies);
        cookies.retain(|old| {
            (&old.name, &old.domain, &old.path) != (&cookie.name, &cookie.domain, &cookie.path)
        });
        if cookie.expires.is_none_or(|at| at > SystemTime::now()) {
            if cookies.len() >= MOST {
                cookies.remove(0);
            }
            cookies.push(cookie);
            self.used.store(true, Ordering::Release);
        }
    }

    /// The Cookie header for a request, if there are any cookies for it.
    pub fn header(&self, url: &Url) -> Option<String> {
        if !self.used.load(Ordering::Acquire) {
            return None;
        }
        let now = SystemTime::now();
        let mut cookies = locked(&self.cookies);
        cookies.retain(|cookie| cookie.expires.is_none_or(|at| at > now));
        let mut fitting: Vec<&Cookie> = cookies.iter().filter(|cookie| cookie.fits(url)).collect();
        // The longer path first; the sort keeps the order of age otherwise.
        fitting.sort_by_key(|cookie| std::cmp::Reverse(cookie.path.len()));
        let pairs: Vec<String> =
            fitting.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// Take in a file in Netscape's format, as browsers' extensions and curl write it. The error is a
    /// sentence.
    pub fn load(&self, text: &str) -> Result<(), String> {
        for (number, line) in text.lines().enumerate() {
            let line = line.strip_prefix("#HttpOnly_").unwrap_or(line);
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let [domain, below, path, secure, expires, name, value] = fields[..] else {
                return Err(format!("line {}: not the seven fields of a cookie", number + 1));
            };
            let expires: u64 = expires.parse().unwrap_or(0);
            self.insert(Cookie {
                name: name.to_owned(),
                value: value.to_owned(),
                domain: domain.trim_start_matches('.').to_ascii_lowercase(),
                host_only: !below.eq_ignore_ascii_case("TRUE"),
                path: path.to_owned(),
                secure: secure.eq_ignore_ascii_case("TRUE"),
                expires: (expires > 0)
                    .then(|| UNIX_EPOCH.checked_add(Duration::from_secs(expires)))
                    .flatten(),
            });
        }
        Ok(())
    }
}

impl Cookie {
    fn parse(url: &Url, header: &str) -> Option<Self> {
        let mut parts = header.split(';');
        let (name, value) = parts.next()?.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || name.len() + value.len() > LONGEST {
            return None;
        }
        if name.chars().chain(value.chars()).any(char::is_control) {
            return None;
        }
        let host = url.host_str()?.to_ascii_lowercase();
        let mut cookie = Self {
            name: name.to_owned(),
            value: value.to_owned(),
            domain: host.clone(),
            host_only: true,
            path: default_path(url),
            secure: false,
            expires: None,
        };
        let mut max_age = None;
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "domain" if !value.is_empty() => {
                    let domain = value.trim_start_matches('.').to_ascii_lowercase();
                    if domain == host {
                        cookie.host_only = !matches!(url.host(), Some(Host::Domain(_)));
                    } else if domain.contains('.') && is_below(url, &host, &domain) {
                        // A domain without a dot would be a whole top level.
                        cookie.host_only = false;
                        cookie.domain = domain;
                    } else {
                        return None;
                    }
                }
                "path" if value.starts_with('/') => cookie.path = value.to_owned(),
                "secure" => cookie.secure = true,
                "max-age" => max_age = value.parse::<i64>().ok(),
                "expires" => cookie.expires = httpdate::parse_http_date(value).ok(),
                _ => {}
            }
        }
        if let Some(seconds) = max_age {
            let later = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            cookie.expires = SystemTime::now().checked_add(later);
        }
        (!cookie.secure || url.scheme() == "https").then_some(cookie)
    }

    fn fits(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let domain = host.eq_ignore_ascii_case(&self.domain)
            || !self.host_only && is_below(url, &host.to_ascii_lowercase(), &self.domain);
        domain && path_fits(url.path(), &self.path) && (!self.secure || url.scheme() == "https")
    }
}

/// Whether the URL's host is a name below `domain`. An address is below nothing.
fn is_below(url: &Url, host: &str, domain: &str) -> bool {
    matches!(url.host(), Some(Host::Domain(_)))
        && host.strip_suffix(domain).is_some_and(|front| front.ends_with('.'))
}

fn path_fits(path: &str, of_cookie: &str) -> bool {
    path.strip_prefix(of_cookie)
        .is_some_and(|rest| rest.is_empty() || of_cookie.ends_with('/') || rest.starts_with('/'))
}

fn default_path(url: &Url) -> String {
    match url.path().rfind('/') {
        Some(0) | None => "/".to_owned(),
        Some(slash) => url.path()[..slash].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(set: &[(&str, &str)], to: &str) -> Option<String> {
        let jar = Jar::default();
        for (url, header) in set {
            jar.store(&Url::parse(url).unwrap(), header);
        }
        jar.header(&Url::parse(to).unwrap())
    }

    #[test]
    fn who_gets_which() {
        let set = "http://www.a.example/d/page";
        for (header, to, expected) in [
            ("k=v", "http://www.a.example/d/x", Some("k=v")),
            ("k=v", "http://www.a.example/other", None),
            ("k=v; Path=/", "http://www.a.example/other", Some("k=v")),
            ("k=v; Path=/", "http://a.example/", None),
            ("k=v; Path=/", "http://x.www.a.example/", None),
            ("k=v; Path=/; Domain=.a.example", "http://b.a.example/", Some("k=v")),
            ("k=v; Path=/; Domain=a.example", "http://evila.example/", None),
            ("k=v; Path=/; Domain=example", "http://www.a.example/", None),
            ("k=v; Path=/; Domain=b.example", "http://b.example/", None),
            ("k=v; Path=/d", "http://www.a.example/dog", None),
            ("k=v; Path=/; Secure", "http://www.a.example/", None),
            ("k=v; Max-Age=0", "http://www.a.example/d/", None),
            ("k=v; Expires=Sun, 06 Nov 1994 08:49:37 GMT", "http://www.a.example/d/", None),
            ("k=v\r\nX: y", "http://www.a.example/d/", None),
            ("novalue", "http://www.a.example/d/", None),
            ("=v", "http://www.a.example/d/", None),
        ] {
            assert_eq!(sent(&[(set, header)], to).as_deref(), expected, "{header} to {to}");
        }
        let secure = "https://h/";
        assert_eq!(sent(&[(secure, "k=v; Secure")], "http://h/"), None);
        assert_eq!(sent(&[(secure, "k=v; Secure")], secure).as_deref(), Some("k=v"));
        let replaced = [(set, "a=1; Path=/"), (set, "b=2"), (set, "a=3; Path=/")];
        assert_eq!(sent(&replaced, set).as_deref(), Some("b=2; a=3"));
        assert_eq!(sent(&[("http://127.0.0.1/", "k=v; Domain=0.0.1")], "http://127.0.0.1/"), None);
    }

    #[test]
    fn netscape_files() {
        let jar = Jar::default();
        jar.load(
            "# Netscape HTTP Cookie File\n\n.a.example\tTRUE\t/\tFALSE\t0\tk\tv\n\
                  #HttpOnly_b.example\tFALSE\t/p\tTRUE\t99999999999\tn\tw\n",
        )
        .unwrap();
        let header = |url| jar.header(&Url::parse(url).unwrap());
        assert_eq!(header("http://x.a.example/").as_deref(), Some("k=v"));
        assert_eq!(header("https://b.example/p/q").as_deref(), Some("n=w"));
        assert_eq!(header("http://b.example/p"), None);
        assert!(jar.load("only three fields").is_err());
    }
}
