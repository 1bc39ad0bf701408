//! The command line of `rondel get`: its options, and the help text.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::checksum::Checksum;
use crate::job::{Existing, Fsync, Options, Segments};
use crate::names::Template;
use crate::proxy::{Proxies, Proxy};

/// What `rondel get --help` prints.
pub const HELP: &str = "\
Download files: many at a time, resumed where they were left, verified.

usage: rondel get [OPTION ...] URL ...
       rondel get [OPTION ...] -i LIST

what and where
  -i, --input LIST       a list of URLs, or a metalink (.meta4): a file, a URL, or - for standard
                         input; a line per file, mirrors separated by tabs, and below it, indented,
                         out=NAME, checksum=sha256:HEX, size=BYTES, header=NAME: VALUE
  -o, --output DIR       the folder for the files; made if it is not there (default: this one)
      --name TEMPLATE    name files by {name}, {stem}, {ext}, {host}, {path}, {index} or {index:4},
                         as in '{host}/{path}'
      --no-content-disposition
                         take names from URLs alone, not from servers
      --checksum SUM     sha256:HEX (or sha512:, blake3:, md5:) for the one URL; or a file or URL of
                         sums, as sha256sum writes it
      --existing WHAT    for a file that is there: update (default: ask whether it changed), skip,
                         replace, rename (choose another name) or fail
      --no-resume        do not go on with what an earlier run left
      --no-mtime         do not give files the server's time
      --fsync            force every file to the disk before it gets its name

how fast
  -j, --jobs N           files at a time (default 16)
      --per-host N       connections at a time to one host (default 8)
      --segments N       connections for one large file, from the start; `auto` (default) adds up
                         to four while they help, 1 never divides a file
      --rate BYTES       bytes per second for all together, as 500K, 2M or 1.5G (powers of 1,024)

how patiently
      --retries N        further attempts per file (default 5), with growing waits, or as the server
                         asks
      --timeout S        seconds without a byte (default 30)
      --connect-timeout S
                         seconds for a connection (default 15)
      --max-time S       seconds for one file with all its attempts (default: none)

how to ask
  -H, --header 'NAME: VALUE'
                         a header for every request
  -u, --user NAME:PASSWORD
                         credentials; without, those of the URL or of ~/.netrc
      --no-netrc         do not read ~/.netrc
      --user-agent TEXT  instead of rondel's own
      --cookies FILE     cookies to send, in Netscape's format
      --proxy URL        a proxy: http://, https://, socks5://, socks5h:// (it looks names up),
                         socks4:// or socks4a://, with NAME:PASSWORD@ if it asks; without, what
                         http_proxy, https_proxy, all_proxy and no_proxy say
      --no-proxy         no proxy, whatever the environment says
      --ca-file FILE     trust these certificates instead of the system's
      --insecure         trust any certificate
      --http1.1          do not use HTTP/2
      --max-redirects N  redirects to follow (default 20)

where from
      --dask ADDRESS     let the workers of this Dask cluster do it (tcp://scheduler:8786): -o is a
                         folder that they share; --jobs, --rate and the like are for each worker

what to tell
      --json             one JSON object per line and event on standard output, for programs
  -q, --quiet            errors alone
  -h, --help             this text
      --version          the version

exit status
  0 all files are there; 1 some failed, for different reasons; 2 the command line or a list is
  wrong; if all that failed did so for one reason: 3 the network, 4 the server refused (404, 403 …),
  5 a checksum or size is wrong, 6 the disk (full, no permission), 7 the file is there
  (--existing fail).
  Ctrl-C ends it by the signal (130 in a shell); the same command goes on from there.
";

/// How much is told, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people: bars on a terminal, lines elsewhere.
    Human,
    /// For programs.
    Json,
    /// Errors alone.
    Quiet,
}

/// Where `--checksum` leads.
#[derive(Debug)]
pub enum Sum {
    /// The sum itself.
    Value(Checksum),
    /// A file or URL of sums.
    Source(String),
}

/// A command line that was understood.
#[derive(Debug)]
pub struct Command {
    /// URLs, and local metalinks.
    pub urls: Vec<String>,
    /// Lists, in their order.
    pub lists: Vec<String>,
    /// From `--checksum`.
    pub sum: Option<Sum>,
    /// What is said about the environment: netrc and the cookie file are read later.
    pub netrc: bool,
    /// From `--cookies`.
    pub cookies: Option<PathBuf>,
    /// The scheduler of the cluster whose workers are to do it.
    pub dask: Option<String>,
    /// How much is told.
    pub output: Output,
    /// All the rest.
    pub options: Options,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// A download.
    Get(Box<Command>),
    /// The help text.
    Help,
    /// The version.
    Version,
}

/// Read the arguments after `rondel get`. The error is a sentence.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Asked, String> {
    let mut parser = Parser::from_args(arguments);
    let mut options = Options::default();
    let (mut proxy, mut direct) = (None, false);
    let mut command = Command {
        urls: Vec::new(),
        lists: Vec::new(),
        sum: None,
        netrc: true,
        cookies: None,
        dask: None,
        output: Output::Human,
        options: Options::default(),
    };
    while let Some(argument) = parser.next().map_err(sentence)? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Asked::Help),
            Arg::Long("version") => return Ok(Asked::Version),
            Arg::Value(url) => command.urls.push(url.string().map_err(sentence)?),
            Arg::Short('i') | Arg::Long("input") => command.lists.push(text(&mut parser)?),
            Arg::Short('o') | Arg::Long("output") => {
                options.directory = PathBuf::from(parser.value().map_err(sentence)?);
            }
            Arg::Long("name") => options.template = Some(Template::parse(&text(&mut parser)?)?),
            Arg::Long("no-content-disposition") => options.content_disposition = false,
            Arg::Long("checksum") => {
                let value = text(&mut parser)?;
                command.sum = Some(match Checksum::parse(&value) {
                    Some(checksum) => Sum::Value(checksum),
                    None => Sum::Source(value),
                });
            }
            Arg::Long("existing") => options.existing = existing(&text(&mut parser)?)?,
            Arg::Long("resume") => options.resume = true,
            Arg::Long("no-resume") => options.resume = false,
            Arg::Long("no-mtime") => options.keep_time = false,
            Arg::Long("fsync") => options.fsync = Fsync::Always,
            Arg::Short('j') | Arg::Long("jobs") => {
                options.concurrency = count(&mut parser, "--jobs")?
            }
            Arg::Long("per-host") => options.per_host = count(&mut parser, "--per-host")?,
            Arg::Long("segments") => {
                options.segments = match text(&mut parser)?.as_str() {
                    "auto" => Options::default().segments,
                    number => Segments::Fixed(positive(number, "--segments")?),
                };
            }
            Arg::Long("rate") => options.rate = Some(rate(&text(&mut parser)?)?),
            Arg::Long("retries") => {
                let value = text(&mut parser)?;
                options.retries =
                    value.parse().map_err(|_| format!("--retries: {value:?} is not a number"))?;
            }
            Arg::Long("timeout") => options.idle_timeout = seconds(&mut parser, "--timeout")?,
            Arg::Long("connect-timeout") => {
                options.connect_timeout = seconds(&mut parser, "--connect-timeout")?;
            }
            Arg::Long("max-time") => {
                options.total_timeout = Some(seconds(&mut parser, "--max-time")?)
            }
            Arg::Short('H') | Arg::Long("header") => {
                let value = text(&mut parser)?;
                let (name, content) = value
                    .split_once(':')
                    .ok_or_else(|| format!("--header: {value:?} is not 'NAME: VALUE'"))?;
                options.headers.push((name.trim().to_owned(), content.trim().to_owned()));
            }
            Arg::Short('u') | Arg::Long("user") => {
                let value = text(&mut parser)?;
                let (name, password) = value.split_once(':').unwrap_or((&value, ""));
                options.user = Some((name.to_owned(), password.to_owned()));
            }
            Arg::Long("no-netrc") => command.netrc = false,
            Arg::Long("user-agent") => options.user_agent = text(&mut parser)?,
            Arg::Long("cookies") => {
                command.cookies = Some(PathBuf::from(parser.value().map_err(sentence)?));
            }
            Arg::Long("proxy") => proxy = Some(Proxy::parse(&text(&mut parser)?)?),
            Arg::Long("no-proxy") => direct = true,
            Arg::Long("ca-file") => {
                options.ca_file = Some(PathBuf::from(parser.value().map_err(sentence)?));
            }
            Arg::Long("insecure") => options.insecure = true,
            Arg::Long("http1" | "http1.1") => options.http2 = false,
            Arg::Long("max-redirects") => {
                let value = text(&mut parser)?;
                options.max_redirects = value
                    .parse()
                    .map_err(|_| format!("--max-redirects: {value:?} is not a number"))?;
            }
            Arg::Long("dask") => command.dask = Some(text(&mut parser)?),
            Arg::Long("json") => command.output = Output::Json,
            Arg::Short('q') | Arg::Long("quiet") => command.output = Output::Quiet,
            other => return Err(sentence(other.unexpected())),
        }
    }
    if command.urls.is_empty() && command.lists.is_empty() {
        return Err("there is no URL; `rondel get --help` tells how to give some".into());
    }
    options.proxies = match (direct, proxy) {
        (true, _) => Proxies::default(),
        (false, Some(proxy)) => Proxies::all(proxy),
        (false, None) => Proxies::from_environment(environment)?,
    };
    if command.dask.is_some() && matches!(options.existing, Existing::Rename | Existing::Fail) {
        return Err("--dask is for --existing update, skip or replace".into());
    }
    command.options = options;
    Ok(Asked::Get(Box::new(command)))
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn sentence(error: lexopt::Error) -> String {
    error.to_string()
}

fn text(parser: &mut Parser) -> Result<String, String> {
    parser.value().and_then(|value| value.string()).map_err(sentence)
}

fn positive(text: &str, option: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(number),
        _ => Err(format!("{option}: {text:?} is not a number from 1 to 10000")),
    }
}

fn count(parser: &mut Parser, option: &str) -> Result<usize, String> {
    positive(&text(parser)?, option)
}

fn seconds(parser: &mut Parser, option: &str) -> Result<Duration, String> {
    let text = text(parser)?;
    text.parse()
        .ok()
        .filter(|&seconds| seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("{option}: {text:?} is not a number of seconds"))
}

fn existing(text: &str) -> Result<Existing, String> {
    match text {
        "update" => Ok(Existing::Update),
        "skip" => Ok(Existing::Skip),
        "replace" => Ok(Existing::Replace),
        "rename" => Ok(Existing::Rename),
        "fail" => Ok(Existing::Fail),
        _ => Err(format!("--existing: {text:?} is none of update, skip, replace, rename and fail")),
    }
}

/// Bytes per second, with K, M or G for powers of 1,024.
fn rate(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches("B").trim_end_matches("i");
    let (number, unit) = match number.to_ascii_uppercase().chars().next_back() {
        Some('K') => (&number[..number.len() - 1], 1024.0),
        Some('M') => (&number[..number.len() - 1], 1024.0 * 1024.0),
        Some('G') => (&number[..number.len() - 1], 1024.0 * 1024.0 * 1024.0),
        _ => (number, 1.0),
    };
    let rate: f64 = number.parse().unwrap_or(0.0);
    if !(1.0..1e18).contains(&(rate * unit)) {
        return Err(format!("--rate: {text:?} is not a number of bytes, as 500K or 2M"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it was just checked
    let rate = (rate * unit) as u64;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(arguments: &[&str]) -> Result<Command, String> {
        match parse(arguments.iter().map(OsString::from), |_| None)? {
            Asked::Get(command) => Ok(*command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_understood() {
        let sum = format!("sha256:{}", "0".repeat(64));
        let command = get(&[
            "http://h/a",
            "-i",
            "list",
            "-o",
            "dir",
            "-j4",
            "--per-host=2",
            "--retries",
            "0",
            "--timeout",
            "2.5",
            "--no-resume",
            "--checksum",
            &sum,
            "--rate",
            "1.5M",
            "--segments",
            "3",
            "-H",
            "X: y:z",
            "-u",
            "me:a:b",
            "--proxy",
            "p:1",
            "--insecure",
            "--json",
            "--existing",
            "skip",
            "http://h/b",
        ])
        .unwrap();
        assert_eq!(command.urls, ["http://h/a", "http://h/b"]);
        assert_eq!(command.lists, ["list"]);
        assert!(matches!(command.sum, Some(Sum::Value(_))));
        assert_eq!(command.output, Output::Json);
        let options = command.options;
        assert_eq!((options.concurrency, options.per_host, options.retries), (4, 2, 0));
        assert_eq!(options.idle_timeout, Duration::from_millis(2500));
        assert_eq!(options.rate, Some(1_572_864));
        assert_eq!(options.segments, Segments::Fixed(3));
        assert_eq!(options.headers, [("X".to_owned(), "y:z".to_owned())]);
        assert_eq!(options.user, Some(("me".to_owned(), "a:b".to_owned())));
        assert_eq!(options.existing, Existing::Skip);
        assert!(options.insecure && !options.resume);
    }

    #[test]
    fn mistakes_are_sentences() {
        for (arguments, part) in [
            (&[][..], "no URL"),
            (&["--nonsense"], "nonsense"),
            (&["u", "-j", "0"], "--jobs"),
            (&["u", "--rate", "fast"], "--rate"),
            (&["u", "--rate", "ä"], "--rate"),
            (&["u", "--timeout", "-1"], "--timeout"),
            (&["u", "--timeout", "nan"], "--timeout"),
            (&["u", "--timeout", "1e400"], "--timeout"),
            (&["u", "--header", "x"], "--header"),
            (&["u", "--name", "{x"], "template"),
            (&["u", "--existing", "x"], "--existing"),
            (&["u", "--proxy", "ftp://x"], "proxy"),
            (&["u", "-o"], "-o"),
        ] {
            let error = get(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_help_text_names_every_option() {
        let source = include_str!("args.rs");
        let end = source.find("other.unexpected()").unwrap();
        for option in source[..end].split("Arg::Long(\"").skip(1) {
            let name = option.split('"').next().unwrap();
            assert!(HELP.contains(&format!("--{name}")) || name == "resume", "--{name}");
        }
        assert!(HELP.lines().all(|line| line.chars().count() <= 100), "a line is too long");
    }
}
