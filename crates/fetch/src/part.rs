//! What lies on the disk while a file is coming: the part, and the state by which a later run goes on.
//!
//! For a target `name` they are `name.rondel-part` and `name.rondel-state`. The part gets the target's
//! name by one rename when it is whole and verified; until then what had the name before is untouched.
//! The state is written when a transfer has lasted a moment, so that small files never have one, and
//! when a transfer ends early. It says what the part is a part of, and which bytes of it are there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Bytes;

use crate::error::{Error, Result, describe};
use crate::job::Fsync;
use crate::segments::{Plan, Ranges};

/// Pieces that the system takes in one write.
const MOST_SLICES: usize = 1024;
const STATE: &str = ".rondel-state";
const HEADING: &str = "rondel download state 1";

/// The files' names for a target.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The bytes that are there.
    pub part: PathBuf,
    /// What they are.
    pub state: PathBuf,
}

impl Paths {
    /// Beside the target.
    pub fn of(target: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { part: with(".rondel-part"), state: with(STATE) }
    }

    /// Remove both; what is not there need not be.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.state);
        let _ = fs::remove_file(&self.part);
    }
}

/// Whether a folder has no file's state; looking ends at `most` entries, which may have one.
pub fn has_no_state(folder: &Path, most: usize) -> bool {
    let here = folder.as_os_str().is_empty();
    match fs::read_dir(if here { Path::new(".") } else { folder }) {
        Ok(entries) => entries.enumerate().all(|(number, entry)| {
            number < most
                && entry.is_ok_and(|entry| {
                    !entry.file_name().as_encoded_bytes().ends_with(STATE.as_bytes())
                })
        }),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// What the bytes of a part are: a version of a URL's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The URL that was asked for (before redirects).
    pub url: String,
    /// The ETag header.
    pub etag: Option<String>,
    /// The Last-Modified header.
    pub modified: Option<String>,
    /// The whole content's length in bytes.
    pub length: Option<u64>,
}

impl Source {
    /// What an If-Range header may say: a strong tag, or a date.
    pub fn validator(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|tag| tag.starts_with('"'));
        strong.or(self.modified.as_deref())
    }
}

/// A state as it was read.
#[derive(Debug)]
pub struct State {
    /// What the part is a part of.
    pub source: Source,
    /// Which bytes are there.
    pub done: Ranges,
}

impl State {
    /// Read the state beside a part. None if there is none, or none that can be used.
    pub fn load(paths: &Paths) -> Option<Self> {
        let text = fs::read_to_string(&paths.state).ok()?;
        let size = fs::metadata(&paths.part).ok()?.len();
        Self::parse(&text, size)
    }

    fn parse(text: &str, size: u64) -> Option<Self> {
        // A state that was cut off has no last line.
        let text = text.strip_suffix("end\n")?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return None;
        }
        let mut source = Source::default();
        let mut done = Ranges::default();
        for line in lines {
            let (key, value) = line.split_once(": ")?;
            match key {
                "url" => source.url = value.to_owned(),
                "etag" => source.etag = Some(value.to_owned()),
                "last-modified" => source.modified = Some(value.to_owned()),
                "length" => source.length = Some(value.parse().ok()?),
                // All that the part holds, from its beginning.
                "done" if value == "all" => done.add(0, size),
                "done" => {
                    let (start, end) = value.split_once('-')?;
                    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
                    if end > size {
                        return None;
                    }
                    done.add(start, end);
                }
                _ => return None,
            }
        }
        let fits = source
            .length
            .is_none_or(|length| done.as_slice().iter().all(|range| range.1 <= length));
        (fits && done.total() > 0 && !source.url.is_empty()).then_some(Self { source, done })
    }

    /// `explicit` for a part that is not written from its beginning to its end alone.
    fn text(source: &Source, done: &Ranges, explicit: bool) -> String {
        let mut text = format!("{HEADING}\nurl: {}\n", source.url);
        if let Some(etag) = &source.etag {
            text.push_str(&format!("etag: {etag}\n"));
        }
        if let Some(modified) = &source.modified {
            text.push_str(&format!("last-modified: {modified}\n"));
        }
        if let Some(length) = source.length {
            text.push_str(&format!("length: {length}\n"));
        }
        match done.as_slice() {
            // One stream from the start: the part's size says how far it came, even after a crash.
            [] | [(0, _)] if !explicit => text.push_str("done: all\n"),
            ranges => {
                for (start, end) in ranges {
                    text.push_str(&format!("done: {start}-{end}\n"));
                }
            }
        }
        text.push_str("end\n");
        text
    }
}

/// A part that is being written.
pub struct Part {
    paths: Paths,
    /// What it is a part of.
    pub source: Source,
    file: Arc<File>,
    /// Which bytes are there and who fetches the rest.
    pub plan: Arc<Plan>,
    /// What the state on the disk says; None if there is none.
    saved: Option<String>,
    /// The part's size does not say how far it came, since several transfers write to it.
    explicit: bool,
    finished: bool,
}

impl Part {
    /// Begin anew, or go on with `done` of an earlier run.
    pub fn open(paths: Paths, source: Source, done: Ranges) -> Result<Self> {
        let file = create(&paths.part, false)?;
        lock(&file, &paths.part)?;
        if done.total() == 0 {
            // A state of another version must not be taken for this one's.
            let _ = fs::remove_file(&paths.state);
            file.set_len(0).map_err(|error| cannot_write(&paths.part, &error))?;
        }
        let plan = Arc::new(Plan::new(done, source.length));
        Ok(Self {
            paths,
            source,
            file: Arc::new(file),
            plan,
            saved: None,
            explicit: false,
            finished: false,
        })
    }

    /// The file, for transfers to write to.
    pub fn sink(&self) -> Sink {
        Sink { file: Arc::clone(&self.file), path: self.paths.part.clone() }
    }

    /// The part's path.
    pub fn path(&self) -> &Path {
        &self.paths.part
    }

    /// Write the state if it says something new.
    pub fn save(&mut self) {
        let done = self.plan.done();
        if done.total() == 0 {
            return;
        }
        let text = State::text(&self.source, &done, self.explicit);
        if self.saved.as_ref() == Some(&text) {
            return;
        }
        // By a rename, so that being killed here does not cost the state before.
        let mut new = self.paths.state.clone().into_os_string();
        new.push("-new");
        let written = fs::write(&new, &text).and_then(|()| fs::rename(&new, &self.paths.state));
        match written {
            Ok(()) => self.saved = Some(text),
            // Without a state the part cannot be continued, which is no reason to fail the transfer.
            Err(_) => drop(fs::remove_file(&new)),
        }
    }

    /// Several transfers will write to it. To be called before the second one does.
    pub fn divide(&mut self) {
        self.explicit = true;
        self.save();
    }

    /// Throw it away: what it holds is of no use.
    pub fn discard(mut self) {
        self.finished = true;
        self.paths.remove();
    }

    /// Give it the target's name.
    pub async fn finish(
        mut self,
        target: &Path,
        modified: Option<SystemTime>,
        fsync: Fsync,
    ) -> Result<()> {
        let file = Arc::clone(&self.file);
        complete(file, &self.paths.part, target, modified, fsync).await?;
        self.finished = true;
        if self.saved.is_some() || self.paths.state.exists() {
            let _ = fs::remove_file(&self.paths.state);
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Whatever the reason, as little as possible is to be fetched again. Without a length or a
        // validator nobody could tell whether the rest belongs to it.
        if self.plan.done().total() > 0 && self.source.validator().is_some() {
            self.save();
        } else {
            self.paths.remove();
        }
    }
}

/// Where transfers write.
#[derive(Clone)]
pub struct Sink {
    file: Arc<File>,
    path: PathBuf,
}

impl Sink {
    /// Write at an offset; `written` hears of every piece, also of those before an error.
    pub fn write(
        &self,
        pieces: &[Bytes],
        mut offset: u64,
        mut written: impl FnMut(u64),
    ) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match write_vectored_at(&self.file, rest, offset) {
                Ok(0) => return Err(cannot_write(&self.path, &ErrorKind::WriteZero.into())),
                Ok(count) => {
                    IoSlice::advance_slices(&mut rest, count);
                    offset += count as u64;
                    written(count as u64);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(cannot_write(&self.path, &error)),
            }
        }
        Ok(())
    }
}

fn write_vectored_at(file: &File, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    if let [slice] = slices {
        return file.write_at(slice, offset);
    }
    let most = slices.len().min(MOST_SLICES);
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let count = libc::c_int::try_from(most).map_err(io::Error::other)?;
    // SAFETY: an IoSlice is laid out as an iovec; `count` of them, and what they point to, are borrowed,
    // and the descriptor is open as long as `file` is.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), slices.as_ptr().cast(), count, offset) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Write a whole small file under the part's name and give it the target's.
pub async fn write_whole(
    part: &Path,
    content: &[u8],
    target: &Path,
    modified: Option<SystemTime>,
    fsync: Fsync,
) -> Result<()> {
    let file = Arc::new(create(part, true)?);
    let written = match file.write_all_at(content, 0) {
        Ok(()) => complete(file, part, target, modified, fsync).await,
        Err(error) => Err(cannot_write(part, &error)),
    };
    if written.is_err() {
        let _ = fs::remove_file(part);
    }
    written
}

fn create(path: &Path, truncate: bool) -> Result<File> {
    let open = || OpenOptions::new().create(true).write(true).truncate(truncate).open(path);
    let opened = match (open(), path.parent()) {
        (Err(error), Some(folder)) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(|error| {
                Error::disk(format_args!("cannot make the folder {}", folder.display()), &error)
            })?;
            open()
        }
        (opened, _) => opened,
    };
    opened.map_err(|error| cannot_write(path, &error))
}

async fn complete(
    file: impl AsRef<File> + Send + 'static,
    part: &Path,
    target: &Path,
    modified: Option<SystemTime>,
    fsync: Fsync,
) -> Result<()> {
    if let Some(time) = modified {
        // A file system without times is no reason to fail.
        let _ = file.as_ref().set_modified(time);
    }
    if fsync == Fsync::Always {
        blocking(part, move || file.as_ref().sync_all()).await?;
    }
    fs::rename(part, target).map_err(|error| cannot_write(target, &error))?;
    if fsync == Fsync::Always {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        blocking(target, move || File::open(folder)?.sync_all()).await?;
    }
    Ok(())
}

/// Wait for the disk on another thread.
async fn blocking(
    path: &Path,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| cannot_write(path, &error))
}

/// One process at a time writes to a part; the lock goes with the descriptor.
fn lock(file: &File, path: &Path) -> Result<()> {
    // SAFETY: flock takes no pointer, and the descriptor is open as long as `file` is.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() != ErrorKind::WouldBlock {
        // A file system without locks.
        return Ok(());
    }
    let text = format!("{} is being written by another download", path.display());
    Err(Error { errno: error.raw_os_error(), ..Error::new(crate::error::Kind::Disk, text) })
}

/// The error of a failed write.
pub fn cannot_write(path: &Path, error: &io::Error) -> Error {
    Error {
        errno: error.raw_os_error(),
        ..Error::new(
            crate::error::Kind::Disk,
            format!("cannot write {}: {}", path.display(), describe(error)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            url: "http://h/a?b: c".into(),
            etag: Some("\"x: y\"".into()),
            modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".into()),
            length: Some(100),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let mut done = Ranges::default();
        done.add(0, 10);
        done.add(50, 60);
        let text = State::text(&source(), &done, false);
        let state = State::parse(&text, 60).unwrap();
        assert_eq!(state.source, source());
        assert_eq!(state.done, done);
        assert!(State::parse(&text, 59).is_none(), "the part is shorter than that");
        let mut prefix = Ranges::default();
        prefix.add(0, 10);
        let text = State::text(&source(), &prefix, false);
        assert_eq!(State::parse(&text, 42).unwrap().done.as_slice(), [(0, 42)]);
        let divided = State::text(&source(), &prefix, true);
        assert_eq!(State::parse(&divided, 42).unwrap().done.as_slice(), [(0, 10)]);
        assert!(State::parse(&text, 101).is_none(), "the part is longer than the file");
        for end in 0..text.len() {
            assert!(State::parse(&text[..end], 42).is_none());
        }
    }

    #[test]
    fn validators() {
        assert_eq!(source().validator(), Some("\"x: y\""));
        let weak = Source { etag: Some("W/\"x\"".into()), ..source() };
        assert_eq!(weak.validator(), weak.modified.as_deref());
        assert_eq!(Source { modified: None, ..weak }.validator(), None);
    }
}
