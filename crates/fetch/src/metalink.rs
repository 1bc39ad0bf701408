//! Metalink 4 (RFC 5854): an XML file that names files with mirrors, sizes and checksums.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::checksum::{Algorithm, Checksum};
use crate::job::Job;

/// Deeper than any metalink; an XML bomb ends here.
const DEEPEST: usize = 32;

/// Whether a name or URL looks like a metalink's.
pub fn is_name(name: &str) -> bool {
    name.ends_with(".meta4") || name.ends_with(".metalink")
}

/// Read a metalink. The error is a sentence.
pub fn parse(text: &str) -> Result<Vec<Job>, String> {
    let mut reader = Reader::from_str(text);
    let mut state = State::default();
    loop {
        match reader.read_event().map_err(|error| format!("the metalink is not XML: {error}"))? {
            Event::Start(start) => state.open(&start)?,
            Event::Empty(start) => {
                state.open(&start)?;
                state.close()?;
            }
            Event::End(_) => state.close()?,
            Event::Text(text) => {
                let text = text.xml10_content().map_err(|error| error.to_string())?;
                state.text.push_str(&text);
            }
            Event::CData(data) => state.text.push_str(&String::from_utf8_lossy(&data)),
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(|error| error.to_string())?;
                match (character, reference.decode().as_deref()) {
                    (Some(character), _) => state.text.push(character),
                    (None, Ok("amp")) => state.text.push('&'),
                    (None, Ok("lt")) => state.text.push('<'),
                    (None, Ok("gt")) => state.text.push('>'),
                    (None, Ok("quot")) => state.text.push('"'),
                    (None, Ok("apos")) => state.text.push('\''),
                    _ => return Err("the metalink uses an entity that XML does not define".into()),
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !state.path.is_empty() {
        return Err("the metalink ends in the middle".into());
    }
    if !state.is_metalink {
        return Err("not a metalink of version 4 (there is no <metalink> in it)".into());
    }
    match state.jobs.iter().find(|job| job.urls.is_empty()) {
        Some(job) => {
            Err(format!("the metalink has no http URL for {:?}", job.name.as_deref().unwrap_or("")))
        }
        None if state.jobs.is_empty() => Err("the metalink names no file".into()),
        None => Ok(state.jobs),
    }
}

#[derive(Default)]
struct State {
    path: Vec<String>,
    text: String,
    is_metalink: bool,
    jobs: Vec<Job>,
    /// The current file's URLs, with their priority.
    urls: Vec<(u32, String)>,
    priority: u32,
    hash: Option<Algorithm>,
}

impl State {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), String> {
        if self.path.len() >= DEEPEST {
            return Err("the metalink's elements are nested too deep".into());
        }
        let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
        self.text.clear();
        self.path.push(name);
        match self.here().as_slice() {
            ["metalink"] => self.is_metalink = true,
            ["metalink", "file"] => {
                self.urls.clear();
                self.jobs.push(Job { name: attribute(start, "name")?, ..Job::default() });
            }
            ["metalink", "file", "url"] => {
                let priority = attribute(start, "priority")?;
                self.priority = priority.and_then(|text| text.parse().ok()).unwrap_or(999_999);
            }
            ["metalink", "file", "hash"] => {
                self.hash = attribute(start, "type")?.and_then(|name| Algorithm::from_name(&name));
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let text = std::mem::take(&mut self.text);
        let text = text.trim();
        let here = self.here().join("/");
        if let Some(job) = self.jobs.last_mut() {
            match here.as_str() {
                "metalink/file" => {
                    self.urls.sort_by_key(|(priority, _)| *priority);
                    job.urls = self.urls.drain(..).map(|(_, url)| url).collect();
                }
                "metalink/file/url"
                    if text.starts_with("http://") || text.starts_with("https://") =>
                {
                    self.urls.push((self.priority, text.to_owned()));
                }
                "metalink/file/size" => {
                    let size = text.parse();
                    job.size =
                        Some(size.map_err(|_| format!("the metalink's size {text:?} is none"))?);
                }
                "metalink/file/hash" => {
                    if let Some(algorithm) = self.hash.take() {
                        let checksum = Checksum::new(algorithm, text);
                        let checksum = checksum
                            .ok_or_else(|| format!("the metalink's hash {text:?} is none"))?;
                        // Of several, the strongest.
                        if job.checksum.as_ref().is_none_or(|known| known.algorithm < algorithm) {
                            job.checksum = Some(checksum);
                        }
                    }
                }
                _ => {}
            }
        }
        self.path.pop();
        Ok(())
    }

    fn here(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = start.try_get_attribute(name).map_err(|error| format!("the metalink: {error}"))?;
    match found {
        Some(found) => {
            let value = found.normalized_value(quick_xml::XmlVersion::Implicit1_0);
            Ok(Some(value.map_err(|error| format!("the metalink: {error}"))?.into_owned()))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(files: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <metalink xmlns=\"urn:ietf:params:xml:ns:metalink\">{files}</metalink>"
        )
    }

    #[test]
    fn files_mirrors_and_hashes() {
        let (md5, sha) = ("0".repeat(32), "A".repeat(64));
        let text = document(&format!(
            "<published>2026-01-01T00:00:00Z</published>\n\
             <file name=\"d/a &amp; b.iso\"><size> 14 </size><identity>A</identity>\
             <hash type=\"md5\">{md5}</hash><hash type=\"sha-256\">{sha}</hash>\
             <hash type=\"sha-1\">ignored</hash>\
             <pieces length=\"7\" type=\"sha-256\"><hash>00</hash></pieces>\
             <url priority=\"2\">http://second/a?x=1&amp;y=2</url>\
             <url location=\"de\" priority=\"1\"><![CDATA[https://first/a]]></url>\
             <url>ftp://third/a</url></file>\
             <file name=\"c\"><url>http://h/&#99;</url></file>"
        ));
        let jobs = parse(&text).unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!(jobs[0].name.as_deref(), Some("d/a & b.iso"));
        assert_eq!(jobs[0].urls, ["https://first/a", "http://second/a?x=1&y=2"]);
        assert_eq!(jobs[0].size, Some(14));
        assert_eq!(jobs[0].checksum.as_ref().unwrap().hex, "a".repeat(64));
        assert_eq!(jobs[1].urls, ["http://h/c"]);
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "<html></html>",
            "plain",
            "<metalink><file name='a'>",
            "<metalink></file></metalink>",
            &document(""),
            &document("<file name='a'><url>ftp://h/a</url></file>"),
            &document("<file name='a'><size>many</size></file>"),
            &document("<file name='a'><hash type='md5'>xyz</hash></file>"),
            &document("<file name='a'><url>http://h/&bomb;</url></file>"),
            &document(&"<x>".repeat(1000)),
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_prefix_of_a_document_is_taken_for_one() {
        let whole = document("<file name='ä'><size>1</size><url>http://h/a</url></file>");
        assert!(parse(&whole).is_ok());
        for end in (0..whole.len()).filter(|&end| whole.is_char_boundary(end)) {
            assert!(parse(&whole[..end]).is_err(), "{}", &whole[..end]);
        }
    }
}
