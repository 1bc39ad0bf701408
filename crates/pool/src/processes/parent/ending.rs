//! Ends other than an answer: workers that die, calls that are withdrawn, killed or run for too long.

use std::time::Duration;

use super::super::board::{self, Listener, SLOTS, State as SlotState};
use super::super::frame::Message;
use super::{Cause, InFlight, Lost, News, Occupant, Parent, State, placed};
use rondel_reactor::lock::lock;

impl<T: Send, B: AsRef<[u8]> + Send> Parent<T, B> {
    /// Deals with the end of a worker. What it had answered before comes with `news`.
    pub fn lost(&self, berth: usize, news: &mut News<T, B>) -> Lost<T> {
        // A worker may have died between noting that it rings and ringing.
        self.collect(Listener::Loop, news);
        self.collect(Listener::Thread, news);
        let mut state = lock(&self.state);
        if let Some(Occupant::Present { process, key }) =
            state.berths[berth].replace(Occupant::Ended)
        {
            // It can only fail by being gone.
            let _ = self.registrar.remove(process.fd());
            lock(&self.sources).remove(key);
        }
        let mut failed = None;
        for slot in 0..SLOTS {
            if state.slots[slot].is_none() {
                continue;
            }
            match self.board().state(slot) {
                // Answered, but it died before it told.
                SlotState::Done(worker) if worker == berth => {
                    self.take_answer(&mut state, slot, berth, news);
                }
                SlotState::Claimed(worker) if worker == berth => {
                    if let Some(call) = self.strike(&mut state, slot) {
                        failed = Some((call.target, call.cause));
                    }
                }
                _ => {}
            }
        }
        let stage = self.board().stage(berth);
        drop(state);
        self.accounts.bury(berth);
        // It may have been woken for a call that it did not come to claim.
        let mut state = lock(&self.state);
        self.board().forget_sleeper(berth);
        if self.board().has_work() {
            self.wake_worker(&mut state);
        }
        drop(state);
        Lost { failed, stage }
    }

    /// Takes a call that will not be answered off the board.
    pub(super) fn strike(&self, state: &mut State<T, B>, slot: usize) -> Option<InFlight<T>> {
        let call = state.slots[slot].take()?;
        for block in &call.sent.buffers {
            self.accounts.drop_use(*block);
        }
        self.leave(state, slot, &call);
        Some(call)
    }

    /// Sends a signal to all workers.
    pub fn signal_all(&self, signal: i32) {
        for occupant in lock(&self.state).berths.iter().flatten() {
            if let Occupant::Present { process, .. } = occupant {
                process.signal(signal);
            }
        }
    }

    pub(super) fn slot_of(state: &State<T, B>, id: u64) -> Option<usize> {
        state.slots.iter().position(|call| call.as_ref().is_some_and(|call| call.id == id))
    }

    /// Whether a worker runs the call.
    #[must_use]
    pub fn is_running(&self, id: u64) -> bool {
        let state = lock(&self.state);
        let slot = Self::slot_of(&state, id);
        slot.is_some_and(|slot| matches!(self.board().state(slot), SlotState::Claimed(_)))
    }

    /// Takes a call back that no worker has begun; None when it has begun, or is at its end.
    pub fn withdraw(&self, id: u64) -> Option<(T, Option<Message<B>>)> {
        let mut state = lock(&self.state);
        let taken = self.withdraw_one(&mut state, id);
        let over = taken.is_some() && state.closing && state.outstanding() == 0;
        drop(state);
        if over {
            self.ring();
        }
        taken
    }

    pub(super) fn withdraw_one(
        &self,
        state: &mut State<T, B>,
        id: u64,
    ) -> Option<(T, Option<Message<B>>)> {
        if let Some(call) = state.pending.remove(&id) {
            state.ends(call.by_loop);
            for reference in placed(&call.message) {
                self.accounts.drop_use(reference.block);
            }
            return Some((call.target, Some(call.message)));
        }
        let slot = Self::slot_of(state, id)?;
        if !self.board().withdraw(slot) {
            return None;
        }
        self.strike(state, slot).map(|call| (call.target, None))
    }

    /// Takes back all calls that no worker has begun.
    pub fn withdraw_all(&self) -> Vec<(T, Option<Message<B>>)> {
        let mut state = lock(&self.state);
        let mut ids: Vec<u64> = state.pending.keys().copied().collect();
        ids.extend(state.slots.iter().flatten().map(|call| call.id));
        let taken = ids.into_iter().filter_map(|id| self.withdraw_one(&mut state, id)).collect();
        drop(state);
        self.ring();
        taken
    }

    /// Kills the worker that runs a call; false when none does.
    pub fn kill(&self, id: u64, cause: Cause) -> bool {
        let mut state = lock(&self.state);
        match Self::slot_of(&state, id) {
            Some(slot) => self.kill_slot(&mut state, slot, cause),
            None => false,
        }
    }

    pub(super) fn kill_slot(&self, state: &mut State<T, B>, slot: usize, cause: Cause) -> bool {
        let Some(berth) = self.board().doom(slot) else { return false };
        if let Some(call) = &mut state.slots[slot] {
            call.cause = cause;
        }
        if let Some(Some(Occupant::Present { process, .. })) = state.berths.get(berth) {
            process.signal(libc::SIGKILL);
        }
        true
    }

    /// When to look at the limits, as a duration; notes it for those who submit.
    pub(super) fn time_to_alarm(&self) -> Option<Duration> {
        let mut state = lock(&self.state);
        state.alarm = None;
        if state.limited == 0 {
            return None;
        }
        let now = board::now();
        let mut alarm = u64::MAX;
        for (slot, call) in state.slots.iter().enumerate() {
            let Some(limit) = call.as_ref().and_then(|call| call.limit) else { continue };
            alarm = alarm.min(self.begun(slot, now).saturating_add(limit));
        }
        state.alarm = Some(alarm);
        // At least a millisecond: the kernel may wake early.
        Some(Duration::from_nanos(alarm.saturating_sub(now)).max(Duration::from_millis(1)))
    }

    /// When a call was begun; a call that was not may be begun now.
    pub(super) fn begun(&self, slot: usize, now: u64) -> u64 {
        match (self.board().state(slot), self.board().since(slot)) {
            (SlotState::Claimed(_), since) if since > 0 => since,
            _ => now,
        }
    }

    pub(super) fn enforce_limits(&self) {
        let mut state = lock(&self.state);
        if state.limited == 0 {
            return;
        }
        let now = board::now();
        for slot in 0..SLOTS {
            let Some(limit) = state.slots[slot].as_ref().and_then(|call| call.limit) else {
                continue;
            };
            let is_doomed =
                state.slots[slot].as_ref().is_some_and(|call| call.cause != Cause::Died);
            if !is_doomed && self.begun(slot, now).saturating_add(limit) <= now {
                self.kill_slot(&mut state, slot, Cause::Limit);
            }
        }
    }
}
