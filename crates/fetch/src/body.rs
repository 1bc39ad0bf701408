//! A large file's bytes: one connection or several, written as they come.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::HeaderMap;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::checksum::Hasher;
use crate::engine::{Place, Planned, Shared, parse_url};
use crate::error::{Error, Kind, Result};
use crate::event::Progress;
use crate::exchange::Answer;
use crate::job::Segments;
use crate::part::{Part, Sink, Source};
use crate::segments::{Growth, Plan, Segment};
use crate::transfer::{ask_for_range, continues};

/// How often the state is saved and the number of connections is thought about.
const TICK: Duration = Duration::from_millis(250);
/// Ticks over which a rate is measured before it is judged.
const TICKS_PER_LOOK: u32 = 4;

/// Wait as the rate limit demands for bytes that came.
pub async fn pay(shared: &Shared, bytes: usize) {
    if let Some(limiter) = &shared.limiter {
        let wait = limiter.take(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

/// A file being received into its part.
pub struct Body<'a> {
    /// The run.
    pub shared: &'a Arc<Shared>,
    /// The file.
    pub planned: &'a Arc<Planned>,
    /// What others see of it.
    pub progress: &'a Arc<Progress>,
    /// The URL, before redirects.
    pub url: &'a str,
    /// Where it goes.
    pub part: Part,
    /// Sums up what comes in order from the start; gone if it did not all come so.
    pub hasher: Option<Hasher>,
    /// Whether the server gives ranges of it.
    pub divisible: bool,
}

/// What a connection needs for itself.
struct Helper {
    shared: Arc<Shared>,
    planned: Arc<Planned>,
    progress: Arc<Progress>,
    plan: Arc<Plan>,
    sink: Sink,
    source: Source,
    /// Its place among the host's connections; the first one has the file's own.
    _place: Option<Place>,
}

impl Body<'_> {
    /// Receive all that is missing, beginning with an answer that begins with the first of it.
    pub async fn receive(&mut self, answer: Answer<'_>) -> Result<()> {
        let plan = Arc::clone(&self.part.plan);
        let Some(gap) = plan.take_gap() else { return Ok(()) };
        let mut hasher = self.hasher.take();
        let mut hashed = 0;
        let live = plan.begin(gap.0, gap.1);
        let helper = self.helper(None);
        let main = async {
            let received = helper.write(answer, &live.segment, |data| {
                if let Some(hasher) = &mut hasher {
                    hasher.update(data);
                    hashed += data.len() as u64;
                }
            });
            let outcome = received.await;
            drop(live);
            outcome?;
            // What an earlier run left may have more than one gap.
            helper.gaps().await
        };
        let outcome = self.watch(main).await;
        let total = plan.done().total();
        self.hasher = hasher.filter(|_| hashed == total);
        outcome?;
        let whole = self.part.source.length.is_none_or(|length| length == total);
        if plan.has_gap() || !whole {
            return Err(Error::new(Kind::Connection, "the transfer broke off"));
        }
        Ok(())
    }

    /// Drive the first connection and its helpers, save the state and add connections meanwhile.
    async fn watch(&mut self, main: impl Future<Output = Result<()>>) -> Result<()> {
        let mut helpers: JoinSet<Result<()>> = JoinSet::new();
        let mut last_error = None;
        let mut main_done = false;
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = Look::new(self.shared.options.segments, self.progress.received());
        tokio::pin!(main);
        if let Segments::Fixed(count) = self.shared.options.segments {
            self.add_helpers(&mut helpers, count);
        }
        loop {
            tokio::select! {
                outcome = &mut main, if !main_done => {
                    outcome?;
                    main_done = true;
                }
                Some(ended) = helpers.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.kind == Kind::Disk => return Err(error),
                    Ok(Err(error)) => {
                        look.enough = true;
                        last_error = Some(error);
                    }
                    Err(error) => return Err(Error::new(Kind::Protocol, error.to_string())),
                },
                _ = ticks.tick() => {
                    self.part.save();
                    let connections = helpers.len() + usize::from(!main_done);
                    let wanted = look.wanted(connections, self.progress);
                    self.add_helpers(&mut helpers, wanted);
                }
            }
            if main_done && helpers.is_empty() {
                // A gap is left if a helper failed.
                return match last_error {
                    Some(error) if self.part.plan.has_gap() => Err(error),
                    _ => Ok(()),
                };
            }
        }
    }

    /// Have up to `wanted` connections, the first one included.
    fn add_helpers(&mut self, helpers: &mut JoinSet<Result<()>>, wanted: usize) {
        while self.divisible && helpers.len() + 1 < wanted && self.part.plan.has_work() {
            let Some(place) = self.shared.extra_connection(self.planned) else { return };
            self.part.divide();
            let work = self.part.plan.take_gap().or_else(|| self.part.plan.halve());
            if let Some(gap) = work {
                helpers.spawn(self.helper(Some(place)).run(gap));
            }
        }
    }

    fn helper(&self, place: Option<Place>) -> Helper {
        Helper {
            shared: Arc::clone(self.shared),
            planned: Arc::clone(self.planned),
            progress: Arc::clone(self.progress),
            plan: Arc::clone(&self.part.plan),
            sink: self.part.sink(),
            source: self.part.source.clone(),
            _place: place,
        }
    }
}

impl Helper {
    /// Fetch a range, then the gaps there are.
    async fn run(self, gap: (u64, u64)) -> Result<()> {
        self.range(gap).await?;
        self.gaps().await
    }

    async fn gaps(&self) -> Result<()> {
        while let Some(gap) = self.plan.take_gap() {
            self.range(gap).await?;
        }
        Ok(())
    }

    /// Fetch a range with a request of its own.
    async fn range(&self, (start, end): (u64, u64)) -> Result<()> {
        let answer = match self.ask(start, end).await {
            Ok(answer) => answer,
            Err(error) => {
                self.plan.give_back((start, end));
                return Err(error);
            }
        };
        let live = self.plan.begin(start, end);
        self.write(answer, &live.segment, |_| {}).await
    }

    async fn ask(&self, start: u64, end: u64) -> Result<Answer<'_>> {
        let mut extra = HeaderMap::new();
        ask_for_range(&mut extra, start, end, self.source.length, &self.source)?;
        let url = parse_url(&self.source.url)?;
        let (client, headers) = (&self.shared.client, &self.planned.job.headers);
        let answer = client.get(&self.shared.options, &url, headers, &extra).await?;
        match answer.status.as_u16() {
            206 if continues(&answer, &self.source, start) => Ok(answer),
            200 | 206 => Err(Error::new(Kind::Protocol, "the file has changed meanwhile")),
            _ => Err(answer.refusal()),
        }
    }

    /// Write the answer's body until the segment ends, which may come closer meanwhile.
    async fn write(
        &self,
        mut answer: Answer<'_>,
        segment: &Segment,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<()> {
        let options = &self.shared.options;
        let mut pieces = Vec::new();
        while answer.chunks(options, &mut pieces).await? {
            let came = pieces.iter().map(Bytes::len).sum();
            let position = segment.position();
            let room = segment.end().saturating_sub(position);
            let taken = usize::try_from(room).map_or(came, |room| room.min(came));
            cut(&mut pieces, taken);
            self.sink.write(&pieces, position, |written| {
                segment.advance(written);
                self.progress.add(written);
            })?;
            pieces.iter().for_each(|piece| seen(piece));
            pay(&self.shared, came).await;
            if taken < came || position + taken as u64 == segment.end() {
                if answer.is_at_end() {
                    // The connection is as good as new.
                    answer.discard(options).await;
                }
                return Ok(());
            }
        }
        if segment.end() != u64::MAX && segment.position() < segment.end() {
            return Err(Error::new(Kind::Connection, "the transfer broke off"));
        }
        Ok(())
    }
}

/// Keep that many bytes of all.
fn cut(pieces: &mut Vec<Bytes>, mut size: usize) {
    pieces.retain_mut(|piece| {
        piece.truncate(size);
        size -= piece.len();
        !piece.is_empty()
    });
}

/// Looks now and then at how fast it goes.
struct Look {
    segments: Segments,
    growth: Growth,
    ticks: u32,
    at: Instant,
    received: u64,
    target: usize,
    /// A further connection failed; no more are tried.
    enough: bool,
}

impl Look {
    fn new(segments: Segments, received: u64) -> Self {
        let most = match segments {
            Segments::Adaptive(most) | Segments::Fixed(most) => most,
        };
        let growth = Growth::new(most);
        Self { segments, growth, ticks: 0, at: Instant::now(), received, target: 1, enough: false }
    }

    /// How many connections there should be.
    fn wanted(&mut self, connections: usize, progress: &Progress) -> usize {
        if self.enough {
            return 0;
        }
        if let Segments::Fixed(count) = self.segments {
            return count;
        }
        self.ticks += 1;
        if self.ticks >= TICKS_PER_LOOK {
            let received = progress.received();
            #[allow(clippy::cast_precision_loss)]
            let rate = (received - self.received) as f64 / self.at.elapsed().as_secs_f64();
            let left = progress.size().map_or(0, |size| size.saturating_sub(progress.present()));
            #[allow(clippy::cast_precision_loss)]
            if self.growth.wants_more(connections, rate, left as f64) {
                self.target = connections + 1;
            }
            (self.ticks, self.at, self.received) = (0, Instant::now(), received);
        }
        self.target
    }
}
