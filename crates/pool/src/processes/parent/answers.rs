//! Waiting for answers, and reading them.

use std::io;
use std::mem;
use std::sync::Arc;

use rondel_reactor::lock::lock;
use rondel_reactor::poller::Event;

use super::super::board::{Listener, State as SlotState};
use super::super::frame::{self, Lease, Lender, Pickle, Sent};
use super::{Answer, Finished, News, Parent, Source, State};

impl<T: Send, B: AsRef<[u8]> + Send> Parent<T, B> {
    /// Waits until there is something for the pool's thread to do.
    ///
    /// # Errors
    /// The operating system's, when polling fails.
    pub fn wait(&self) -> io::Result<News<T, B>> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let mut news = News::default();
            self.publish_heavy(&mut news);
            self.survey(&mut news);
            let timeout = self.time_to_alarm();
            if news.is_empty() {
                match lock(&self.poller).wait(timeout, &mut events) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            let sources = lock(&self.sources);
            for event in events.drain(..) {
                if let Some(Source::Berth(berth)) = sources.get(event.key) {
                    news.ended.push(*berth);
                }
            }
            drop(sources);
            self.collect(Listener::Thread, &mut news);
            self.publish_heavy(&mut news);
            self.enforce_limits();
            self.survey(&mut news);
            if !news.is_empty() {
                return Ok(news);
            }
        }
    }

    /// Collects the answers that are there. For a loop whose bell has rung, and for the pool's thread.
    pub fn collect(&self, listener: Listener, news: &mut News<T, B>) {
        let mut state = lock(&self.state);
        let mut slots = Vec::new();
        self.board().collect(listener, &mut slots);
        for slot in slots {
            if let SlotState::Done(berth) = self.board().state(slot) {
                self.take_answer(&mut state, slot, berth, news);
            }
        }
        let mut refused = Vec::new();
        self.publish_light(&mut state, &mut news.spent, &mut refused);
        let more = !refused.is_empty() || !state.pending.is_empty() && !state.free.is_empty();
        for (id, call, _) in refused {
            state.pending.insert(id, call);
        }
        let over = state.closing && state.outstanding() == 0;
        drop(state);
        if listener == Listener::Loop && (more || over) {
            self.ring();
        }
    }

    pub(super) fn take_answer(
        &self,
        state: &mut State<T, B>,
        slot: usize,
        berth: usize,
        news: &mut News<T, B>,
    ) {
        let Some(call) = state.slots[slot].take() else { return };
        let answer = self.read_answer(slot, berth, &call.sent);
        self.leave(state, slot, &call);
        news.finished.push(Finished { target: call.target, answer });
    }

    pub(super) fn read_answer(&self, slot: usize, berth: usize, sent: &Sent) -> io::Result<Answer> {
        let received = frame::receive(&self.accounts.store, self.board(), slot);
        let mut ledger = self.accounts.ledger();
        for block in &sent.buffers {
            ledger.hand_over(*block, berth);
        }
        let (mut message, whole) = received?;
        for reference in message.references.iter().chain(&whole) {
            ledger.hold(reference.block);
        }
        let returned: Vec<_> = mem::take(&mut message.releases)
            .into_iter()
            .filter(|block| ledger.returned(*block, berth))
            .collect();
        drop(ledger);
        for block in returned {
            self.accounts.reclaim(block);
        }
        let lender: Arc<dyn Lender> = self.accounts.clone();
        if let (Pickle::Block(view, _, lease), Some(whole)) = (&mut message.pickle, whole) {
            *lease = Some(Lease::new(view.clone(), whole, lender.clone()));
        }
        let mut buffers = Vec::with_capacity(message.references.len());
        let mut failure = None;
        for reference in message.references {
            match self.accounts.store.view(&reference) {
                Ok(view) => buffers.push(Lease::new(view, reference, lender.clone())),
                Err(error) => {
                    self.accounts.drop_use(reference.block);
                    failure = Some(error);
                }
            }
        }
        match failure {
            None => Ok(Answer { kind: message.kind, pickle: message.pickle, buffers }),
            Some(error) => Err(error),
        }
    }

    /// What is left to do for the pool's thread: workers to start, the pool's end.
    pub(super) fn survey(&self, news: &mut News<T, B>) {
        let mut state = lock(&self.state);
        let alive = state.berths.iter().flatten().count();
        if state.closing && state.outstanding() == 0 {
            if !state.stopped {
                state.stopped = true;
                self.board().stop(0..state.berths.len());
            }
            news.is_over = alive == 0;
            return;
        }
        let wanted = if state.closing { 0 } else { state.level };
        let wanted = wanted.max(state.outstanding()).min(state.berths.len());
        news.missing = wanted.saturating_sub(alive);
    }
}
