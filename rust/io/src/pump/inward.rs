//! A lane's way in: from its sockets to the device.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ginnel_core::Nanos;
use ginnel_core::header::Header;
use ginnel_core::packet::{LocalPool, Packet};
use ginnel_core::plane::{Datagram, Opened, Path, Receiving};
use rustix::event::epoll;
use rustix::io::Errno;

use crate::inner::Sink;
use crate::pump::rest::Rest;
use crate::pump::{Arrived, Counters, Shared, Table};
use crate::socket::Socket;
use crate::tcp::{StreamReader, TcpSocket};
use crate::udp::{Receiver, UdpSocket, is_fatal};

pub struct Inward {
    shared: Arc<Shared>,
    lane: usize,
    sink: Sink,
    epoll: Arc<OwnedFd>,
    members: BTreeMap<u64, Member>,
    /// The number of the next socket that is not known yet.
    newest: u64,
    receiver: Receiver,
    reader: StreamReader,
    /// Datagrams from other lanes.
    handed: Vec<Arrived>,
    sorted: Sorted,
    rest: Rest,
    counters: Counters,
}

/// A socket as this thread has it.
struct Member {
    socket: Arc<Socket>,
    /// The beginning of a stream's packet whose rest has not come yet.
    partial: Vec<u8>,
    errors_in_a_row: u32,
}

/// What came in, by where it goes.
struct Sorted {
    pool: LocalPool,
    device: Vec<Packet>,
    /// For each lane: inner packets for its peers, and datagrams that are its own to open.
    relayed: Vec<Vec<Packet>>,
    elsewhere: Vec<Vec<Arrived>>,
}

impl Inward {
    /// The way in of this lane, told of its sockets by this epoll.
    pub fn new(shared: &Arc<Shared>, lane: usize, sink: Sink, epoll: &Arc<OwnedFd>) -> Inward {
        let lanes = shared.lanes.len();
        Inward {
            shared: shared.clone(),
            lane,
            sink,
            epoll: epoll.clone(),
            members: BTreeMap::new(),
            newest: 0,
            receiver: Receiver::default(),
            reader: StreamReader::default(),
            handed: Vec::new(),
            sorted: Sorted {
                pool: shared.pool.local(),
                device: Vec::new(),
                relayed: (0..lanes).map(|_| Vec::new()).collect(),
                elsewhere: (0..lanes).map(|_| Vec::new()).collect(),
            },
            rest: Rest::default(),
            counters: Counters::default(),
        }
    }

    /// Follows a change of the table of sockets.
    pub fn follow(&mut self, table: &Table) {
        let removed: Vec<u64> =
            self.members.keys().filter(|number| !table.contains_key(number)).copied().collect();
        removed.into_iter().for_each(|number| self.forget(number));
        // One that failed meanwhile is in the table still, but not among the new ones.
        for (&number, socket) in table.range(self.newest..) {
            self.newest = number + 1;
            if self.shared.plane.lane_of(number) != self.lane {
                continue;
            }
            let data = epoll::EventData::new_u64(number);
            let added = epoll::add(&self.epoll, &**socket, data, epoll::EventFlags::IN);
            let member = Member { socket: socket.clone(), partial: Vec::new(), errors_in_a_row: 0 };
            self.members.insert(number, member);
            if let Err(errno) = added {
                self.fail(number, errno);
            }
        }
    }

    /// Sees to peers that have been silent, and says when it is to do that again.
    pub fn keep_time(&mut self, now: Nanos) -> Option<Nanos> {
        self.shared.plane.receive(self.lane, |receiving| {
            receiving.expire(now);
            receiving.next_timer()
        })
    }

    pub fn publish(&mut self) {
        self.counters.device = self.sink.take_counters();
        self.shared.publish(&mut self.counters);
    }

    /// How long what comes next may wait for company.
    pub fn rest(&mut self, now: Nanos) -> Option<Duration> {
        self.rest.take(now)
    }

    /// A socket has something to say.
    pub fn serve(&mut self, number: u64, flags: epoll::EventFlags) {
        let Some(member) = self.members.get(&number) else { return };
        match &*member.socket.clone() {
            // Shut down in both directions: it would be readable, and empty, for ever.
            Socket::Udp(_) if flags.contains(epoll::EventFlags::HUP) => self.fail(number, Errno::SHUTDOWN),
            Socket::Udp(socket) => self.receive(number, socket),
            Socket::Tcp(socket) => self.receive_stream(number, socket),
        }
    }

    /// What came on other lanes' sockets.
    pub fn receive_handed(&mut self) {
        self.shared.lanes[self.lane].datagrams.take(&mut self.handed);
        if self.handed.is_empty() {
            return;
        }
        let now = self.shared.now();
        let Inward { shared, handed, sorted, .. } = self;
        let anew = shared.plane.receive(self.lane, |receiving| {
            for (Datagram { packet, path }, asked) in handed.drain(..) {
                receiving.asked = asked;
                sorted.open(receiving, &packet, path, now);
                sorted.pool.recycle(packet);
            }
            receiving.asked_anew()
        });
        anew.into_iter().for_each(|(path, asked)| shared.keep_asked(path, asked));
        self.deliver();
    }

    pub fn forget_all(&mut self) {
        let members: Vec<u64> = self.members.keys().copied().collect();
        members.into_iter().for_each(|number| self.forget(number));
    }

    /// One batch from a socket of datagrams.
    fn receive(&mut self, number: u64, socket: &UdpSocket) {
        self.counters.sockets.rx_calls += 1;
        let received = match self.receiver.receive(socket) {
            Ok(received) => received,
            Err(errno) => return self.receive_failed(number, errno),
        };
        if let Some(member) = self.members.get_mut(&number) {
            member.errors_in_a_row = 0;
        }
        let now = self.shared.now();
        let mut bytes = 0;
        let Inward { shared, receiver, sorted, counters, .. } = self;
        let anew = shared.plane.receive(self.lane, |receiving| {
            for message in (0..received).filter_map(|index| receiver.message(index)) {
                let path = Path { socket: number, address: message.source };
                receiving.asked = message.local;
                for datagram in message.datagrams() {
                    counters.sockets.rx_segments += 1;
                    bytes += datagram.len() as u64;
                    match socket.content(datagram) {
                        Some(content) => {
                            if !Header::is_data(content) {
                                socket.note_asked(path.address, message.local);
                            }
                            sorted.open(receiving, content, path, now);
                        }
                        None => counters.sockets.rx_bad_relayed += 1,
                    }
                }
            }
            receiving.asked_anew()
        });
        anew.into_iter().for_each(|(path, asked)| shared.keep_asked(path, asked));
        self.counters.sockets.rx_messages += received as u64;
        self.rest.count(received as u64, bytes);
        self.deliver();
    }

    /// One read from a stream.
    fn receive_stream(&mut self, number: u64, socket: &TcpSocket) {
        let Inward { shared, members, reader, sorted, rest, counters, .. } = self;
        let Some(member) = members.get_mut(&number) else { return };
        counters.sockets.rx_calls += 1;
        match reader.receive(socket, &member.partial) {
            Ok(true) => {}
            Ok(false) => return self.fail(number, Errno::CONNRESET),
            Err(errno) => return self.receive_failed(number, errno),
        }
        counters.sockets.rx_messages += 1;
        rest.count(1, reader.filled() as u64);
        let (now, path) = (shared.now(), Path { socket: number, address: socket.address() });
        let mut stream = reader.packets();
        shared.plane.receive(self.lane, |receiving| {
            for datagram in stream.by_ref() {
                counters.sockets.rx_segments += 1;
                sorted.open(receiving, datagram, path, now);
            }
        });
        member.partial = stream.rest().to_vec();
        let broken = stream.broken;
        self.deliver();
        if broken {
            self.counters.sockets.rx_bad_streams += 1;
            self.fail(number, Errno::PROTO);
        }
    }

    /// Gives everybody what came for them; for what there is no room is dropped, the newest first.
    fn deliver(&mut self) {
        let Inward { shared, sink, sorted, counters, .. } = self;
        if !sorted.device.is_empty() {
            counters.rx_device_dropped += sink.send(&mut sorted.device, &mut sorted.pool);
        }
        for (lane, packets) in shared.lanes.iter().zip(&mut sorted.relayed) {
            lane.packets.give(packets);
            counters.handed_dropped += packets.len() as u64;
            sorted.pool.recycle_all(packets.drain(..));
        }
        for (lane, datagrams) in shared.lanes.iter().zip(&mut sorted.elsewhere) {
            lane.datagrams.give(datagrams);
            counters.handed_dropped += datagrams.len() as u64;
            sorted.pool.recycle_all(datagrams.drain(..).map(|(datagram, _)| datagram.packet));
        }
    }

    fn receive_failed(&mut self, number: u64, errno: Errno) {
        if matches!(errno, Errno::AGAIN | Errno::INTR) {
            return;
        }
        self.counters.sockets.rx_errors += 1;
        let Some(member) = self.members.get_mut(&number) else { return };
        member.errors_in_a_row += 1;
        if member.socket.is_stream() || is_fatal(errno) || member.errors_in_a_row > MAX_ERRORS {
            self.fail(number, errno);
        }
    }

    fn fail(&mut self, number: u64, errno: Errno) {
        self.forget(number);
        self.shared.fail(number, errno);
    }

    fn forget(&mut self, number: u64) {
        let Some(member) = self.members.remove(&number) else { return };
        let _ = epoll::delete(&self.epoll, &*member.socket);
        self.counters.sockets.rx_kernel_dropped += member.socket.kernel_dropped();
    }
}

impl Sorted {
    fn open(&mut self, receiving: &mut Receiving, datagram: &[u8], path: Path, now: Nanos) {
        match receiving.open(datagram, path, now, &mut self.pool) {
            Opened::Packet(packet) => self.device.push(packet),
            Opened::Relayed(lane, packet) => self.relayed[lane].push(packet),
            Opened::Elsewhere(lane) => {
                let packet = self.pool.packet_from(datagram);
                self.elsewhere[lane].push((Datagram { packet, path }, receiving.asked));
            }
            Opened::Nothing => {}
        }
    }
}

/// Errors on receiving without a datagram in between, after which a datagram socket counts as broken: what
/// comes from the network ends by itself, for every such error answers something we sent.
const MAX_ERRORS: u32 = 10_000;
