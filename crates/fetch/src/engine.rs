//! A run: which file is next, how many at a time, and the thread that all of it happens on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Observer, Progress};
use crate::exchange::Client;
use crate::job::{Existing, Job, Options};
use crate::limit::Limiter;
use crate::{locked, names, part, transfer};

/// From so many files on it pays to look through the folder.
const MANY: usize = 16;

/// A job with what was decided about it beforehand.
#[derive(Debug)]
pub struct Planned {
    /// Its place in the list, from 0.
    pub index: usize,
    /// The job.
    pub job: Job,
    /// Its first URL, read.
    pub url: Url,
    /// Where it goes, unless the server names it.
    pub target: PathBuf,
    /// Whether the server may name it.
    pub may_be_named: bool,
    host: usize,
}

/// What all transfers of a run share.
pub struct Shared {
    /// How to download.
    pub options: Options,
    /// No earlier run has left a state in the run's folder.
    is_fresh: bool,
    /// The connections.
    pub client: Client,
    /// The rate limit.
    pub limiter: Option<Limiter>,
    observer: Arc<dyn Observer>,
    queue: Mutex<Queue>,
    /// A place became free, at a host or for good.
    freed: Notify,
    /// Targets that are taken in this run.
    claimed: Mutex<HashSet<PathBuf>>,
    watch: Arc<Watch>,
}

/// What others see of a run, from any thread, and by which they stop it.
#[derive(Debug, Default)]
pub struct Watch {
    active: Mutex<Vec<Arc<Progress>>>,
    received: AtomicU64,
    stopped: AtomicBool,
    stop: Notify,
}

impl Watch {
    /// The files that are being worked on.
    pub fn active(&self) -> Vec<Arc<Progress>> {
        locked(&self.active).clone()
    }

    /// Bytes received so far, of all files.
    pub fn received(&self) -> u64 {
        let of_active: u64 = locked(&self.active).iter().map(|progress| progress.received()).sum();
        of_active + self.received.load(Ordering::Relaxed)
    }

    /// Stop the run at once; files that can be resumed leave their parts.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // It stores a permit if nobody waits yet.
        self.stop.notify_one();
    }

    /// Whether somebody has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// Files wait by host, so that a slow host does not hold up the others.
#[derive(Debug, Default)]
struct Queue {
    hosts: Vec<HostQueue>,
    /// Hosts with waiting files, in turn.
    turn: VecDeque<usize>,
    waiting: usize,
}

#[derive(Debug, Default)]
struct HostQueue {
    waiting: VecDeque<Planned>,
    active: usize,
}

impl Queue {
    /// The next file of a host that has a place for it.
    fn take(&mut self, per_host: usize) -> Option<Planned> {
        for _ in 0..self.turn.len() {
            let host = self.turn.pop_front()?;
            let of_host = &mut self.hosts[host];
            let planned =
                if of_host.active < per_host { of_host.waiting.pop_front() } else { None };
            if !of_host.waiting.is_empty() {
                self.turn.push_back(host);
            }
            if let Some(planned) = planned {
                of_host.active += 1;
                self.waiting -= 1;
                return Some(planned);
            }
        }
        None
    }
}

impl Shared {
    /// Tell of an event.
    pub fn tell(&self, event: Event) {
        self.observer.event(event);
    }

    /// A further connection to that file's host, if there may be one; it ends when the answer is
    /// dropped.
    pub fn extra_connection(self: &Arc<Self>, planned: &Planned) -> Option<Place> {
        let mut queue = locked(&self.queue);
        let of_host = &mut queue.hosts[planned.host];
        if of_host.active >= self.options.per_host {
            return None;
        }
        of_host.active += 1;
        Some(Place { shared: Arc::clone(self), host: planned.host })
    }

    /// A target that no other file of this run has, that one or a numbered one; one that is not there
    /// either, if files that are there are to keep their names.
    pub fn claim(&self, target: PathBuf) -> PathBuf {
        claim(&mut locked(&self.claimed), target, self.options.existing == Existing::Rename)
    }

    /// Whether an earlier run may have left something of a file. To look for each of many files costs
    /// more than to look through the folder once.
    pub fn may_go_on(&self, target: &Path) -> bool {
        self.options.resume
            && !(self.is_fresh && target.parent() == Some(self.options.directory.as_path()))
    }

    /// One worker: files until there is none left.
    async fn work(self: Arc<Self>) {
        loop {
            let freed = self.freed.notified();
            let taken = {
                let mut queue = locked(&self.queue);
                match queue.take(self.options.per_host) {
                    Some(planned) => Some(planned),
                    None if queue.waiting == 0 => return,
                    None => None,
                }
            };
            let Some(planned) = taken else {
                freed.await;
                continue;
            };
            let place = Place { shared: Arc::clone(&self), host: planned.host };
            let index = planned.index;
            let progress = Arc::new(Progress::new(index));
            locked(&self.watch.active).push(Arc::clone(&progress));
            let working = Working { shared: &self, progress: &progress };
            let result = transfer::run(&self, Arc::new(planned), &progress).await;
            drop(working);
            drop(place);
            self.tell(Event::Finished { index, result });
        }
    }
}

/// A place among a host's connections; dropping it lets another have it.
pub struct Place {
    shared: Arc<Shared>,
    host: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.shared.queue).hosts[self.host].active -= 1;
        self.shared.freed.notify_waiters();
    }
}

/// Takes a file from the active ones, also if its worker is stopped.
struct Working<'a> {
    shared: &'a Shared,
    progress: &'a Arc<Progress>,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let watch = &self.shared.watch;
        let mut active = locked(&watch.active);
        active.retain(|progress| !Arc::ptr_eq(progress, self.progress));
        watch.received.fetch_add(self.progress.received(), Ordering::Relaxed);
    }
}

/// See [`Shared::claim`]; `rename` for names that no file has, either.
fn claim(claimed: &mut HashSet<PathBuf>, target: PathBuf, rename: bool) -> PathBuf {
    let mut found = target.clone();
    let mut number = 0;
    while claimed.contains(&found) || rename && found.symlink_metadata().is_ok() {
        number += 1;
        found = names::numbered(&target, number);
    }
    claimed.insert(found.clone());
    found
}

/// Give every job the name and the checksum that a run of all of them would, but for names that servers
/// choose: so that runs of some of them at different places agree. A job that cannot be run stays as
/// it is, for its run to say so.
pub fn settle(jobs: &mut [Job], options: &Options) {
    let mut claimed = HashSet::new();
    for (index, job) in jobs.iter_mut().enumerate() {
        let Ok((_, target, _)) = target(job, index, options) else { continue };
        let target = claim(&mut claimed, target, false);
        if job.checksum.is_none() {
            let name = target.file_name().unwrap_or_default().to_string_lossy();
            job.checksum = options.sums.as_ref().and_then(|sums| sums.find(&name).cloned());
        }
        let relative = target.strip_prefix(&options.directory).unwrap_or(&target);
        job.name = Some(relative.to_string_lossy().into_owned());
    }
}

/// Decide where every file goes; those that cannot be are told of at once.
fn plan(jobs: Vec<Job>, shared: &Shared) {
    let mut hosts: HashMap<String, usize> = HashMap::new();
    for (index, job) in jobs.into_iter().enumerate() {
        match target(&job, index, &shared.options) {
            Ok((url, target, may_be_named)) => {
                let target = shared.claim(target);
                let mut queue = locked(&shared.queue);
                let known = hosts.len();
                let host =
                    *hosts.entry(url.host_str().unwrap_or_default().to_owned()).or_insert(known);
                if host == known {
                    queue.hosts.push(HostQueue::default());
                }
                if queue.hosts[host].waiting.is_empty() {
                    queue.turn.push_back(host);
                }
                queue.waiting += 1;
                let planned = Planned { index, job, url, target, may_be_named, host };
                queue.hosts[host].waiting.push_back(planned);
            }
            Err(error) => shared.tell(Event::Finished { index, result: Err(error) }),
        }
    }
}

fn target(job: &Job, index: usize, options: &Options) -> Result<(Url, PathBuf, bool)> {
    let first = job.urls.first().ok_or_else(|| Error::new(Kind::Input, "there is no URL"))?;
    let url = parse_url(first)?;
    let unusable = |name: &str| Error::new(Kind::Input, format!("{name:?} is no usable file name"));
    let (relative, may_be_named) = match (&job.name, &options.template) {
        (Some(name), _) => (names::safe_relative(name).ok_or_else(|| unusable(name))?, false),
        (None, Some(template)) => {
            (template.apply(&url, index + 1).ok_or_else(|| unusable(first))?, false)
        }
        (None, None) => (PathBuf::from(names::from_url(&url)), options.content_disposition),
    };
    Ok((url, options.directory.join(relative), may_be_named))
}

/// Read a URL that a user gave; `example.org/file` is taken for http.
pub fn parse_url(text: &str) -> Result<Url> {
    let wrong = |why: String| Error::new(Kind::Input, format!("{text:?} is no usable URL: {why}"));
    let parsed = match Url::parse(text) {
        Ok(url) if !url.cannot_be_a_base() || text.contains("://") => Ok(url),
        // `host:port/path` looks like a scheme.
        _ if !text.contains("://") => Url::parse(&format!("http://{text}")),
        other => other,
    };
    let url = parsed.map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(url),
        "http" | "https" => Err(wrong("it has no host".into())),
        other => Err(wrong(format!("only http and https are known, not {other}"))),
    }
}

/// Download all of it, on the calling thread, until it is done or `watch` stops it. Every job's end is
/// told to the observer, unless the run is stopped before.
pub fn run(
    jobs: Vec<Job>,
    options: Options,
    observer: Arc<dyn Observer>,
    watch: &Arc<Watch>,
) -> Result<()> {
    runtime()?.block_on(run_here(jobs, options, observer, watch))
}

/// A runtime for [`run_here`].
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Names, file sums and fsync block; nothing else does.
        .max_blocking_threads(4)
        .thread_name("rondel-fetch")
        .build()
        .map_err(|error: io::Error| Error::new(Kind::Input, format!("no event loop: {error}")))
}

/// The same within a runtime that is there.
pub async fn run_here(
    jobs: Vec<Job>,
    options: Options,
    observer: Arc<dyn Observer>,
    watch: &Arc<Watch>,
) -> Result<()> {
    let count = options.concurrency.max(1).min(jobs.len());
    let is_fresh = jobs.len() >= MANY && part::has_no_state(&options.directory, jobs.len());
    let shared = Arc::new(Shared {
        is_fresh,
        client: Client::new(&options, count)?,
        limiter: options.rate.map(Limiter::new),
        options,
        observer,
        queue: Mutex::default(),
        freed: Notify::new(),
        claimed: Mutex::default(),
        watch: Arc::clone(watch),
    });
    plan(jobs, &shared);
    let mut workers = JoinSet::new();
    for _ in 0..count {
        workers.spawn(Arc::clone(&shared).work());
    }
    let all = async {
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                if error.is_panic() {
                    return Err(Error::new(Kind::Input, "a bug: a worker panicked"));
                }
            }
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = all => outcome,
        () = watch.stop.notified() => Ok(()),
    };
    // Parts write their state when they are dropped.
    workers.shutdown().await;
    outcome
}
