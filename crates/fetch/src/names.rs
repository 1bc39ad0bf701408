//! File names: taken from a URL or a Content-Disposition, made safe, and templates for them.
//!
//! What a server sends decides at most one path component, never a folder, and never a hidden file.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

/// Bytes a name may have, so that a suffix of ours still fits into the 255 that file systems take.
const LONGEST: usize = 230;
/// The name of what a URL ending in a slash serves.
const INDEX: &str = "index.html";

/// One path component out of a name that somebody else chose, or None if nothing of it is left.
///
/// What comes before a slash or backslash is dropped, as are control characters and those that turn the
/// direction of writing; a leading dot, which would hide the file, becomes an underscore.
pub fn safe(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept: String = last.chars().filter(|&c| !c.is_control() && !turns_direction(c)).collect();
    let kept = kept.trim();
    if kept.trim_matches('.').is_empty() {
        return None;
    }
    let mut name = kept.to_owned();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    Some(shortened(&name))
}

fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The name cut to [`LONGEST`] bytes, before its extension.
fn shortened(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let (stem, extension) = split(name);
    fitted(stem, if extension.len() < 32 { extension } else { "" })
}

/// As much of the stem as leaves room for the ending within [`LONGEST`].
fn fitted(stem: &str, ending: &str) -> String {
    let mut end = LONGEST.saturating_sub(ending.len()).min(stem.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ending}", stem[..end].trim_end())
}

/// Stem and extension, the dot with the extension. `.tar.gz` and its like stay whole.
fn split(name: &str) -> (&str, &str) {
    let Some(dot) = name.rfind('.').filter(|&dot| dot > 0) else {
        return (name, "");
    };
    let stem = &name[..dot];
    if let Some(tar) = stem.strip_suffix(".tar").filter(|stem| !stem.is_empty()) {
        return name.split_at(tar.len());
    }
    name.split_at(dot)
}

/// The name that a URL suggests: its last path segment, decoded and made safe.
pub fn from_url(url: &Url) -> String {
    url.path_segments()
        .and_then(|mut segments| segments.next_back())
        .and_then(decoded_component)
        .unwrap_or_else(|| INDEX.to_owned())
}

/// A path segment of a URL as a safe name. A slash that was encoded is no separator: it becomes `_`.
fn decoded_component(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8_lossy();
    safe(&decoded.replace(['/', '\\'], "_"))
}

/// The safe file name in a Content-Disposition header (RFC 6266), if there is one.
pub fn from_content_disposition(header: &[u8]) -> Option<String> {
    let text = match std::str::from_utf8(header) {
        Ok(text) => text.to_owned(),
        Err(_) => header.iter().map(|&byte| char::from(byte)).collect(),
    };
    let mut plain = None;
    for (key, value) in parameters(&text) {
        if key.eq_ignore_ascii_case("filename*") {
            // The extended form wins wherever it stands, if it can be read.
            if let Some(name) = extended_value(&value).and_then(|name| safe(&name)) {
                return Some(name);
            }
        } else if key.eq_ignore_ascii_case("filename") && plain.is_none() {
            plain = safe(&value);
        }
    }
    plain
}

/// The parameters after the disposition type, quoted strings undone.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = match text.find(';') {
        Some(semicolon) => &text[semicolon + 1..],
        None => return found,
    };
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let Some(equals) = rest.find('=') else { return found };
        let key = rest[..equals].trim();
        if let Some(semicolon) = key.rfind(';') {
            // A parameter without a value; the next one begins behind it.
            rest = &rest[semicolon + 1..];
            continue;
        }
        let after = rest[equals + 1..].trim_start();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.push((key.to_owned(), value));
        rest = left;
    }
}

/// What stands before the closing quote, escapes undone, and what follows it.
pub(crate) fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// An extended value of RFC 8187: `charset'language'percent-encoded`.
fn extended_value(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes = percent_decode_str(encoded);
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" => bytes.decode_utf8().ok().map(|text| text.into_owned()),
        "iso-8859-1" => Some(bytes.map(char::from).collect()),
        _ => None,
    }
}

/// `archive.tar.gz` with number 2 is `archive.2.tar.gz`.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, extension) = split(&name);
    path.with_file_name(fitted(stem, &format!(".{number}{extension}")))
}

/// A relative path that a list or a metalink gives: every component made safe. None if it is empty or
/// would leave its folder.
pub fn safe_relative(path: &str) -> Option<PathBuf> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return None;
    }
    let parts: Vec<String> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(safe)
        .collect::<Option<_>>()?;
    (!parts.is_empty()).then(|| parts.iter().collect())
}

/// A template for names: `{host}/{name}`, `{index:04}-{stem}{ext}`, `{host}/{path}`.
#[derive(Clone, Debug)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Name,
    Stem,
    Extension,
    Host,
    Path,
    Index(usize),
}

impl Template {
    /// Read a template. The error is a sentence about what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                pieces.push(Piece::Text(rest[..open].to_owned()));
            }
            let close = rest[open..]
                .find('}')
                .ok_or_else(|| format!("the name template {text:?} has a '{{' without its '}}'"))?;
            let field = &rest[open + 1..open + close];
            pieces.push(match field {
                "name" => Piece::Name,
                "stem" => Piece::Stem,
                "ext" => Piece::Extension,
                "host" => Piece::Host,
                "path" => Piece::Path,
                "index" => Piece::Index(0),
                _ => field
                    .strip_prefix("index:")
                    .and_then(|width| width.parse().ok())
                    .filter(|&width| width <= 20)
                    .map(Piece::Index)
                    .ok_or_else(|| {
                        format!(
                            "the name template knows no {{{field}}}; there are {{name}}, {{stem}}, \
                             {{ext}}, {{host}}, {{path}}, {{index}} and {{index:4}}"
                        )
                    })?,
            });
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// The relative path for a URL; `index` counts the list's URLs from 1. None if a component of it
    /// cannot be made safe.
    pub fn apply(&self, url: &Url, index: usize) -> Option<PathBuf> {
        let name = from_url(url);
        let (stem, extension) = split(&name);
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Name => text.push_str(&name),
                Piece::Stem => text.push_str(stem),
                Piece::Extension => text.push_str(extension),
                Piece::Host => text.push_str(url.host_str().unwrap_or("localhost")),
                Piece::Path => text.push_str(&url_path(url)),
                Piece::Index(width) => text.push_str(&format!("{index:0width$}")),
            }
        }
        safe_relative(&text)
    }
}

/// The URL's path with safe components, and a name where it ends in a slash.
fn url_path(url: &Url) -> String {
    let mut parts: Vec<String> = url
        .path_segments()
        .map(|segments| segments.filter_map(decoded_component).collect())
        .unwrap_or_default();
    if url.path().ends_with('/') {
        parts.push(INDEX.to_owned());
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for (given, kept) in [
            ("report.pdf", Some("report.pdf")),
            ("../../etc/passwd", Some("passwd")),
            ("/etc/passwd", Some("passwd")),
            ("C:\\Windows\\win.ini", Some("win.ini")),
            (".bashrc", Some("_bashrc")),
            ("..", None),
            (".", None),
            ("", None),
            ("a/", None),
            ("  spaced name.txt ", Some("spaced name.txt")),
            ("nul\0l\n.txt", Some("null.txt")),
            ("exe\u{202e}fdp.scr", Some("exefdp.scr")),
        ] {
            assert_eq!(safe(given).as_deref(), kept, "{given:?}");
        }
        let long = safe(&format!("{}.tar.gz", "ä".repeat(200))).unwrap();
        assert!(long.len() <= LONGEST && long.ends_with("ä.tar.gz"), "{long}");
    }

    #[test]
    fn names_from_urls() {
        for (given, name) in [
            ("http://h/a/b.zip?x=/y/z#f", "b.zip"),
            ("http://h/", "index.html"),
            ("http://h", "index.html"),
            ("http://h/a%20b%C3%A4.txt", "a bä.txt"),
            ("http://h/..%2f..%2fetc%2fpasswd", "_._.._etc_passwd"),
            ("http://h/%2e%2e", "index.html"),
            ("http://h/x/.htaccess", "_htaccess"),
        ] {
            assert_eq!(from_url(&url(given)), name, "{given}");
        }
    }

    #[test]
    fn content_disposition() {
        for (header, name) in [
            ("attachment; filename=plain.txt", Some("plain.txt")),
            ("attachment; filename=\"a b.txt\"", Some("a b.txt")),
            ("attachment; filename=\"a\\\"b;c.txt\"; x=y", Some("a\"b;c.txt")),
            ("inline; FileName*=UTF-8''na%C3%AFve%20file.txt; filename=x", Some("naïve file.txt")),
            ("attachment; filename=x; filename*=utf-8'de'%e2%82%ac.txt", Some("€.txt")),
            ("attachment; filename*=iso-8859-1''%A3.txt", Some("£.txt")),
            ("attachment; filename*=koi8-r''%A3.txt; filename=fallback", Some("fallback")),
            ("attachment; filename*=UTF-8''%FF; filename=fallback", Some("fallback")),
            ("attachment; filename=\"../../../.ssh/authorized_keys\"", Some("authorized_keys")),
            ("attachment; filename*=UTF-8''..%2F..%2Fevil", Some("evil")),
            ("attachment; filename=\"..\"", None),
            ("attachment; filename", None),
            ("attachment", None),
            ("attachment; filename=\"unclosed", Some("unclosed")),
            ("attachment; flag; filename=after.txt", Some("after.txt")),
            ("filename=not-a-parameter", None),
            ("", None),
        ] {
            assert_eq!(from_content_disposition(header.as_bytes()).as_deref(), name, "{header}");
        }
        let latin = b"attachment; filename=\"\xa3.txt\"";
        assert_eq!(from_content_disposition(latin).as_deref(), Some("£.txt"));
    }

    #[test]
    fn nothing_that_a_server_sends_escapes() {
        // Every string over an alphabet of what is special, up to five long.
        let alphabet = ["/", "\\", ".", "\"", ";", "=", "*", "'", "%2f", "a"];
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            texts = texts
                .iter()
                .flat_map(|text| alphabet.iter().map(move |piece| format!("{text}{piece}")))
                .collect();
        }
        for text in texts {
            for header in [
                format!("attachment; filename={text}"),
                format!("attachment; filename=\"{text}\""),
                format!("attachment; filename*=UTF-8''{text}"),
            ] {
                if let Some(name) = from_content_disposition(header.as_bytes()) {
                    assert!(!name.contains(['/', '\\']) && !name.starts_with('.'), "{header}");
                    assert!(!name.is_empty());
                }
            }
        }
    }

    #[test]
    fn templates() {
        let from = url("http://host.example/dir/sub/archive.tar.gz?q");
        for (template, path) in [
            ("{name}", Some("archive.tar.gz")),
            ("{host}/{path}", Some("host.example/dir/sub/archive.tar.gz")),
            ("{index:4}-{stem}.x{ext}", Some("0007-archive.x.tar.gz")),
            ("fixed", Some("fixed")),
            ("../{name}", None),
            ("/abs/{name}", None),
            ("", None),
        ] {
            let template = Template::parse(template).unwrap();
            assert_eq!(template.apply(&from, 7), path.map(PathBuf::from), "{template:?}");
        }
        assert!(Template::parse("{nonsense}").unwrap_err().contains("nonsense"));
        assert!(Template::parse("{name").is_err());
        assert_eq!(numbered(Path::new("d/a.tar.gz"), 1), Path::new("d/a.1.tar.gz"));
        assert_eq!(numbered(Path::new("README"), 2), Path::new("README.2"));
    }
}
