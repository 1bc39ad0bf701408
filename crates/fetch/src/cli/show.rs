//! What a run shows: bars on a terminal, lines elsewhere, JSON for programs; and what it sums up.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::Output;
use crate::engine::Watch;
use crate::error::{Error, Kind};
use crate::event::{Done, Event, Observer};
use crate::json::quoted;
use crate::locked;

/// Bars for single files, at most.
const MOST_BARS: usize = 12;
/// A file that is done sooner gets no bar.
const WORTH_A_BAR: Duration = Duration::from_millis(300);

/// How the files of a run ended.
#[derive(Debug, Default)]
pub struct Tally {
    /// Downloaded.
    pub downloaded: usize,
    /// There already.
    pub unchanged: usize,
    /// Failed, by kind.
    pub failed: Vec<Kind>,
}

/// Hears of everything and shows it.
pub struct Show {
    output: Output,
    names: Vec<String>,
    started: Instant,
    state: Mutex<State>,
    bars: Option<Bars>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// Of files that come now: their path, for the bars.
    paths: HashMap<usize, String>,
    /// Nobody reads what is shown any more.
    gone: bool,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    files: Mutex<HashMap<usize, ProgressBar>>,
}

impl Show {
    /// For files of these names, mostly URLs.
    pub fn new(output: Output, names: Vec<String>) -> Self {
        let terminal = output == Output::Human && io::stderr().is_terminal();
        let bars = terminal.then(|| Bars::new(names.len()));
        Self { output, names, started: Instant::now(), state: Mutex::default(), bars }
    }

    /// Show how far it is; called every so often.
    pub fn tick(&self, watch: &Watch) {
        if let Some(bars) = &self.bars {
            bars.update(&locked(&self.state), watch);
        } else if self.output == Output::Json {
            let mut line = format!("{{\"event\":\"progress\",\"received\":{}", watch.received());
            line.push_str(",\"active\":[");
            for (number, progress) in watch.active().iter().enumerate() {
                let comma = if number == 0 { "" } else { "," };
                let size = progress.size().map_or("null".to_owned(), |size| size.to_string());
                let (index, present) = (progress.index, progress.present());
                let _ = write!(
                    line,
                    "{comma}{{\"index\":{index},\"present\":{present},\"size\":{size}}}"
                );
            }
            line.push_str("]}");
            self.print(&line);
        }
    }

    /// How often [`Show::tick`] is worth a call.
    pub fn period(&self) -> Duration {
        Duration::from_millis(if self.bars.is_some() { 100 } else { 500 })
    }

    /// Whether whoever reads what is shown has gone.
    pub fn is_unwatched(&self) -> bool {
        locked(&self.state).gone
    }

    /// The last words; `interrupted` by a signal.
    pub fn finish(&self, watch: &Watch, interrupted: bool) -> Tally {
        if let Some(bars) = &self.bars {
            bars.clear();
        }
        let tally = std::mem::take(&mut locked(&self.state).tally);
        let seconds = self.started.elapsed().as_secs_f64();
        let received = watch.received();
        let failed = tally.failed.len();
        match self.output {
            Output::Quiet => {}
            Output::Json => self.print(&format!(
                "{{\"event\":\"summary\",\"files\":{},\"downloaded\":{},\"unchanged\":{},\"failed\":{failed},\
                 \"received\":{received},\"seconds\":{seconds:.3},\"interrupted\":{interrupted}}}",
                self.names.len(), tally.downloaded, tally.unchanged,
            )),
            Output::Human => {
                let mut line = format!("{} of {} downloaded", tally.downloaded, self.names.len());
                if tally.unchanged > 0 {
                    let _ = write!(line, ", {} unchanged", tally.unchanged);
                }
                if failed > 0 {
                    let _ = write!(line, ", {failed} failed");
                }
                #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let rate = HumanBytes((received as f64 / seconds.max(1e-9)) as u64);
                let _ = write!(line, "; {} in {seconds:.2} s ({rate}/s)", HumanBytes(received));
                if interrupted {
                    line.push_str("; interrupted, the same command goes on from here");
                }
                self.print(&line);
            }
        }
        tally
    }

    fn print(&self, line: &str) {
        // A closed standard error is nothing to fail for; a closed standard output ends a JSON run.
        let printed = match (self.output, &self.bars) {
            (Output::Json, _) => writeln!(io::stdout().lock(), "{line}"),
            (_, Some(bars)) => bars.all.println(line),
            _ => writeln!(io::stderr().lock(), "{line}"),
        };
        if printed.is_err() && self.output == Output::Json {
            locked(&self.state).gone = true;
        }
    }

    fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("", String::as_str)
    }

    fn started(&self, index: usize, path: &str, size: Option<u64>, resumed: u64) {
        if self.bars.is_some() {
            locked(&self.state).paths.insert(index, path.to_owned());
        }
        if self.output == Output::Json {
            let size = size.map_or("null".to_owned(), |size| size.to_string());
            self.print(&format!(
                "{{\"event\":\"start\",\"index\":{index},\"url\":{},\"path\":{},\"size\":{size},\
                 \"resumed\":{resumed}}}",
                quoted(self.name(index)),
                quoted(path),
            ));
        }
    }

    fn retrying(&self, index: usize, error: &Error, wait: Duration) {
        match self.output {
            Output::Quiet => {}
            Output::Human => {
                let wait = match wait.as_secs_f64() {
                    0.0 => "now".to_owned(),
                    seconds => format!("in {seconds:.1} s"),
                };
                self.print(&format!("{}: {error}; again {wait}", self.name(index)));
            }
            Output::Json => self.print(&format!(
                "{{\"event\":\"retry\",\"index\":{index},\"url\":{},\"kind\":\"{}\",\"error\":{},\"wait\":{:.3}}}",
                quoted(self.name(index)),
                error.kind.name(),
                quoted(&error.text),
                wait.as_secs_f64(),
            )),
        }
    }

    fn ended_well(&self, index: usize, done: &Done) {
        let count = {
            let mut state = locked(&self.state);
            state.paths.remove(&index);
            let tally = &mut state.tally;
            *(if done.unchanged { &mut tally.unchanged } else { &mut tally.downloaded }) += 1;
            tally.downloaded + tally.unchanged + tally.failed.len()
        };
        match self.output {
            Output::Human if self.bars.is_none() => {
                let what = match (done.unchanged, done.verified) {
                    (true, _) => ", unchanged",
                    (false, true) => ", verified",
                    (false, false) => "",
                };
                let size = HumanBytes(done.size);
                let total = self.names.len();
                self.print(&format!("[{count}/{total}] {} ({size}{what})", done.path.display()));
            }
            Output::Json => self.print(&format!(
                "{{\"event\":\"done\",\"index\":{index},\"url\":{},\"path\":{},\"size\":{},\"received\":{},\
                 \"unchanged\":{},\"verified\":{}}}",
                quoted(self.name(index)),
                quoted(&done.path.to_string_lossy()),
                done.size,
                done.received,
                done.unchanged,
                done.verified,
            )),
            _ => {}
        }
    }

    fn failed(&self, index: usize, error: &Error) {
        {
            let mut state = locked(&self.state);
            state.paths.remove(&index);
            state.tally.failed.push(error.kind);
        }
        let name = self.name(index);
        if self.output == Output::Json {
            let status = match error.kind {
                Kind::Status(status) => status.to_string(),
                _ => "null".to_owned(),
            };
            self.print(&format!(
                "{{\"event\":\"error\",\"index\":{index},\"url\":{},\"kind\":\"{}\",\"status\":{status},\
                 \"error\":{}}}",
                quoted(name),
                error.kind.name(),
                quoted(&error.text),
            ));
        } else {
            self.print(&format!("failed: {name}: {error}"));
        }
    }
}

impl Observer for Show {
    fn event(&self, event: Event) {
        match event {
            Event::Started { index, path, size, resumed } => {
                if self.bars.is_some() || self.output == Output::Json {
                    self.started(index, &path.to_string_lossy(), size, resumed);
                }
            }
            Event::Retrying { index, error, wait } => self.retrying(index, &error, wait),
            Event::Finished { index, result: Ok(done) } => self.ended_well(index, &done),
            Event::Finished { index, result: Err(error) } => self.failed(index, &error),
        }
    }
}

impl Bars {
    fn new(files: usize) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(12));
        let total = all.add(ProgressBar::new(files as u64));
        total.set_style(style("{prefix} {wide_bar} {msg}"));
        Self { all, total, files: Mutex::default() }
    }

    fn update(&self, state: &State, watch: &Watch) {
        let active = watch.active();
        let mut bars = locked(&self.files);
        bars.retain(|index, bar| {
            let stays = active.iter().any(|progress| progress.index == *index);
            if !stays {
                bar.finish_and_clear();
                self.all.remove(bar);
            }
            stays
        });
        // What is still to come of the files that are known, for the time left.
        let mut left = 0;
        for progress in &active {
            left += progress.size().map_or(0, |size| size.saturating_sub(progress.present()));
            let known = bars.contains_key(&progress.index);
            if !known && (bars.len() >= MOST_BARS || progress.started.elapsed() < WORTH_A_BAR) {
                continue;
            }
            let bar = bars.entry(progress.index).or_insert_with(|| {
                let bar = self.all.insert_before(&self.total, ProgressBar::no_length());
                let path = state.paths.get(&progress.index).cloned().unwrap_or_default();
                bar.set_prefix(tail(&path, 32));
                bar.reset_eta();
                bar
            });
            match progress.size() {
                Some(size) if bar.length() != Some(size) => {
                    bar.set_style(style(
                        "{prefix:32} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    ));
                    bar.set_length(size);
                }
                None => bar.set_style(style("{prefix:32} {wide_msg} {bytes} {bytes_per_sec}")),
                Some(_) => {}
            }
            bar.set_position(progress.present());
        }
        let tally = &state.tally;
        let ended = tally.downloaded + tally.unchanged + tally.failed.len();
        let received = watch.received();
        let seconds = self.total.elapsed().as_secs_f64().max(1e-3);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rate = (received as f64 / seconds) as u64;
        let files = self.total.length().unwrap_or(0);
        let waiting = files.saturating_sub((ended + active.len()) as u64);
        let eta = if waiting == 0 && rate > 0 && left > 0 {
            format!(" {} s left", left / rate + 1)
        } else {
            String::new()
        };
        self.total.set_position(ended as u64);
        self.total.set_prefix(format!("{ended}/{files} files"));
        self.total.set_message(format!("{} {}/s{eta}", HumanBytes(received), HumanBytes(rate)));
    }

    fn clear(&self) {
        for bar in locked(&self.files).values() {
            bar.finish_and_clear();
        }
        self.total.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; one that indicatif rejected would only look plainer.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The last characters of a path, as many as fit.
fn tail(path: &str, width: usize) -> String {
    let count = path.chars().count();
    if count <= width {
        return path.to_owned();
    }
    let kept: String = path.chars().skip(count + 1 - width).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_keep_their_end() {
        assert_eq!(tail("short", 8), "short");
        assert_eq!(tail("a/long/päth.txt", 8), "…äth.txt");
    }
}
