//! The command `rondel get`: reads the command line and the lists, runs the engine, shows what happens,
//! and says by the exit status how it went.

mod args;
mod cluster;
mod show;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderMap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use cluster::{Plan, plan};

use args::{Asked, Command, Sum};
use show::{Show, Tally};

use crate::checksum::Sums;
use crate::engine::{self, Watch, parse_url};
use crate::error::{Error, Kind, Result, describe};
use crate::exchange::Client;
use crate::job::{Job, Options};
use crate::netrc::Netrc;
use crate::{list, metalink};

/// Bytes that a list or a file of sums from a server may have.
const LONGEST_LIST: usize = 64 << 20;

/// How the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By an exit status.
    Status(i32),
    /// By a signal that stopped it.
    Signal(i32),
}

/// Run `rondel get` with these arguments, without the command's own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> End {
    with_command(arguments, get).unwrap_or_else(|end| end)
}

/// Read the command line and do something with it, within a runtime; or say what ends the command.
fn with_command<T, F: Future<Output = T>>(
    arguments: impl IntoIterator<Item = OsString>,
    work: impl FnOnce(Command) -> F,
) -> std::result::Result<T, End> {
    let environment = |name: &str| std::env::var(name).ok();
    let command = match args::parse(arguments, environment) {
        Ok(Asked::Get(command)) => *command,
        Ok(Asked::Help) => return Err(print(args::HELP)),
        Ok(Asked::Version) => {
            return Err(print(concat!("rondel ", env!("CARGO_PKG_VERSION"), "\n")));
        }
        Err(text) => return Err(usage_error(&text)),
    };
    let runtime = engine::runtime().map_err(|error| usage_error(&error.text))?;
    let done = runtime.block_on(work(command));
    // A name that is still being looked up must not keep the command from ending.
    runtime.shutdown_background();
    Ok(done)
}

/// The options that a command line without URLs gives, with netrc and proxies from the environment: for
/// those who bring their own jobs.
pub fn options(arguments: impl IntoIterator<Item = OsString>) -> Result<Options> {
    let wrong = |text: String| Error::new(Kind::Input, text);
    let any = [OsString::from("http://any.invalid/")];
    let environment = |name: &str| std::env::var(name).ok();
    match args::parse(arguments.into_iter().chain(any), environment).map_err(wrong)? {
        Asked::Get(mut command) => {
            read_credentials(&mut command)?;
            Ok(command.options)
        }
        Asked::Help | Asked::Version => Err(wrong("not an option for a program".into())),
    }
}

/// End the process by a signal, as it would have ended without us.
pub fn end_by_signal(signal: i32) {
    // SAFETY: both take numbers only; SIG_DFL is a valid disposition for every signal that was caught.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn print(text: &str) -> End {
    let printed = io::stdout().lock().write_all(text.as_bytes());
    End::Status(i32::from(printed.is_err()))
}

fn usage_error(text: &str) -> End {
    let _ = writeln!(io::stderr().lock(), "rondel get: {text}");
    End::Status(2)
}

fn failed(error: &Error) -> End {
    let _ = writeln!(io::stderr().lock(), "rondel get: {error}");
    End::Status(status_of(&[error.kind]))
}

async fn get(mut command: Command) -> End {
    let jobs = match gather(&mut command).await {
        Ok(jobs) => jobs,
        Err(error) => return failed(&error),
    };
    let names = jobs.iter().map(|job| job.urls.first().cloned().unwrap_or_default()).collect();
    let show = Arc::new(Show::new(command.output, names));
    let watch = Arc::new(Watch::default());
    let stopped_by = drive(jobs, command.options, &show, &watch).await;
    match stopped_by {
        Ok(signal) => {
            let tally = show.finish(&watch, signal.is_some());
            signal.map_or_else(|| End::Status(status(&tally)), End::Signal)
        }
        Err(error) => usage_error(&error.text),
    }
}

/// Run the engine, showing how far it is; the answer is the signal that stopped it, if one did.
async fn drive(
    jobs: Vec<Job>,
    options: Options,
    show: &Arc<Show>,
    watch: &Arc<Watch>,
) -> Result<Option<i32>> {
    let observer = Arc::clone(show);
    let run = engine::run_here(jobs, options, observer, watch);
    tokio::pin!(run);
    let stop = stop_signal();
    tokio::pin!(stop);
    let mut stopped_by = None;
    let mut ticks = interval_at(Instant::now() + show.period(), show.period());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outcome = &mut run => return outcome.map(|()| stopped_by),
            number = &mut stop, if stopped_by.is_none() => {
                stopped_by = Some(number);
                watch.stop();
            }
            _ = ticks.tick() => {
                show.tick(watch);
                if show.is_unwatched() && stopped_by.is_none() {
                    stopped_by = Some(libc::SIGPIPE);
                    watch.stop();
                }
            }
        }
    }
}

/// The first signal that asks to stop.
async fn stop_signal() -> i32 {
    let one = |number: i32, kind: SignalKind| async move {
        // Whoever started this with the signal ignored, as nohup or a shell's background job, meant it.
        if !is_ignored(number) {
            if let Ok(mut signals) = signal(kind) {
                signals.recv().await;
                return number;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        number = one(libc::SIGINT, SignalKind::interrupt()) => number,
        number = one(libc::SIGTERM, SignalKind::terminate()) => number,
        number = one(libc::SIGHUP, SignalKind::hangup()) => number,
    }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: a zeroed sigaction is a valid place for the answer, and no new action is given.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The exit status for how the files ended.
fn status(tally: &Tally) -> i32 {
    status_of(&tally.failed)
}

fn status_of(failed: &[Kind]) -> i32 {
    let code = |kind: &Kind| match kind {
        Kind::Input => 2,
        Kind::Name | Kind::Connection | Kind::Tls | Kind::Timeout | Kind::Protocol => 3,
        Kind::Status(_) => 4,
        Kind::Checksum => 5,
        Kind::Disk => 6,
        Kind::Exists => 7,
        Kind::Cancelled => 1,
    };
    let mut codes = failed.iter().map(code);
    match codes.next() {
        None => 0,
        Some(first) if codes.all(|code| code == first) => first,
        Some(_) => 1,
    }
}

/// All jobs of the command line and its lists, and what the options name as files.
async fn gather(command: &mut Command) -> Result<Vec<Job>> {
    let wrong = |text: String| Error::new(Kind::Input, text);
    read_credentials(command)?;
    let mut jobs = Vec::new();
    for url in std::mem::take(&mut command.urls) {
        if metalink::is_name(&url) && !url.contains("://") {
            jobs.extend(metalink::parse(&read_file(Path::new(&url))?).map_err(wrong)?);
        } else {
            jobs.push(Job::from_url(url));
        }
    }
    for source in std::mem::take(&mut command.lists) {
        let text = read(&source, &command.options).await?;
        let is_metalink = metalink::is_name(&source) || text.trim_start().starts_with("<?xml");
        let parsed = if is_metalink { metalink::parse(&text) } else { list::parse(&text) };
        jobs.extend(parsed.map_err(|why| wrong(format!("{source}: {why}")))?);
    }
    // A URL that is there twice is wanted once.
    let mut seen = HashSet::new();
    jobs.retain(|job| job.name.is_some() || seen.insert(job.urls.clone()));
    match command.sum.take() {
        None => {}
        Some(Sum::Value(checksum)) => match &mut jobs[..] {
            [job] => job.checksum = Some(checksum),
            _ => {
                return Err(wrong(
                    "--checksum with a sum is for one URL; give a file of sums".into(),
                ));
            }
        },
        Some(Sum::Source(source)) => {
            let text = read(&source, &command.options).await?;
            let name = source.rsplit('/').next().unwrap_or(&source);
            command.options.sums = Some(Sums::parse(&text, name).map_err(wrong)?);
        }
    }
    Ok(jobs)
}

/// Take in ~/.netrc and the cookie file.
fn read_credentials(command: &mut Command) -> Result<()> {
    if command.netrc {
        if let Some(text) = netrc_path().and_then(|path| fs::read_to_string(path).ok()) {
            command.options.netrc = Netrc::parse(&text);
        }
    }
    if let Some(path) = &command.cookies {
        let text = read_file(path)?;
        let loaded = command.options.cookies.load(&text);
        loaded.map_err(|why| Error::new(Kind::Input, format!("{}: {why}", path.display())))?;
    }
    Ok(())
}

fn netrc_path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("NETRC") {
        return Some(PathBuf::from(path));
    }
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".netrc"))
}

/// A text that a file, a URL, or standard input (`-`) holds.
async fn read(source: &str, options: &Options) -> Result<String> {
    if source == "-" {
        let mut text = String::new();
        return match io::stdin().lock().read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => {
                Err(Error::new(Kind::Input, format!("standard input: {}", describe(&error))))
            }
        };
    }
    if !source.starts_with("http://") && !source.starts_with("https://") {
        return read_file(Path::new(source));
    }
    let within = |error: Error| Error { text: format!("{source}: {}", error.text), ..error };
    let client = Client::new(options, 1)?;
    let url = parse_url(source)?;
    let mut answer = client.get(options, &url, &[], &HeaderMap::new()).await.map_err(within)?;
    if answer.status.as_u16() != 200 {
        return Err(within(answer.refusal()));
    }
    let mut content = Vec::new();
    while let Some(data) = answer.chunk(options).await.map_err(within)? {
        content.extend_from_slice(&data);
        if content.len() > LONGEST_LIST {
            return Err(Error::new(Kind::Input, format!("{source} is too long for a list")));
        }
    }
    String::from_utf8(content).map_err(|_| Error::new(Kind::Input, format!("{source} is not text")))
}

fn read_file(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| {
        Error::new(Kind::Input, format!("cannot read {}: {}", path.display(), describe(&error)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_tells_more_than_several() {
        for (failed, expected) in [
            (&[][..], 0),
            (&[Kind::Status(404), Kind::Status(403)], 4),
            (&[Kind::Name, Kind::Timeout], 3),
            (&[Kind::Status(404), Kind::Timeout], 1),
            (&[Kind::Checksum], 5),
            (&[Kind::Disk], 6),
            (&[Kind::Exists], 7),
            (&[Kind::Input], 2),
        ] {
            assert_eq!(status_of(failed), expected, "{failed:?}");
        }
    }
}
