//! A stack's datagrams: from the sockets of programs to hosts, and from the sockets that stand for hosts back.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use ginnel_core::Nanos;
use ginnel_core::netstack::Failure;
use ginnel_core::netstack::address::unmapped;
use ginnel_core::netstack::counters::Dropped;
use ginnel_core::netstack::icmp::Unreachable;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::rounds::Loop;
use crate::splice::{Datagrams, HEADER, Incoming};

impl Loop {
    pub(super) fn send_datagrams(&mut self, now: Nanos) {
        for _ in 0..self.sending.len() {
            let Some(token) = self.sending.pop_front() else { break };
            let mut turn = 0;
            let more = loop {
                if turn == DATAGRAM_TURN || !self.out.has_room() {
                    break true;
                }
                let sent = match token & DATAGRAM {
                    0 => self.answer(now, token & !ASSOCIATION),
                    _ => self.send_datagram(token & !DATAGRAM),
                };
                if !sent {
                    break false;
                }
                turn += 1;
            };
            if more {
                self.sending.push_back(token);
            } else {
                self.is_sending.remove(&token);
            }
        }
    }

    /// Sends one datagram of a program's. `false` when there is none.
    pub(super) fn send_datagram(&mut self, id: u64) -> bool {
        let Some(messages) = self.stack.datagram_mut(id) else { return false };
        let count = match messages.receive(&mut self.message) {
            Incoming::Message(count) => count,
            Incoming::Nothing => return false,
            Incoming::Ended | Incoming::Refused => {
                self.stack.close_datagram(id);
                return false;
            }
        };
        let message = &self.message[..count];
        let Some((header, payload)) = message.split_first_chunk::<HEADER>() else {
            self.stack.count(Dropped::Unsendable);
            return true;
        };
        let (address, port) = header.split_first_chunk().expect("16 of 18 bytes");
        let remote = SocketAddr::new(unmapped(*address), u16::from_be_bytes([port[0], port[1]]));
        self.stack.send_datagram(id, remote, payload, &mut self.out);
        true
    }

    /// Sends one datagram of the host's back to who is associated with it. `false` when there is none.
    fn answer(&mut self, now: Nanos, id: u64) -> bool {
        let Some(socket) = self.stack.association_mut(id) else { return false };
        match socket.receive(&mut self.message) {
            Incoming::Message(count) => {
                self.stack.answer_association(now, id, &self.message[..count], &mut self.out);
                true
            }
            Incoming::Nothing => false,
            Incoming::Refused => {
                self.stack.report_association(now, id, Unreachable::Port, &mut self.out);
                true
            }
            Incoming::Ended => {
                self.stack.close_association(id);
                false
            }
        }
    }

    pub(super) fn note_sending(&mut self, token: u64) {
        if self.is_sending.insert(token) {
            self.sending.push_back(token);
        }
    }

    pub(super) fn join_association(&mut self, id: u64, socket: OwnedFd) -> Result<(), Failure> {
        let now = self.now();
        self.stack.join_association(now, id, Datagrams::Connected(socket)).map_err(|_| Failure::NoSuch)?;
        if let Some(socket) = self.stack.association_mut(id)
            && epoll::add(
                &*self.epoll,
                &*socket,
                EventData::new_u64(id | ASSOCIATION),
                EventFlags::IN | EventFlags::ET,
            )
            .is_err()
        {
            self.stack.close_association(id);
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }

    pub(super) fn open_datagram(
        &mut self,
        host: Option<IpAddr>,
        port: u16,
        socket: OwnedFd,
    ) -> Result<(u64, u16), Failure> {
        let (id, port) = self.stack.open_datagram(host, port, Datagrams::Messages(socket))?;
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        if let Some(messages) = self.stack.datagram_mut(id)
            && epoll::add(&*self.epoll, &*messages, EventData::new_u64(id | DATAGRAM), flags).is_err()
        {
            self.stack.close_datagram(id);
            return Err(Failure::NoBuffers);
        }
        Ok((id, port))
    }
}

const DATAGRAM_TURN: usize = 64;
pub const LONGEST_DATAGRAM: usize = 65_535;
/// In the token of a UDP port.
pub const DATAGRAM: u64 = 1 << 63;
/// In the token of an association.
pub const ASSOCIATION: u64 = 1 << 62;
