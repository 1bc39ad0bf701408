//! Digest authentication (RFC 7616): what a server's challenge says, and the answer to it.

use std::collections::HashMap;

use crate::checksum::{Algorithm, Hasher};

/// A challenge that can be answered, and how often it has been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    domain: Option<String>,
    algorithm: Algorithm,
    /// The algorithm as the server names it.
    name: String,
    /// The hash of the password is mixed with this session's nonces (`-sess`).
    session: bool,
    protection: Protection,
    count: u32,
}

/// What an answer vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    /// The old scheme of RFC 2069.
    Old,
    /// The method and the path (`auth`).
    Request,
    /// The body too (`auth-int`).
    Body,
}

impl Protection {
    /// What servers call it.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Old => None,
            Self::Request => Some("auth"),
            Self::Body => Some("auth-int"),
        }
    }

    /// The first of ours that is among those offered.
    fn choose(offered: Option<&String>) -> Option<Self> {
        let Some(offered) = offered else { return Some(Self::Old) };
        [Self::Request, Self::Body].into_iter().find(|ours| {
            let mut names = offered.split(',').map(str::trim);
            names.any(|name| ours.name().is_some_and(|ours| ours.eq_ignore_ascii_case(name)))
        })
    }
}

/// The request that an answer is for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// Path and query, as they are sent.
    pub path: &'a str,
    /// The whole body.
    pub body: &'a [u8],
}

impl Challenge {
    /// The first challenge in a WWW-Authenticate header that can be answered: MD5, SHA-256 or SHA-512.
    pub fn find(header: &str) -> Option<Self> {
        challenges(header)
            .into_iter()
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("digest"))
            .find_map(|(_, parameters)| Self::read(&parameters))
    }

    fn read(parameters: &HashMap<String, String>) -> Option<Self> {
        let get = |name: &str| parameters.get(name).cloned();
        let name = get("algorithm").unwrap_or_else(|| "MD5".into());
        let lower = name.to_ascii_lowercase();
        let (plain, session) = match lower.strip_suffix("-sess") {
            Some(plain) => (plain, true),
            None => (lower.as_str(), false),
        };
        let algorithm = match plain {
            "md5" => Algorithm::Md5,
            "sha-256" | "sha256" => Algorithm::Sha256,
            "sha-512" | "sha512" => Algorithm::Sha512,
            _ => return None,
        };
        let protection = Protection::choose(parameters.get("qop"))?;
        let (realm, nonce) = (get("realm")?, get("nonce").filter(|nonce| !nonce.is_empty())?);
        let (opaque, domain) = (get("opaque"), get("domain"));
        Some(Self { realm, nonce, opaque, domain, algorithm, name, session, protection, count: 0 })
    }

    /// What the server made up for this challenge.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The URLs, separated by blanks, that the same credentials are for.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// The value of an Authorization header for a GET of that path and query. `own` is a nonce of the
    /// client's, new each time.
    pub fn answer(&mut self, user: &str, password: &str, path: &str, own: &str) -> String {
        self.answer_to(Request { method: "GET", path, body: b"" }, user, password, own)
    }

    /// The same for any request.
    pub fn answer_to(
        &mut self,
        request: Request<'_>,
        user: &str,
        password: &str,
        own: &str,
    ) -> String {
        self.count += 1;
        let count = format!("{:08x}", self.count);
        let hash_bytes = |data: &[u8]| {
            let mut hasher = Hasher::new(self.algorithm);
            hasher.update(data);
            hasher.finish()
        };
        let hash = |text: &str| hash_bytes(text.as_bytes());
        let (realm, nonce, name) = (&self.realm, &self.nonce, &self.name);
        let Request { method, path, body } = request;
        let mut secret = hash(&format!("{user}:{realm}:{password}"));
        if self.session {
            secret = hash(&format!("{secret}:{nonce}:{own}"));
        }
        let request = match self.protection {
            Protection::Body => hash(&format!("{method}:{path}:{}", hash_bytes(body))),
            _ => hash(&format!("{method}:{path}")),
        };
        let response = match self.protection.name() {
            Some(quality) => hash(&format!("{secret}:{nonce}:{count}:{own}:{quality}:{request}")),
            None => hash(&format!("{secret}:{nonce}:{request}")),
        };
        let mut value = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, algorithm={name}, response=\"{response}\"",
            quoted(user),
            quoted(realm),
            quoted(nonce),
            quoted(path),
        );
        if let Some(quality) = self.protection.name() {
            value.push_str(&format!(", qop={quality}, nc={count}"));
        }
        if self.protection != Protection::Old || self.session {
            value.push_str(&format!(", cnonce={}", quoted(own)));
        }
        if let Some(opaque) = &self.opaque {
            value.push_str(&format!(", opaque={}", quoted(opaque)));
        }
        value
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The challenges of a header: schemes with their parameters, names in lower case.
fn challenges(header: &str) -> Vec<(&str, HashMap<String, String>)> {
    let mut found: Vec<(&str, HashMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            return found;
        }
        let (word, after) = rest.split_at(end);
        match after.trim_start().strip_prefix('=') {
            // A parameter, unless the equals sign is the padding of a token that a scheme carries.
            Some(value) if !value.starts_with('=') => {
                let (value, left) = value_of(value.trim_start());
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.entry(word.to_ascii_lowercase()).or_insert(value);
                }
                rest = left;
            }
            Some(_) => rest = after.trim_start_matches('='),
            None => {
                found.push((word, HashMap::new()));
                rest = after;
            }
        }
    }
}

fn value_of(text: &str) -> (String, &str) {
    match text.strip_prefix('"') {
        Some(quoted) => crate::names::unquoted(quoted),
        None => {
            let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7616, 3.9.1.
    #[test]
    fn answers() {
        let header = "Basic realm=\"a, b\", Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", \
                      algorithm=SHA-256, nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", \
                      opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let own = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        for (name, response) in [
            ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
            ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ] {
            let mut challenge = Challenge::find(&header.replace("SHA-256", name)).unwrap();
            let answer = challenge.answer("Mufasa", "Circle of Life", "/dir/index.html", own);
            assert!(answer.contains(&format!("response=\"{response}\"")), "{answer}");
            assert!(
                answer.contains(&format!("algorithm={name},")) && answer.contains("nc=00000001")
            );
            assert!(challenge.answer("M", "p", "/", own).contains("nc=00000002"));
        }
    }

    /// RFC 2617's example has a quality of protection; RFC 2069's way is the same without.
    #[test]
    fn what_can_be_answered() {
        let old = Challenge::find("Digest realm=\"r\", nonce=\"n\"").unwrap();
        assert!(old.protection == Protection::Old && old.algorithm == Algorithm::Md5);
        let answer = old.clone().answer("u\"", "p", "/", "own");
        assert!(answer.starts_with("Digest username=\"u\\\"\"") && !answer.contains("nc="));
        let session =
            Challenge::find("Digest realm=r,nonce=n,qop=auth,algorithm=MD5-sess").unwrap();
        assert!(session.session && session.protection == Protection::Request);
        for none in [
            "",
            "Basic realm=\"Digest realm\"",
            "Negotiate YII==, Bearer",
            "Digest realm=\"r\"",
            "Digest realm=\"r\", nonce=\"\"",
            "Digest realm=\"r\", nonce=\"n\", qop=\"other\"",
            "Digest realm=\"r\", nonce=\"n\", algorithm=SHA-512-256",
        ] {
            assert_eq!(Challenge::find(none), None, "{none}");
        }
        let second = "Digest realm=x, nonce=y, algorithm=TOKEN, Digest realm=r, nonce=n";
        assert_eq!(Challenge::find(second), Some(Challenge { count: 0, ..old }));
    }
}
