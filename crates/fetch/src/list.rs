//! Lists of what to download: a line per file, as aria2 reads them too.
//!
//! ```text
//! # a comment
//! https://example.org/a.iso
//! https://example.org/b.iso<TAB>https://mirror.example.net/b.iso
//!   out=folder/name.iso
//!   checksum=sha-256=2cf24d…
//!   header=X-Token: abc
//! ```
//!
//! URLs on one line, separated by tabs, are mirrors of one file; indented lines belong to the URL above.

use crate::checksum::Checksum;
use crate::job::Job;

/// Read a list. The error is a sentence that names the line.
pub fn parse(text: &str) -> Result<Vec<Job>, String> {
    let mut jobs: Vec<Job> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}: {:?}", number + 1, line.trim());
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if !line.starts_with([' ', '\t']) {
            let urls = line.split('\t').map(str::trim).filter(|url| !url.is_empty());
            jobs.push(Job { urls: urls.map(str::to_owned).collect(), ..Job::default() });
            continue;
        }
        let job = jobs.last_mut().ok_or_else(|| wrong("an option before the first URL"))?;
        let (key, value) =
            line.trim().split_once('=').ok_or_else(|| wrong("an option without its value"))?;
        let value = value.trim();
        match key.trim() {
            "out" | "name" => job.name = Some(value.to_owned()),
            "checksum" => {
                let checksum = Checksum::parse(value);
                job.checksum = Some(checksum.ok_or_else(|| wrong("not a checksum that we know"))?);
            }
            "header" => {
                let header = value.split_once(':').ok_or_else(|| wrong("not a header"))?;
                job.headers.push((header.0.trim().to_owned(), header.1.trim().to_owned()));
            }
            "size" => job.size = Some(value.parse().map_err(|_| wrong("not a size in bytes"))?),
            _ => return Err(wrong("an unknown option")),
        }
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_mirrors_and_options() {
        let sum = "0".repeat(64);
        let text = format!(
            "# comment\r\n\r\nhttp://h/a \nhttp://h/b\thttp://m/b\n  out=d/b.txt\n\
             \tchecksum=sha-256={sum}\n  # another\n  header=X-A: b:c\n  size=12\nhttp://h/c\n"
        );
        let jobs = parse(&text).unwrap();
        assert_eq!(jobs.len(), 3);
        assert_eq!(jobs[0].urls, ["http://h/a"]);
        assert_eq!(jobs[1].urls, ["http://h/b", "http://m/b"]);
        assert_eq!(jobs[1].name.as_deref(), Some("d/b.txt"));
        assert_eq!(jobs[1].checksum.as_ref().unwrap().hex, sum);
        assert_eq!(jobs[1].headers, [("X-A".to_owned(), "b:c".to_owned())]);
        assert_eq!(jobs[1].size, Some(12));
        assert!(jobs[2].name.is_none());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, part) in [
            ("  out=x\n", "line 1: an option before"),
            ("http://h/\n  nonsense=1", "line 2: an unknown option"),
            ("http://h/\n  checksum=sha256:12", "line 2: not a checksum"),
            ("http://h/\n  out", "line 2: an option without"),
            ("http://h/\n  header=x", "line 2: not a header"),
            ("http://h/\n  size=x", "line 2: not a size"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(part), "{error}");
        }
    }
}
