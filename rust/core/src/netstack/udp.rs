//! UDP: ports, and datagrams in and out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, UDP_HEADER_LEN, UdpPacket};

use crate::netstack::counters::Dropped;
use crate::netstack::ip::{self, Header};
use crate::netstack::outbox::Outbox;
use crate::netstack::slab::Slab;

/// Where received datagrams go.
pub trait Outlet {
    /// Hands a datagram on. `false` when it was not taken, and is lost.
    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool;
}

/// A received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: &'a [u8],
}

/// Reads and checks a received datagram.
pub fn parse<'a>(header: &Header, packet: &'a [u8]) -> Result<Received<'a>, Dropped> {
    let udp = UdpPacket::new_checked(&packet[header.payload.clone()]).map_err(|_| Dropped::Malformed)?;
    // Over IPv6 there is always a checksum (RFC 8200, 8.1).
    let unsummed = udp.checksum() == 0 && header.source.is_ipv6();
    if unsummed || !udp.verify_checksum(&header.destination.into(), &header.source.into()) {
        return Err(Dropped::Checksum);
    }
    if udp.src_port() == 0 || udp.dst_port() == 0 {
        return Err(Dropped::Malformed);
    }
    Ok(Received {
        source: SocketAddr::new(header.source, udp.src_port()),
        destination: SocketAddr::new(header.destination, udp.dst_port()),
        payload: udp.payload(),
    })
}

/// A bound port with what its datagrams go to.
pub struct Datagram<D> {
    /// The address it is bound to; `None` for all.
    pub host: Option<IpAddr>,
    pub port: u16,
    pub outlet: D,
}

/// The bound ports.
pub struct Ports<D> {
    slab: Slab<Datagram<D>>,
    bound: HashMap<(Option<IpAddr>, u16), u64>,
}

impl<D: Outlet> Ports<D> {
    pub fn new() -> Ports<D> {
        Ports { slab: Slab::new(), bound: HashMap::new() }
    }

    pub fn count(&self) -> usize {
        self.slab.count()
    }

    pub fn is_bound(&self, host: Option<IpAddr>, port: u16) -> bool {
        self.bound.contains_key(&(host, port))
    }

    pub fn bind(&mut self, host: Option<IpAddr>, port: u16, outlet: D) -> u64 {
        let id = self.slab.insert_with(|_| Datagram { host, port, outlet });
        self.bound.insert((host, port), id);
        id
    }

    pub fn close(&mut self, id: u64) -> Option<Datagram<D>> {
        let datagram = self.slab.remove(id)?;
        self.bound.remove(&(datagram.host, datagram.port));
        Some(datagram)
    }

    pub fn get(&self, id: u64) -> Option<&Datagram<D>> {
        self.slab.get(id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Datagram<D>> {
        self.slab.get_mut(id)
    }

    /// Takes a received datagram to its port.
    pub fn receive(&mut self, datagram: &Received) -> Result<(), Dropped> {
        let (host, port) = (datagram.destination.ip(), datagram.destination.port());
        let exact = self.bound.get(&(Some(host), port));
        let id = exact.or_else(|| self.bound.get(&(None, port))).ok_or(Dropped::NoPort)?;
        let bound = self.slab.get_mut(*id).ok_or(Dropped::NoPort)?;
        let taken = bound.outlet.deliver(datagram.source, datagram.payload);
        if taken { Ok(()) } else { Err(Dropped::DatagramFull) }
    }
}

impl<D: Outlet> Default for Ports<D> {
    fn default() -> Ports<D> {
        Ports::new()
    }
}

/// Emits one datagram, in pieces where the MTU asks for them, or refuses one that is longer than any.
pub fn emit(
    out: &mut Outbox,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    (mtu, identification): (usize, u32),
) -> Result<(), Dropped> {
    let len = UDP_HEADER_LEN + payload.len();
    let write = |buffer: &mut [u8]| {
        let mut udp = UdpPacket::new_unchecked(buffer);
        udp.set_src_port(source.port());
        udp.set_dst_port(destination.port());
        udp.set_len(len as u16);
        udp.payload_mut().copy_from_slice(payload);
        udp.fill_checksum(&source.ip().into(), &destination.ip().into());
    };
    let whole = ip::header_len(destination.ip()) + len;
    if whole <= mtu {
        ip::emit(out, source.ip(), destination.ip(), IpProtocol::Udp, len, write);
        return Ok(());
    }
    if whole > LONGEST_PACKET {
        return Err(Dropped::Unsendable);
    }
    let mut datagram = vec![0; len];
    write(&mut datagram);
    let ends = (source.ip(), destination.ip());
    ip::emit_payload(out, ends, IpProtocol::Udp, &datagram, (mtu, identification));
    Ok(())
}

const LONGEST_PACKET: usize = 65_535;
