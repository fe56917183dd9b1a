//! Datagrams to others' addresses: a source and a destination that speak with each other.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use crate::netstack::clients::{Clients, Slots, Source};
use crate::netstack::counters::Dropped;
use crate::netstack::icmp::Unreachable;
use crate::netstack::slab::Slab;
use crate::netstack::udp::{Outlet, Received};
use crate::{Nanos, SECOND};

/// One source and one destination.
pub struct Association<D> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The headers of the datagram that it began with, for reports about it.
    pub head: Box<[u8]>,
    pub state: State<D>,
    whose: Source,
    heard: Nanos,
    timer: Nanos,
}

/// What has been decided.
pub enum State<D> {
    /// Nothing yet. The first payloads wait.
    Undecided(Vec<Vec<u8>>),
    Joined(D),
    /// Datagrams are answered with this for a while.
    Refused(Unreachable),
}

/// What became of a datagram.
pub enum Taken {
    Passed,
    /// The first of a new association.
    New(u64),
    Refused(Unreachable),
    Lost(Dropped),
}

/// All associations: at most [`MOST`], and [`MOST_EACH`] of a client.
pub struct Associations<D> {
    slab: Slab<Association<D>>,
    ends: HashMap<(SocketAddr, SocketAddr), u64>,
    timers: BTreeSet<(Nanos, u64)>,
    slots: Slots<Source>,
    idle: Nanos,
}

impl<D: Outlet> Associations<D> {
    /// Each ends when nothing has been heard either way for `idle`.
    pub fn new(idle: Nanos) -> Associations<D> {
        let (slab, ends, timers) = (Slab::new(), HashMap::new(), BTreeSet::new());
        Associations { slab, ends, timers, slots: Slots::new(MOST, MOST_EACH), idle }
    }

    pub fn count(&self) -> usize {
        self.slab.count()
    }

    /// Takes a datagram where it belongs. `clients`: who may begin a new association with it; `None`: nobody.
    pub fn receive(
        &mut self,
        now: Nanos,
        datagram: &Received,
        head: &[u8],
        clients: Option<&Clients>,
    ) -> Taken {
        let ends = (datagram.source, datagram.destination);
        let Some(&id) = self.ends.get(&ends) else {
            let Some(clients) = clients else { return Taken::Lost(Dropped::Crowded) };
            return self.begin(now, datagram, head, clients.source(datagram.source.ip()));
        };
        let Some(association) = self.slab.get_mut(id) else { return Taken::Lost(Dropped::Refused) };
        match &mut association.state {
            State::Undecided(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(datagram.payload.to_vec());
                Taken::Passed
            }
            State::Undecided(_) => Taken::Lost(Dropped::DatagramFull),
            State::Refused(why) => Taken::Refused(*why),
            State::Joined(outlet) => {
                association.heard = now;
                let taken = outlet.deliver(datagram.source, datagram.payload);
                if taken { Taken::Passed } else { Taken::Lost(Dropped::DatagramFull) }
            }
        }
    }

    /// Joins an undecided association, and hands on what waited. It comes back where that cannot be;
    /// else returns how many datagrams were lost.
    pub fn join(&mut self, now: Nanos, id: u64, mut outlet: D) -> Result<usize, D> {
        let Some(association) = self.slab.get_mut(id) else { return Err(outlet) };
        let State::Undecided(waiting) = &mut association.state else { return Err(outlet) };
        let waiting = std::mem::take(waiting);
        let source = association.source;
        let lost = waiting.iter().filter(|payload| !outlet.deliver(source, payload)).count();
        association.heard = now;
        association.state = State::Joined(outlet);
        let idle = self.idle;
        self.set_timer(id, now + idle);
        Ok(lost)
    }

    /// Refuses an undecided association. Returns how many datagrams are lost by that.
    pub fn refuse(&mut self, now: Nanos, id: u64, why: Unreachable) -> Option<usize> {
        let association = self.slab.get_mut(id)?;
        let State::Undecided(waiting) = &association.state else { return None };
        let lost = waiting.len();
        association.state = State::Refused(why);
        self.set_timer(id, now + REFUSED);
        Some(lost)
    }

    pub fn get(&self, id: u64) -> Option<&Association<D>> {
        self.slab.get(id)
    }

    pub fn outlet_mut(&mut self, id: u64) -> Option<&mut D> {
        match &mut self.slab.get_mut(id)?.state {
            State::Joined(outlet) => Some(outlet),
            State::Undecided(_) | State::Refused(_) => None,
        }
    }

    /// Something came back for the source.
    pub fn answered(&mut self, now: Nanos, id: u64) {
        if let Some(association) = self.slab.get_mut(id) {
            association.heard = now;
        }
    }

    pub fn remove(&mut self, id: u64) -> Option<Association<D>> {
        let association = self.slab.remove(id)?;
        self.ends.remove(&(association.source, association.destination));
        self.timers.remove(&(association.timer, id));
        self.slots.free(association.whose);
        Some(association)
    }

    pub fn next_timer(&self) -> Option<Nanos> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next association whose time is over.
    pub fn expired(&mut self, now: Nanos) -> Option<u64> {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            let association = self.slab.get(id)?;
            let until = association.heard + self.idle;
            if matches!(association.state, State::Joined(_)) && until > now {
                self.set_timer(id, until);
            } else {
                return Some(id);
            }
        }
        None
    }

    fn begin(&mut self, now: Nanos, datagram: &Received, head: &[u8], whose: Source) -> Taken {
        if !self.slots.take(whose) {
            return Taken::Lost(Dropped::Crowded);
        }
        let (timer, waiting) = (now + UNDECIDED, vec![datagram.payload.to_vec()]);
        let Received { source, destination, .. } = *datagram;
        let (state, head) = (State::Undecided(waiting), head.into());
        let association = Association { source, destination, head, state, whose, heard: now, timer };
        let id = self.slab.insert_with(|_| association);
        self.ends.insert((source, destination), id);
        self.timers.insert((timer, id));
        Taken::New(id)
    }

    fn set_timer(&mut self, id: u64, at: Nanos) {
        if let Some(association) = self.slab.get_mut(id) {
            let set = std::mem::replace(&mut association.timer, at);
            self.timers.remove(&(set, id));
            self.timers.insert((at, id));
        }
    }
}

const MOST: usize = 8192;
const MOST_EACH: usize = 512;
const MOST_WAITING: usize = 4;
const UNDECIDED: Nanos = 30 * SECOND;
const REFUSED: Nanos = 10 * SECOND;
