//! What comes from elsewhere, mangled: no parser panics, and what comes out of it keeps its promises.
//!
//! The input is made from good examples by a generator with a fixed seed, so a failure comes again; its
//! message holds the input.

#![allow(clippy::unwrap_used)] // a failure fails the test

use std::fmt::Write as _;
use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use rondel_fetch::checksum::{Checksum, Sums};
use rondel_fetch::cookies::Jar;
use rondel_fetch::digest::Challenge;
use rondel_fetch::engine::{parse_url, settle};
use rondel_fetch::job::{Job, Options};
use rondel_fetch::names::{self, Template};
use rondel_fetch::netrc::Netrc;
use rondel_fetch::proxy::{Proxies, Proxy};
use rondel_fetch::{backoff, list, metalink};

/// How many inputs each parser gets.
const ROUNDS: usize = 3_000;

/// What means something to one of the parsers.
const TOKENS: &[&str] = &[
    "..",
    "/",
    "\\",
    "../",
    "..\\",
    "%2e%2e%2f",
    "%2F",
    "%00",
    "%",
    "\0",
    "\r\n",
    "\n",
    "\t",
    " ",
    "\"",
    "'",
    "''",
    ";",
    ":",
    "=",
    ",",
    "#",
    "?",
    "@",
    "[",
    "]",
    "{",
    "}",
    "{name}",
    "{path}",
    "{host}",
    "{index:4}",
    "<",
    ">",
    "&",
    "&amp;",
    "<url>",
    "</file>",
    "<![CDATA[",
    "]]>",
    "<!--",
    "filename=",
    "filename*=",
    "UTF-8''",
    "iso-8859-1'x'",
    ".",
    "~",
    "C:",
    "\u{202e}",
    "\u{200f}",
    "ä",
    "😀",
    "\u{feff}",
    "http://",
    "https://",
    "//",
    "-1",
    "18446744073709551616",
    "999999999999999999999",
    "1e309",
    "nan",
    "GMT",
    "checksum=",
    "out=",
    "size=",
    "header=",
    "sha256:",
    "machine ",
    "default",
    "Max-Age=",
    "Domain=",
    "Path=",
    "Expires=",
];

struct Source(u64);

impl Source {
    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end.max(1)
    }

    /// One of the examples with some of it removed, doubled, replaced or put in.
    fn mangled(&mut self, examples: &[&str]) -> String {
        let mut characters: Vec<char> = examples[self.below(examples.len())].chars().collect();
        for _ in 0..self.below(6) {
            let at = self.below(characters.len() + 1);
            let end = (at + self.below(8)).min(characters.len());
            match self.below(5) {
                0 => drop(characters.drain(at..end)),
                1 => {
                    let token = TOKENS[self.below(TOKENS.len())];
                    drop(characters.splice(at..at, token.chars()));
                }
                2 => {
                    let token = TOKENS[self.below(TOKENS.len())];
                    drop(characters.splice(at..end, token.chars()));
                }
                3 => {
                    let again: Vec<char> = characters[at..end].repeat(1 + self.below(60));
                    drop(characters.splice(at..at, again));
                }
                _ => {
                    let code = u32::try_from(self.below(0x11_0000)).unwrap();
                    let one = char::from_u32(code).unwrap_or('\u{1}');
                    drop(characters.splice(at..end, [one]));
                }
            }
        }
        characters.into_iter().collect()
    }
}

/// Give a check that many mangled examples, and name the one that it fails for.
fn each(seed: u64, examples: &[&str], check: impl Fn(&str)) {
    let mut source = Source(seed);
    for example in examples {
        check(example);
    }
    for _ in 0..ROUNDS {
        let input = source.mangled(examples);
        let checked = std::panic::AssertUnwindSafe(|| check(&input));
        if let Err(panic) = std::panic::catch_unwind(checked) {
            eprintln!("with {input:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A name that somebody else chose: one visible component of a bounded length.
fn assert_safe(name: &str) {
    assert!(!name.is_empty() && name.len() <= 255 && name != "." && name != "..", "{name:?}");
    assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.'), "{name:?}");
    assert!(!name.chars().any(char::is_control), "{name:?}");
    assert_eq!(names::safe(name).as_deref(), Some(name), "safe a second time, it stays as it is");
}

/// A path that stays below its folder.
fn assert_inside(path: &Path) {
    assert!(path.components().count() > 0);
    for component in path.components() {
        assert!(matches!(component, Component::Normal(_)), "{}", path.display());
        assert_safe(component.as_os_str().to_str().unwrap());
    }
}

#[test]
fn urls() {
    let examples = [
        "http://example.org/a/b.tar.gz?q=1#f",
        "https://user:p%40ss@[::1]:8443/%2e%2e/%2Fetc%2fpasswd",
        "example.org:81/file",
        "HTTP://EXAMPLE.ORG/../../..",
        "http://xn--bcher-kva.example/ä ö/",
    ];
    let template = Template::parse("{host}/{path}/{index:3}-{stem}{ext}").unwrap();
    each(1, &examples, |text| {
        let Ok(url) = parse_url(text) else { return };
        assert!(matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
        assert_safe(&names::from_url(&url));
        if let Some(path) = template.apply(&url, 7) {
            assert_inside(&path);
        }
        assert!(Proxies::default().find(&url).is_none());
    });
}

#[test]
fn names_that_servers_give() {
    let examples = [
        r#"attachment; filename="a b.txt"; filename*=UTF-8''%e2%82%ac%20rates.txt"#,
        r#"inline; filename="..\..\x"; foo=bar"#,
        "attachment;filename=x;filename*=iso-8859-1'en'%A3",
        r#"attachment; a; filename="\"q\"\\uote""#,
    ];
    each(2, &examples, |text| {
        // As text, and as the bytes of a header in no encoding.
        for bytes in [text.as_bytes(), &text.as_bytes()[text.len() / 2..]] {
            if let Some(name) = names::from_content_disposition(bytes) {
                assert_safe(&name);
            }
        }
        if let Some(name) = names::safe(text) {
            assert_safe(&name);
        }
        if let Some(path) = names::safe_relative(text) {
            assert_inside(&path);
            assert_inside(&names::numbered(&path, 3));
        }
    });
}

#[test]
fn templates() {
    let url = parse_url("http://h.example/a/b.c?d").unwrap();
    each(3, &["{host}/{path}", "x-{index:04}{ext}", "../{name}", "{stem}/..{ext}"], |text| {
        if let Some(path) = Template::parse(text).ok().and_then(|found| found.apply(&url, 1)) {
            assert_inside(&path);
        }
    });
}

/// Jobs of a list or a metalink, planned: inside, and no two at one place.
fn assert_plan(mut jobs: Vec<Job>) {
    settle(&mut jobs, &Options::default());
    let mut seen = std::collections::HashSet::new();
    for job in jobs {
        assert!(!job.urls.is_empty());
        let usable = parse_url(&job.urls[0]).is_ok();
        let name = job.name.filter(|name| usable && names::safe_relative(name).is_some());
        let Some(name) = name else { continue };
        let path = names::safe_relative(&name).unwrap();
        assert_inside(&path);
        assert!(seen.insert(path), "{name:?} twice");
    }
}

#[test]
fn lists() {
    let sum = "0".repeat(64);
    let whole = format!(
        "# c\nhttp://a/x\thttp://b/x\n  out=d/x.txt\n  checksum=sha-256={sum}\n  size=5\n  \
         header=X: y\n\nhttp://a/y\nhttp://c/y\n"
    );
    each(4, &[&whole, "http://a/1\nhttp://a/1\n", "a\n b\n"], |text| {
        if let Ok(jobs) = list::parse(text) {
            assert_plan(jobs);
        }
    });
}

#[test]
fn metalinks() {
    let sum = "0".repeat(64);
    let mut whole = String::from(
        r#"<?xml version="1.0" encoding="UTF-8"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">"#,
    );
    for name in ["a/b.bin", "c.bin"] {
        let _ = write!(
            whole,
            r#"<file name="{name}"><size>5</size><hash type="sha-256">{sum}</hash><url priority="2">http://m/&#65;</url><url>http://n/</url></file>"#
        );
    }
    whole.push_str("</metalink>");
    each(
        5,
        &[&whole, "<metalink><file name='../x'><url>http://a/</url></file></metalink>"],
        |text| {
            if let Ok(jobs) = metalink::parse(text) {
                assert_plan(jobs);
            }
        },
    );
    // Nested and repeated without end, it is neither deep recursion nor much memory.
    for piece in ["<file>", "<metalink>", "<!--", "&lt;", "<a b='c'>"] {
        let _ = metalink::parse(&piece.repeat(100_000));
    }
}

#[test]
fn sums_and_credentials() {
    let sum = format!(
        "{}  name\n{} *other\nSHA256 (b) = {}\n",
        "a".repeat(64),
        "b".repeat(64),
        "c".repeat(64)
    );
    each(6, &[&sum, "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e"], |text| {
        if let Some(checksum) = Checksum::parse(text) {
            assert!(checksum.hex.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
        }
        if let Ok(sums) = Sums::parse(text, "SHA256SUMS") {
            let _ = sums.find("name");
        }
    });
    each(
        7,
        &["machine h login u password p\ndefault login x password \"y z\"\nmacdef m\n x\n\n"],
        |text| {
            let _ = Netrc::parse(text).find("h");
        },
    );
    each(8, &["http://u:p%40@proxy:3128", "proxy", "https://[::1]", "socks5://x"], |text| {
        if let Ok(proxy) = Proxy::parse(text) {
            assert!(!proxy.host.is_empty() && !proxy.host.contains(['[', ']', '/']), "{proxy:?}");
        }
    });
}

#[test]
fn headers() {
    let dates = ["120", "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "-1"];
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    each(9, &dates, |text| {
        let _ = backoff::retry_after(text, now);
    });
    let challenge =
        r#"Basic realm="x", Digest realm="r", nonce="n", qop="auth,auth-int", opaque=o"#;
    each(11, &[challenge, "Digest realm=r,nonce=n,algorithm=SHA-256-sess"], |text| {
        if let Some(mut challenge) = Challenge::find(text) {
            let answer = challenge.answer("me", "secret", "/x", "own");
            assert!(answer.starts_with("Digest ") && !answer.contains("secret"), "{answer}");
        }
    });
    let url = parse_url("http://www.example.org/a/b").unwrap();
    let other = parse_url("http://other.example/").unwrap();
    let cookies = [
        "k=v; Path=/; Domain=example.org; Max-Age=10; Secure; HttpOnly",
        "a=b; Expires=Wed, 21 Oct 2065 07:28:00 GMT; Path=/a",
        "x=y; Domain=other.example",
    ];
    each(10, &cookies, |text| {
        let jar = Jar::default();
        jar.store(&url, text);
        assert!(jar.header(&other).is_none(), "no server sets another's cookies");
        if let Some(header) = jar.header(&url) {
            assert!(!header.contains(['\r', '\n', '\0']), "{header:?}");
        }
        let _ = Jar::default().load(text);
    });
}
