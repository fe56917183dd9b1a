//! The connections: by number, by tuple, by deadline. What is idle is never looked at.

use std::collections::{BTreeSet, VecDeque};

use foldhash::{HashMap, HashMapExt};

use crate::netstack::clients::Source;
use crate::netstack::segment::Tuple;
use crate::netstack::slab::Slab;
use crate::netstack::tcp::{Phase, Transport};
use crate::{Nanos, SECOND};

/// The number of a connection.
pub type FlowId = u64;

/// How a connection came about, until both sides know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    /// For this listener, and not yet given to it.
    Accepting(u64),
    /// Given to this listener's owner, who has not attached it yet.
    Accepted(u64),
    /// To another's address, and not open yet.
    Admitted,
    Established,
}

/// One connection with what the owner joined it to.
pub struct Flow<T, A> {
    pub tuple: Tuple,
    pub transport: T,
    pub attachment: Option<A>,
    pub(super) stage: Stage,
    /// Whether segments still find the flow by its tuple.
    pub(super) listed: bool,
    pub(super) was_reset: bool,
    /// Whose it is, if its own end has another's address.
    pub(super) captured: Option<Source>,
    /// When something came in, or when the peer began to owe us something.
    pub(super) heard: Nanos,
    pub(super) waiting: bool,
    pub(super) waits_for_room: bool,
    timer: Option<Nanos>,
    touched: bool,
}

impl<T: Transport, A> Flow<T, A> {
    pub(super) fn new(tuple: Tuple, transport: T, stage: Stage, now: Nanos) -> Flow<T, A> {
        Flow {
            tuple,
            transport,
            attachment: None,
            stage,
            listed: true,
            was_reset: false,
            captured: None,
            heard: now,
            waiting: false,
            waits_for_room: false,
            timer: None,
            touched: false,
        }
    }

    /// When the peer has been silent for too long: if it owes us anything, or for another's address, at all.
    pub(super) fn patience(&mut self, now: Nanos) -> Option<Nanos> {
        let waits = self.transport.is_waiting();
        if waits && !self.waiting {
            self.heard = now;
        }
        self.waiting = waits;
        let limit = match self.transport.phase() {
            Phase::Connecting => CONNECT_TIMEOUT,
            Phase::Accepting => ACCEPT_TIMEOUT,
            _ => SILENCE_TIMEOUT,
        };
        match waits {
            true => Some(self.heard + limit),
            false => self.captured.map(|_| self.heard + CAPTURED_IDLE),
        }
    }
}

/// All connections of a stack.
pub struct Flows<T, A> {
    // Boxed: the table of slots would otherwise grow by a kilobyte a slot and never shrink.
    slab: Slab<Box<Flow<T, A>>>,
    tuples: HashMap<Tuple, FlowId>,
    timers: BTreeSet<(Nanos, FlowId)>,
    touched: VecDeque<FlowId>,
    half_open: VecDeque<FlowId>,
}

impl<T: Transport, A> Flows<T, A> {
    pub fn new() -> Flows<T, A> {
        Flows {
            slab: Slab::new(),
            tuples: HashMap::new(),
            timers: BTreeSet::new(),
            touched: VecDeque::new(),
            half_open: VecDeque::new(),
        }
    }

    pub fn count(&self) -> usize {
        self.slab.count()
    }

    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<T, A>> {
        self.slab.get_mut(id).map(|flow| &mut **flow)
    }

    pub fn find(&self, tuple: &Tuple) -> Option<FlowId> {
        self.tuples.get(tuple).copied()
    }

    /// Adds a flow, which is touched at once.
    pub fn insert(&mut self, flow: Flow<T, A>) -> FlowId {
        let tuple = flow.tuple;
        let accepting = matches!(flow.stage, Stage::Accepting(_));
        let id = self.slab.insert_with(|_| Box::new(flow));
        self.tuples.insert(tuple, id);
        if accepting {
            self.half_open.push_back(id);
        }
        self.touch(id);
        id
    }

    pub fn remove(&mut self, id: FlowId) -> Option<Box<Flow<T, A>>> {
        self.unlist(id);
        let flow = self.slab.remove(id)?;
        if let Some(at) = flow.timer {
            self.timers.remove(&(at, id));
        }
        if matches!(flow.stage, Stage::Accepting(_)) {
            self.half_open.retain(|other| *other != id);
        }
        Some(flow)
    }

    /// From now on segments with the flow's tuple do not find it.
    pub fn unlist(&mut self, id: FlowId) {
        if let Some(flow) = self.slab.get_mut(id)
            && std::mem::take(&mut flow.listed)
        {
            self.tuples.remove(&flow.tuple);
        }
    }

    /// Marks a flow for [`Flows::next_touched`].
    pub fn touch(&mut self, id: FlowId) {
        if let Some(flow) = self.slab.get_mut(id)
            && !std::mem::replace(&mut flow.touched, true)
        {
            self.touched.push_back(id);
        }
    }

    /// The next flow that something happened to.
    pub fn next_touched(&mut self) -> Option<FlowId> {
        while let Some(id) = self.touched.pop_front() {
            if let Some(flow) = self.slab.get_mut(id) {
                flow.touched = false;
                return Some(id);
            }
        }
        None
    }

    pub fn touched_len(&self) -> usize {
        self.touched.len()
    }

    /// Sets when the flow is touched next if nothing else happens.
    ///
    /// An earlier time that is set already is left: the flow is looked at for nothing once, which
    /// costs less than moving the timer with every segment.
    pub fn set_timer(&mut self, id: FlowId, at: Option<Nanos>) {
        let (Some(flow), Some(at)) = (self.slab.get_mut(id), at) else { return };
        if flow.timer.is_some_and(|set| set <= at) {
            return;
        }
        if let Some(set) = flow.timer.replace(at) {
            self.timers.remove(&(set, id));
        }
        self.timers.insert((at, id));
    }

    pub fn next_timer(&self) -> Option<Nanos> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Touches the flows whose time has come.
    pub fn expire(&mut self, now: Nanos) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(flow) = self.slab.get_mut(id) {
                flow.timer = None;
            }
            self.touch(id);
        }
    }

    /// Takes a flow out of those half open.
    pub fn opened(&mut self, id: FlowId) {
        self.half_open.retain(|other| *other != id);
    }

    /// The oldest half-open flow, if there are more than there may be.
    pub fn crowded_out(&self) -> Option<FlowId> {
        if self.half_open.len() >= MOST_HALF_OPEN { self.half_open.front().copied() } else { None }
    }

    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// The flows for which `predicate` holds.
    pub fn select(&self, predicate: impl Fn(&Flow<T, A>) -> bool) -> Vec<FlowId> {
        self.slab.iter().filter(|(_, flow)| predicate(flow)).map(|(id, _)| id).collect()
    }
}

impl<T: Transport, A> Default for Flows<T, A> {
    fn default() -> Flows<T, A> {
        Flows::new()
    }
}

const MOST_HALF_OPEN: usize = 128;
const CONNECT_TIMEOUT: Nanos = 60 * SECOND;
/// What an address translator grants a connection at least (RFC 5382, REQ-5).
const CAPTURED_IDLE: Nanos = (2 * 60 + 4) * 60 * SECOND;
const ACCEPT_TIMEOUT: Nanos = 20 * SECOND;
const SILENCE_TIMEOUT: Nanos = 300 * SECOND;
