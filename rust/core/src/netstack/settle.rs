//! What becomes of a flow after something happened to it.

use crate::Nanos;
use crate::netstack::clients::Source;
use crate::netstack::counters::Dropped;
use crate::netstack::flows::{FlowId, Stage};
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::Tuple;
use crate::netstack::tcp::{Phase, Transport};
use crate::netstack::udp::Outlet;
use crate::netstack::{Event, Failure, Settled, Stack};

impl<A, D: Outlet> Stack<A, D> {
    /// Sends what a flow has to send, at most [`BURST`] packets, and finds out what has become of it.
    /// `None` for one that is gone. The end of a connection that the owner knew of is an event.
    pub fn settle(&mut self, now: Nanos, id: FlowId, out: &mut Outbox) -> Option<Settled<A>> {
        if let Some(failure) = self.verdict(now, id, out)? {
            return Some(self.end(id, Some(failure)));
        }
        let flow = self.flows.get_mut(id)?;
        let mut emitted = 0;
        while flow.listed && emitted < BURST && flow.transport.output(now, out) {
            emitted += 1;
        }
        let (segments, retransmits) = flow.transport.take_counts();
        self.counters.segments_sent += segments;
        self.counters.retransmits += retransmits;
        let phase = flow.transport.phase();
        if phase == Phase::Lingering
            && flow.listed
            && let Some(remains) = flow.transport.remains()
        {
            let tuple = flow.tuple;
            self.flows.unlist(id);
            if self.time_wait.insert(now, tuple, remains) {
                self.counters.drop(Dropped::TimeWait);
            }
        }
        self.announce(id, phase);
        let flow = self.flows.get_mut(id)?;
        let done = phase == Phase::Gone || phase == Phase::Lingering && !flow.listed;
        if done && flow.transport.is_drained() {
            return Some(self.end(id, None));
        }
        if phase == Phase::Gone && !flow.transport.has_peer_finished() {
            return Some(self.end(id, Some(Failure::Reset)));
        }
        if done {
            // Only what came in is left, and waits for its reader.
            self.flows.unlist(id);
            return Some(Settled::Alive { more: false });
        }
        let more = emitted == BURST;
        let patience = flow.patience(now);
        let deadline = flow.transport.deadline(now);
        if more {
            self.flows.touch(id);
        } else if deadline.is_some_and(|at| at <= now) && !out.has_room() {
            if !std::mem::replace(&mut flow.waits_for_room, true) {
                self.waiting_for_room.push_back(id);
            }
        } else {
            let deadline = deadline.map(|at| at.max(now + LEAST_WAIT));
            self.flows.set_timer(id, [deadline, patience].into_iter().flatten().min());
        }
        Some(Settled::Alive { more })
    }

    /// Why a flow has to end before it sends anything more. `None` for one that is gone already.
    fn verdict(&mut self, now: Nanos, id: FlowId, out: &mut Outbox) -> Option<Option<Failure>> {
        let flow = self.flows.get_mut(id)?;
        if flow.was_reset {
            let connecting = matches!(flow.stage, Stage::Connecting | Stage::Admitted);
            return Some(Some(if connecting { Failure::Refused } else { Failure::Reset }));
        }
        if flow.captured.is_none() && !self.addresses.contains(flow.tuple.local.ip()) {
            return Some(Some(Failure::AddressGone));
        }
        let orphan = match flow.stage {
            Stage::Accepting(listener) | Stage::Accepted(listener) => self.listeners.get(listener).is_none(),
            Stage::Connecting | Stage::Admitted | Stage::Established => false,
        };
        let silent = flow.patience(now).is_some_and(|at| at <= now);
        if orphan || silent {
            flow.transport.reset(now, out);
            return Some(Some(if silent { Failure::TimedOut } else { Failure::Reset }));
        }
        Some(None)
    }

    /// Tells the owner of a flow that has opened.
    fn announce(&mut self, id: FlowId, phase: Phase) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let opened = matches!(phase, Phase::Open | Phase::Lingering);
        match flow.stage {
            Stage::Connecting | Stage::Admitted if opened => {
                let stage = std::mem::replace(&mut flow.stage, Stage::Established);
                let (captured, local) = (flow.captured, flow.tuple.local);
                self.events.push(Event::Connected { flow: id, local });
                self.leave(stage, captured);
            }
            Stage::Accepting(listener) if opened => {
                flow.stage = Stage::Accepted(listener);
                let Tuple { local, remote } = flow.tuple;
                self.events.push(Event::Accepted { listener, flow: id, remote, local });
                self.flows.opened(id);
            }
            _ => {}
        }
    }

    pub(super) fn end(&mut self, id: FlowId, failure: Option<Failure>) -> Settled<A> {
        match self.flows.get_mut(id).map(|flow| flow.stage) {
            Some(Stage::Connecting | Stage::Admitted) => {
                let failure = failure.unwrap_or(Failure::Refused);
                self.events.push(Event::Failed { flow: id, failure });
            }
            Some(Stage::Accepted(_) | Stage::Established) => {
                self.events.push(Event::Closed { flow: id, failure });
            }
            Some(Stage::Accepting(_)) | None => {}
        }
        Settled::Over { failure, attachment: self.forget(id) }
    }

    pub(super) fn forget(&mut self, id: FlowId) -> Option<A> {
        let flow = self.flows.remove(id)?;
        self.leave(flow.stage, flow.captured);
        flow.attachment
    }

    /// A flow is past this stage: it counts no longer where it did.
    pub(super) fn leave(&mut self, stage: Stage, captured: Option<Source>) {
        match stage {
            Stage::Accepting(listener) | Stage::Accepted(listener) => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.pending -= 1;
                }
            }
            Stage::Admitted => {
                if let (Some(capture), Some(source)) = (&mut self.capture, captured) {
                    capture.arrivals.opened(source);
                }
            }
            Stage::Connecting | Stage::Established => {}
        }
    }
}

/// Packets that one flow sends before another has its turn.
const BURST: usize = 64;
/// How soon a timer may fire: one that is due without anything to do must not turn the loop.
const LEAST_WAIT: Nanos = 1_000_000;
