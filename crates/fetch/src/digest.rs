//! Digest authentication (RFC 7616): what a server's challenge says, and the answer to it.

use std::collections::HashMap;

use crate::checksum::{Algorithm, Hasher};

/// A challenge that can be answered, and how often it has been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    algorithm: Algorithm,
    /// The hash of the password is mixed with this session's nonces (`-sess`).
    session: bool,
    /// `auth` is among the qualities of protection; without any it is the old scheme of RFC 2069.
    counted: bool,
    count: u32,
}

impl Challenge {
    /// The first challenge in a WWW-Authenticate header that can be answered: MD5 or SHA-256, and not
    /// for the integrity of bodies alone.
    pub fn find(header: &str) -> Option<Self> {
        challenges(header)
            .into_iter()
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("digest"))
            .find_map(|(_, parameters)| Self::read(&parameters))
    }

    fn read(parameters: &HashMap<String, String>) -> Option<Self> {
        let get = |name: &str| parameters.get(name).cloned();
        let name = get("algorithm").unwrap_or_else(|| "MD5".into()).to_ascii_lowercase();
        let (name, session) = match name.strip_suffix("-sess") {
            Some(plain) => (plain, true),
            None => (name.as_str(), false),
        };
        let algorithm = match name {
            "md5" => Algorithm::Md5,
            "sha-256" => Algorithm::Sha256,
            _ => return None,
        };
        let counted = match parameters.get("qop") {
            None => false,
            Some(offered) => offered
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case("auth"))
                .then_some(true)?,
        };
        let (realm, nonce, opaque) = (get("realm")?, get("nonce")?, get("opaque"));
        Some(Self { realm, nonce, opaque, algorithm, session, counted, count: 0 })
    }

    /// The value of an Authorization header for a GET of that path and query. `own` is a nonce of the
    /// client's, new each time.
    pub fn answer(&mut self, user: &str, password: &str, path: &str, own: &str) -> String {
        self.count += 1;
        let count = format!("{:08x}", self.count);
        let hash = |text: &str| {
            let mut hasher = Hasher::new(self.algorithm);
            hasher.update(text.as_bytes());
            hasher.finish()
        };
        let (realm, nonce) = (&self.realm, &self.nonce);
        let mut secret = hash(&format!("{user}:{realm}:{password}"));
        if self.session {
            secret = hash(&format!("{secret}:{nonce}:{own}"));
        }
        let request = hash(&format!("GET:{path}"));
        let response = if self.counted {
            hash(&format!("{secret}:{nonce}:{count}:{own}:auth:{request}"))
        } else {
            hash(&format!("{secret}:{nonce}:{request}"))
        };
        let name = match (self.algorithm, self.session) {
            (Algorithm::Sha256, false) => "SHA-256",
            (Algorithm::Sha256, true) => "SHA-256-sess",
            (_, false) => "MD5",
            (_, true) => "MD5-sess",
        };
        let mut value = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, algorithm={name}, response=\"{response}\"",
            quoted(user),
            quoted(realm),
            quoted(nonce),
            quoted(path),
        );
        if self.counted {
            value.push_str(&format!(", qop=auth, nc={count}"));
        }
        if self.counted || self.session {
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
        assert!(!old.counted && old.algorithm == Algorithm::Md5);
        let answer = old.clone().answer("u\"", "p", "/", "own");
        assert!(answer.starts_with("Digest username=\"u\\\"\"") && !answer.contains("nc="));
        let session =
            Challenge::find("Digest realm=r,nonce=n,qop=auth,algorithm=MD5-sess").unwrap();
        assert!(session.session && session.counted);
        for none in [
            "",
            "Basic realm=\"Digest realm\"",
            "Negotiate YII==, Bearer",
            "Digest realm=\"r\"",
            "Digest realm=\"r\", nonce=\"n\", qop=\"auth-int\"",
            "Digest realm=\"r\", nonce=\"n\", algorithm=SHA-512-256",
        ] {
            assert_eq!(Challenge::find(none), None, "{none}");
        }
        let second = "Digest realm=x, nonce=y, algorithm=TOKEN, Digest realm=r, nonce=n";
        assert_eq!(Challenge::find(second), Some(Challenge { count: 0, ..old }));
    }
}
