//! Checksums: how they are written, which file they belong to, and computing them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::Digest;

/// The algorithms, strongest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// For old lists; it detects damage, not malice.
    Md5,
    /// SHA-256
    Sha256,
    /// SHA-512
    Sha512,
    /// BLAKE3 with its usual 256 bits.
    Blake3,
}

impl Algorithm {
    /// The algorithm of that name, in the spellings that lists, metalinks and files use.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().replace(['-', '_'], "").as_str() {
            "md5" => Some(Self::Md5),
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            "blake3" | "b3" => Some(Self::Blake3),
            _ => None,
        }
    }

    /// Its name as we write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// What a file's content is expected to sum up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// How it was computed.
    pub algorithm: Algorithm,
    /// The sum, in lower-case hexadecimal.
    pub hex: String,
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl Checksum {
    /// A sum of that algorithm, or None if the text is not as many hexadecimal digits as it has.
    pub fn new(algorithm: Algorithm, hex: &str) -> Option<Self> {
        let hex = hex.trim();
        let fits = hex.len() == 2 * algorithm.size() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| Self { algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Read `sha256:HEX`, `sha-256=HEX`, or bare digits, whose number tells the algorithm.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.split_once([':', '=']) {
            Some((name, hex)) => Self::new(Algorithm::from_name(name)?, hex),
            None => Self::bare(text, None),
        }
    }

    /// Digits alone: 32 are MD5, 64 SHA-256 (or `hint`, of that size), 128 SHA-512.
    fn bare(hex: &str, hint: Option<Algorithm>) -> Option<Self> {
        hint.into_iter()
            .chain([Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha512])
            .find_map(|algorithm| Self::new(algorithm, hex))
    }
}

/// A file of sums as `sha256sum` and its relatives write it: lines of sum and name, or one sum alone.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    named: Vec<(String, Checksum)>,
    single: Option<Checksum>,
}

impl Sums {
    /// Read a file's content; its name tells the algorithm where digits alone do not. The error is a
    /// sentence.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, String> {
        let hint = file_name.rsplit(['.', '/', '_']).next().and_then(|end| {
            Algorithm::from_name(
                end.trim_end_matches("sum").trim_end_matches("SUMS").trim_end_matches("sums"),
            )
        });
        let mut sums = Self::default();
        for line in
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let entry = Self::line(line, hint)
                .ok_or_else(|| format!("{file_name}: cannot read the checksum in {line:?}"))?;
            match entry {
                (Some(name), checksum) => sums.named.push((name, checksum)),
                (None, checksum) => sums.single = Some(checksum),
            }
        }
        if sums.named.is_empty() && sums.single.is_none() {
            return Err(format!("{file_name}: there is no checksum in it"));
        }
        Ok(sums)
    }

    fn line(line: &str, hint: Option<Algorithm>) -> Option<(Option<String>, Checksum)> {
        // BSD's form: SHA256 (name) = hex
        if let Some((head, hex)) = line.rsplit_once(" = ") {
            let (algorithm, name) = head.split_once(" (")?;
            let checksum = Checksum::new(Algorithm::from_name(algorithm)?, hex)?;
            return Some((Some(name.strip_suffix(')')?.to_owned()), checksum));
        }
        match line.split_once([' ', '\t']) {
            Some((hex, name)) => {
                let name = name.trim_start();
                let name = name.strip_prefix('*').unwrap_or(name);
                Some((Some(name.to_owned()), Checksum::bare(hex, hint)?))
            }
            None => Some((None, Checksum::bare(line, hint)?)),
        }
    }

    /// The sum for a file of that name: the entry whose last path component it is, or the only sum.
    pub fn find(&self, name: &str) -> Option<&Checksum> {
        self.named
            .iter()
            .find(|(known, _)| known.rsplit('/').next() == Some(name))
            .map(|(_, checksum)| checksum)
            .or(self.single.as_ref())
    }
}

/// A sum being computed.
pub enum Hasher {
    /// MD5
    Md5(md5::Md5),
    /// SHA-256
    Sha256(sha2::Sha256),
    /// SHA-512
    Sha512(sha2::Sha512),
    /// BLAKE3; boxed for its size.
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Nothing hashed yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Md5 => Self::Md5(md5::Md5::new()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    /// Add the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(data),
            Self::Sha256(hasher) => hasher.update(data),
            Self::Sha512(hasher) => hasher.update(data),
            Self::Blake3(hasher) => {
                hasher.update(data);
            }
        }
    }

    /// The sum, in lower-case hexadecimal.
    pub fn finish(self) -> String {
        match self {
            Self::Md5(hasher) => hex(&hasher.finalize()),
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Sha512(hasher) => hex(&hasher.finalize()),
            Self::Blake3(hasher) => hex(hasher.finalize().as_bytes()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The sum of a file's whole content. It blocks.
pub fn of_file(algorithm: Algorithm, path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn sums_of_abc() {
        // The published test vectors.
        for (algorithm, expected) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            (Algorithm::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        ] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn how_sums_are_written() {
        let sum = Checksum { algorithm: Algorithm::Sha256, hex: EMPTY.into() };
        for text in [
            format!("sha256:{EMPTY}"),
            format!("sha-256={}", EMPTY.to_uppercase()),
            format!(" {EMPTY} "),
        ] {
            assert_eq!(Checksum::parse(&text).as_ref(), Some(&sum));
        }
        assert_eq!(
            Checksum::parse(&format!("blake3:{EMPTY}")).unwrap().algorithm,
            Algorithm::Blake3
        );
        for text in ["", "sha256:12", "sha999:00", "zz", &EMPTY[1..]] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }

    #[test]
    fn files_of_sums() {
        let text = format!(
            "# comment\n{EMPTY}  a.txt\n{EMPTY} *sub/b.bin\nMD5 (c d.txt) = {}\n",
            &EMPTY[..32]
        );
        let sums = Sums::parse(&text, "SHA256SUMS").unwrap();
        assert_eq!(sums.find("a.txt").unwrap().algorithm, Algorithm::Sha256);
        assert_eq!(sums.find("b.bin").unwrap().hex, EMPTY);
        assert_eq!(sums.find("c d.txt").unwrap().algorithm, Algorithm::Md5);
        assert!(sums.find("other").is_none());
        let single = Sums::parse(EMPTY, "file.iso.b3").unwrap();
        assert_eq!(single.find("anything").unwrap().algorithm, Algorithm::Blake3);
        assert!(Sums::parse("<html>", "x.sha256").is_err());
        assert!(Sums::parse("\n", "x.sha256").is_err());
    }
}
