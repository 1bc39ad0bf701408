//! One file: attempts and mirrors, what was there before, the part, and the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_RANGE, LAST_MODIFIED, RANGE,
};
use tokio::time::{sleep, timeout};

use crate::backoff;
use crate::body::{self, Body};
use crate::checksum::{self, Checksum, Hasher};
use crate::engine::{Planned, Shared, parse_url};
use crate::error::{Error, Kind, Result};
use crate::event::{Done, Event, Progress};
use crate::exchange::Answer;
use crate::job::Existing;
use crate::names;
use crate::part::{self, Part, Paths, Source, State};

/// Files up to this many bytes are gathered in memory and written in one go.
const SMALL: u64 = 128 * 1024;
/// Progress that earns a file its full number of retries again.
const WORTH: u64 = 256 * 1024;

/// Download one file.
pub async fn run(
    shared: &Arc<Shared>,
    planned: Arc<Planned>,
    progress: &Arc<Progress>,
) -> Result<Done> {
    let checksum = planned.job.checksum.clone().or_else(|| {
        let name = planned.target.file_name()?.to_string_lossy();
        shared.options.sums.as_ref()?.find(&name).cloned()
    });
    let mut transfer = Transfer { shared, planned, progress, checksum, absent: false, named: None };
    match shared.options.total_timeout {
        None => transfer.run().await,
        Some(limit) => timeout(limit, transfer.run()).await.unwrap_or_else(|_| {
            let text = format!("not done within {} s", limit.as_secs_f64());
            Err(Error::new(Kind::Timeout, text))
        }),
    }
}

struct Transfer<'a> {
    shared: &'a Arc<Shared>,
    planned: Arc<Planned>,
    progress: &'a Arc<Progress>,
    checksum: Option<Checksum>,
    /// There was no file of the planned name, so there is none to ask or to look for.
    absent: bool,
    /// The name that the server gave, and the target claimed for it.
    named: Option<(String, PathBuf)>,
}

impl Transfer<'_> {
    async fn run(&mut self) -> Result<Done> {
        if let Some(done) = self.before_any_request().await? {
            return Ok(done);
        }
        let mut mirrors: Vec<String> = self.planned.job.urls.clone();
        let mut current = 0;
        let mut retry = 0;
        let mut restarted = false;
        loop {
            let before = self.progress.received();
            let error = match self.attempt(&mirrors[current]).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if error.kind == Kind::Checksum && !restarted && self.may_have_mixed(before) {
                // What an earlier run left may be the reason. It is gone now; once more from the start.
                restarted = true;
                continue;
            }
            let demanded =
                error.retry_after.is_some_and(|wait| wait > self.shared.options.longest_wait);
            if mirrors.len() > 1 && (!error.is_transient() || demanded) && is_of_server(error.kind)
            {
                // This one has nothing for us; the others may.
                mirrors.remove(current);
                current %= mirrors.len();
                self.tell_retry(error, Duration::ZERO);
                continue;
            }
            if !error.is_transient() || demanded {
                return Err(error);
            }
            if self.progress.received() - before >= WORTH {
                retry = 0;
            }
            retry += 1;
            if retry > self.shared.options.retries {
                return Err(error);
            }
            current = (current + 1) % mirrors.len();
            let own = backoff::delay(retry, backoff::random());
            let wait = match error.retry_after {
                Some(asked) => asked,
                // Another mirror need not wait for this one to recover.
                None if current != 0 => Duration::ZERO,
                None => own,
            };
            self.tell_retry(error, wait);
            sleep(wait).await;
        }
    }

    fn tell_retry(&self, error: Error, wait: Duration) {
        self.shared.tell(Event::Retrying { index: self.planned.index, error, wait });
    }

    /// Whether the bytes did not all come in the attempt that ended.
    fn may_have_mixed(&self, before: u64) -> bool {
        self.progress.present() > self.progress.received() - before
    }

    /// What can be answered without asking the server.
    async fn before_any_request(&mut self) -> Result<Option<Done>> {
        let target = &self.planned.target;
        let Ok(metadata) = target.metadata() else {
            self.absent = true;
            return Ok(None);
        };
        if let Some(settled) = self.is_settled(target, metadata.len()) {
            return settled.map(Some);
        }
        let Some(checksum) = &self.checksum else { return Ok(None) };
        let fits = self.planned.job.size.is_none_or(|size| size == metadata.len());
        if self.shared.options.existing != Existing::Update || !fits {
            return Ok(None);
        }
        let found = sum_of(checksum, target).await;
        let same = found.is_ok_and(|found| found == checksum.hex);
        Ok(same.then(|| self.unchanged(target, metadata.len(), true)))
    }

    /// What becomes of a download whose file is there, if that alone decides.
    fn is_settled(&self, target: &Path, size: u64) -> Option<Result<Done>> {
        match self.shared.options.existing {
            Existing::Skip => Some(Ok(self.unchanged(target, size, false))),
            Existing::Fail => {
                let text = format!("{} is there already", target.display());
                Some(Err(Error::new(Kind::Exists, text)))
            }
            Existing::Update | Existing::Replace | Existing::Rename => None,
        }
    }

    fn unchanged(&self, path: &Path, size: u64, verified: bool) -> Done {
        let received = self.progress.received();
        Done { path: path.to_owned(), size, received, unchanged: true, verified }
    }

    /// One attempt, from the request to the file in its place.
    async fn attempt(&mut self, url: &str) -> Result<Done> {
        let planned = Arc::clone(&self.planned);
        let is_first = planned.job.urls.first().is_some_and(|first| first == url);
        let parsed = if is_first { planned.url.clone() } else { parse_url(url)? };
        let shared = Arc::clone(self.shared);
        let options = &shared.options;
        let paths = Paths::of(&planned.target);
        let mut left = self.left_before(url, &paths);
        let mut unconditional = false;
        loop {
            let gap = left.as_ref().and_then(first_gap);
            if let Some(state) = left.take_if(|_| gap.is_none()) {
                // All of it is there; only the end was missing.
                let size = state.done.total();
                self.progress.begin(size, Some(size));
                let modified = state.source.modified.clone();
                let part = Part::open(paths, state.source, state.done)?;
                let modified = modified.as_deref();
                let end = self.finish(part, None, modified, planned.target.clone());
                return Box::pin(end).await;
            }
            let mut extra = HeaderMap::new();
            let mut since = None;
            match (&left, gap) {
                (Some(state), Some((start, end))) => {
                    ask_for_range(&mut extra, start, end, state.source.length, &state.source)?;
                }
                _ if unconditional => {}
                _ => since = self.ask_if_modified(&mut extra),
            }
            let answer = shared.client.get(options, &parsed, &planned.job.headers, &extra).await?;
            match answer.status.as_u16() {
                200 => return self.receive(url, answer, paths, None).await,
                206 if left.is_some() => {
                    let start = gap.map_or(0, |gap| gap.0);
                    let state =
                        left.take().filter(|state| continues(&answer, &state.source, start));
                    if state.is_some() {
                        return self.receive(url, answer, paths, state).await;
                    }
                    // Another version: once more without what is there.
                    answer.discard(options).await;
                }
                416 if left.take().is_some() => answer.discard(options).await,
                304 if since.is_some() => {
                    let theirs = answer.header(LAST_MODIFIED).map(httpdate::parse_http_date);
                    let same = theirs.is_none_or(|time| time.ok() == since);
                    answer.discard(options).await;
                    if same {
                        let size = planned.target.metadata().map_or(0, |metadata| metadata.len());
                        return Ok(self.unchanged(&planned.target, size, false));
                    }
                    // The file here is newer than theirs, hence not theirs: ask without a condition.
                    unconditional = true;
                }
                206 => {
                    return Err(Error::new(
                        Kind::Protocol,
                        "the server sends a part that was not asked for",
                    ));
                }
                _ => {
                    let error = answer.refusal();
                    answer.discard(options).await;
                    return Err(error);
                }
            }
        }
    }

    /// What an earlier attempt or run left, if it can be continued from that URL.
    fn left_before(&self, url: &str, paths: &Paths) -> Option<State> {
        if self.progress.received() == 0 && !self.shared.may_go_on(&self.planned.target) {
            return None;
        }
        let state = State::load(paths)?;
        let expected = self.planned.job.size;
        if expected.is_some() && state.source.length.is_some() && expected != state.source.length {
            return None;
        }
        // A mirror's versions are not this one's, unless a checksum will tell in the end.
        (state.source.url == url || self.checksum.is_some() && state.source.length.is_some())
            .then_some(state)
            .map(|mut state| {
                if state.source.url != url {
                    state.source = Source {
                        url: url.to_owned(),
                        length: state.source.length,
                        ..Source::default()
                    };
                }
                state
            })
    }

    /// Ask for the file only if it is newer than the one that is there, whose time it returns.
    fn ask_if_modified(&self, extra: &mut HeaderMap) -> Option<SystemTime> {
        if self.absent
            || self.shared.options.existing != Existing::Update
            || self.checksum.is_some()
        {
            return None;
        }
        let metadata = self.planned.target.metadata().ok().filter(|metadata| metadata.is_file())?;
        let modified = whole_seconds(metadata.modified().ok()?)?;
        if self.planned.job.size.is_some_and(|size| size != metadata.len()) {
            return None;
        }
        let value = HeaderValue::try_from(httpdate::fmt_http_date(modified)).ok()?;
        extra.insert(IF_MODIFIED_SINCE, value);
        Some(modified)
    }

    /// Take in an answer that has the file, or the rest of it.
    async fn receive(
        &mut self,
        url: &str,
        answer: Answer<'_>,
        paths: Paths,
        left: Option<State>,
    ) -> Result<Done> {
        let length = match &left {
            Some(state) => state.source.length.or_else(|| total_of(&answer)),
            None => answer.length(),
        };
        if let (Some(expected), Some(length)) = (self.planned.job.size, length) {
            if expected != length {
                let text = format!("it has {length} bytes, not the {expected} that were announced");
                return Err(Error::new(Kind::Checksum, text));
            }
        }
        let target = self.target(&answer);
        let modified = answer.header(LAST_MODIFIED).map(str::to_owned);
        if let Some(done) = self.is_there(&target, length, modified.as_deref())? {
            answer.discard(&self.shared.options).await;
            return Ok(done);
        }
        let done = left.as_ref().map(|state| state.done.clone()).unwrap_or_default();
        self.progress.begin(done.total(), length);
        self.shared.tell(Event::Started {
            index: self.planned.index,
            path: target.clone(),
            size: length,
            resumed: done.total(),
        });
        if left.is_none() && length.is_some_and(|length| length <= SMALL) {
            return self.receive_small(answer, &paths, target, modified.as_deref()).await;
        }
        let source = Source {
            url: url.to_owned(),
            etag: answer.header(ETAG).map(str::to_owned),
            modified: modified.clone(),
            length,
        };
        let hasher = self
            .checksum
            .as_ref()
            .filter(|_| done.total() == 0)
            .map(|checksum| Hasher::new(checksum.algorithm));
        let divisible = length.is_some()
            && source.validator().is_some()
            && (left.is_some() || answer.header(ACCEPT_RANGES) == Some("bytes"));
        let part = Part::open(paths, source, done)?;
        let mut body = Body {
            shared: self.shared,
            planned: &self.planned,
            progress: self.progress,
            url,
            part,
            hasher,
            divisible,
        };
        Box::pin(body.receive(answer)).await?;
        let Body { part, hasher, .. } = body;
        Box::pin(self.finish(part, hasher, modified.as_deref(), target)).await
    }

    /// Where the file goes, now that the server has had its say.
    fn target(&mut self, answer: &Answer<'_>) -> PathBuf {
        let name = answer
            .headers
            .get(CONTENT_DISPOSITION)
            .filter(|_| self.planned.may_be_named)
            .and_then(|header| names::from_content_disposition(header.as_bytes()));
        let Some(name) = name else { return self.planned.target.clone() };
        if self.planned.target.file_name().is_some_and(|own| own == name.as_str()) {
            return self.planned.target.clone();
        }
        match &self.named {
            Some((known, target)) if *known == name => target.clone(),
            _ => {
                let target = self.shared.claim(self.shared.options.directory.join(&name));
                self.named = Some((name, target.clone()));
                target
            }
        }
    }

    /// Whether the target needs no download after all.
    fn is_there(
        &self,
        target: &Path,
        length: Option<u64>,
        modified: Option<&str>,
    ) -> Result<Option<Done>> {
        if self.absent && target == self.planned.target {
            return Ok(None);
        }
        let Ok(metadata) = target.metadata() else { return Ok(None) };
        if let Some(settled) = self.is_settled(target, metadata.len()) {
            return settled.map(Some);
        }
        if self.shared.options.existing != Existing::Update || self.checksum.is_some() {
            return Ok(None);
        }
        let theirs = modified.and_then(|text| httpdate::parse_http_date(text).ok());
        let ours = metadata.modified().ok().and_then(whole_seconds);
        let same = theirs.is_some() && theirs == ours && length == Some(metadata.len());
        Ok(same.then(|| self.unchanged(target, metadata.len(), false)))
    }

    async fn receive_small(
        &self,
        mut answer: Answer<'_>,
        paths: &Paths,
        target: PathBuf,
        modified: Option<&str>,
    ) -> Result<Done> {
        let options = &self.shared.options;
        let length = usize::try_from(answer.length().unwrap_or(0)).unwrap_or(0);
        let mut first = None;
        let mut rest: Vec<u8> = Vec::new();
        while let Some(data) = answer.chunk(options).await? {
            self.progress.add(data.len() as u64);
            body::pay(self.shared, data.len()).await;
            if first.is_none() && data.len() == length {
                // All of it at once, as small files usually come.
                first = Some(data);
                continue;
            }
            rest.reserve(length.saturating_sub(rest.len()));
            rest.extend_from_slice(&data);
        }
        let content = first.as_deref().unwrap_or(&rest);
        if content.len() != length {
            return Err(Error::new(Kind::Connection, "the transfer broke off"));
        }
        if let Some(checksum) = &self.checksum {
            let mut hasher = Hasher::new(checksum.algorithm);
            hasher.update(content);
            compare(checksum, &hasher.finish())?;
        }
        // The part's name comes from the planned target, as that of large files.
        let time = self.time(modified);
        part::write_whole(&paths.part, content, &target, time, options.fsync).await?;
        Ok(self.done(target, length as u64))
    }

    /// Verify the part and give it its name.
    async fn finish(
        &self,
        part: Part,
        hasher: Option<Hasher>,
        modified: Option<&str>,
        target: PathBuf,
    ) -> Result<Done> {
        let size = part.plan.done().total();
        if let Some(expected) = self.planned.job.size.filter(|&expected| expected != size) {
            part.discard();
            let text = format!("it has {size} bytes, not the {expected} that were announced");
            return Err(Error::new(Kind::Checksum, text));
        }
        if let Some(checksum) = &self.checksum {
            let found = match hasher {
                Some(hasher) => hasher.finish(),
                None => sum_of(checksum, part.path()).await?,
            };
            if let Err(error) = compare(checksum, &found) {
                part.discard();
                return Err(error);
            }
        }
        part.finish(&target, self.time(modified), self.shared.options.fsync).await?;
        Ok(self.done(target, size))
    }

    fn time(&self, modified: Option<&str>) -> Option<SystemTime> {
        let text = modified.filter(|_| self.shared.options.keep_time)?;
        httpdate::parse_http_date(text).ok()
    }

    fn done(&self, path: PathBuf, size: u64) -> Done {
        let received = self.progress.received();
        Done { path, size, received, unchanged: false, verified: self.checksum.is_some() }
    }
}

/// Whether it is this server's matter, so that a mirror may do better.
fn is_of_server(kind: Kind) -> bool {
    !matches!(kind, Kind::Disk | Kind::Exists | Kind::Cancelled)
}

fn compare(checksum: &Checksum, found: &str) -> Result<()> {
    if checksum.hex == found {
        return Ok(());
    }
    let name = checksum.algorithm.name();
    let text = format!("its {name} is {found}, not {}", checksum.hex);
    Err(Error::new(Kind::Checksum, text))
}

async fn sum_of(checksum: &Checksum, path: &Path) -> Result<String> {
    let algorithm = checksum.algorithm;
    let path = path.to_owned();
    let summed = tokio::task::spawn_blocking(move || {
        checksum::of_file(algorithm, &path)
            .map_err(|error| Error::disk(format_args!("cannot read {}", path.display()), &error))
    });
    summed.await.unwrap_or_else(|error| Err(Error::new(Kind::Disk, error.to_string())))
}

/// HTTP's dates have no fractions.
fn whole_seconds(time: SystemTime) -> Option<SystemTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since.as_secs()))
}

/// The first bytes that are missing, the end exclusive and `u64::MAX` if unknown; None if none are.
fn first_gap(state: &State) -> Option<(u64, u64)> {
    let length = state.source.length.unwrap_or(u64::MAX);
    state.done.missing(length).first().copied()
}

/// Ask for a range of the version that is there already.
pub fn ask_for_range(
    extra: &mut HeaderMap,
    start: u64,
    end: u64,
    length: Option<u64>,
    source: &Source,
) -> Result<()> {
    let wrong = |_| Error::new(Kind::Protocol, "the server's validator is no header");
    let range = if end == u64::MAX || Some(end) == length {
        format!("bytes={start}-")
    } else {
        format!("bytes={start}-{}", end - 1)
    };
    let mut insert = |name: HeaderName, value: &str| {
        HeaderValue::try_from(value).map_err(wrong).map(|value| drop(extra.insert(name, value)))
    };
    insert(RANGE, &range)?;
    match source.validator() {
        Some(validator) => insert(IF_RANGE, validator),
        None => Ok(()),
    }
}

/// The start and the whole length in a Content-Range header.
fn content_range(answer: &Answer<'_>) -> Option<(u64, Option<u64>)> {
    let text = answer.header(CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

fn total_of(answer: &Answer<'_>) -> Option<u64> {
    content_range(answer)?.1
}

/// Whether a 206 goes on where it was asked to, in the same version.
pub fn continues(answer: &Answer<'_>, source: &Source, start: u64) -> bool {
    let Some((from, total)) = content_range(answer) else { return false };
    let same = |name: HeaderName, known: &Option<String>| match (answer.header(name), known) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => true,
    };
    from == start
        && (total.is_none() || source.length.is_none() || total == source.length)
        && same(ETAG, &source.etag)
        && same(LAST_MODIFIED, &source.modified)
}
