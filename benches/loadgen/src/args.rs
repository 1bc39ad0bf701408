//! The command line.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp,
    Unix,
    Udp,
    Tls,
    Http,
}

impl Transport {
    fn named(name: &str) -> Result<Self, String> {
        Ok(match name {
            "tcp" => Self::Tcp,
            "unix" => Self::Unix,
            "udp" => Self::Udp,
            "tls" => Self::Tls,
            "http" => Self::Http,
            other => return Err(format!("unknown transport {other:?}")),
        })
    }
}

pub struct LoadOptions {
    pub transport: Transport,
    /// `host:port`, or a path for unix.
    pub address: String,
    pub connections: usize,
    /// Bytes per message; ignored for http.
    pub size: usize,
    pub duration: Duration,
    pub warmup: Duration,
    /// The server's process, whose CPU time and memory are reported.
    pub pid: Option<i32>,
    /// The certificate to trust, for tls.
    pub ca: Option<PathBuf>,
    /// The path to GET, for http.
    pub path: String,
}

pub struct BareOptions {
    pub transport: Transport,
    /// The socket's path, for unix.
    pub path: Option<PathBuf>,
    /// The folder `loadgen cert` filled, for tls.
    pub cert: Option<PathBuf>,
}

pub enum Command {
    Load(LoadOptions),
    Hold(LoadOptions),
    Bare(BareOptions),
    Cert(PathBuf),
}

pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut next = |what: &str| args.next().ok_or_else(|| format!("missing {what}"));
    let mode = next("command: load, hold, bare or cert")?;
    if mode == "cert" {
        return Ok(Command::Cert(next("folder")?.into()));
    }
    let transport = Transport::named(&next("transport")?)?;
    if mode == "bare" {
        let mut options = BareOptions { transport, path: None, cert: None };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--path" => options.path = Some(value.into()),
                "--cert" => options.cert = Some(value.into()),
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        return Ok(Command::Bare(options));
    }
    let mut options = LoadOptions {
        transport,
        address: next("address")?,
        connections: 1,
        size: 1024,
        duration: Duration::from_secs(1),
        warmup: Duration::from_millis(300),
        pid: None,
        ca: None,
        path: "/".to_owned(),
    };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--connections" => options.connections = number(&flag, &value)?,
            "--size" => options.size = number(&flag, &value)?,
            "--duration" => options.duration = seconds(&flag, &value)?,
            "--warmup" => options.warmup = seconds(&flag, &value)?,
            "--pid" => options.pid = Some(number(&flag, &value)?),
            "--ca" => options.ca = Some(value.into()),
            "--path" => options.path = value,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    if options.connections == 0 {
        return Err("--connections must be at least 1".to_owned());
    }
    match mode.as_str() {
        "load" => Ok(Command::Load(options)),
        "hold" => Ok(Command::Hold(options)),
        other => Err(format!("unknown command {other:?}")),
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{flag}: {value:?} is not a number"))
}

fn seconds(flag: &str, value: &str) -> Result<Duration, String> {
    number::<f64>(flag, value).and_then(|seconds| {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("{flag}: {value:?} is not a duration"))
    })
}
