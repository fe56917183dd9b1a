//! A fixed amount of work for two data planes, for tools that count what it costs: `costs WORKLOAD UNITS`.
//!
//! Each unit goes in at the left plane's device, as the kernel would hand it over, crosses a pair of UDP sockets
//! and has come out of the right one's before the next begins, so that the counts are the same each time.
//! The main thread is the kernel's part; of the others the left plane's is the first, the right one's the second.

use std::env;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use ginnel_core::SECOND;
use ginnel_core::cipher::{Cipher, MATERIAL_LEN};
use ginnel_core::device::Kind;
use ginnel_core::format::Format;
use ginnel_core::framing::Framing;
use ginnel_core::offload::{Gso, VnetHeader};
use ginnel_core::packet::Pool;
use ginnel_core::plane::Path;
use ginnel_io::inner::Inner;
use ginnel_io::pump::{Pump, Threads};
use ginnel_io::tun::Tun;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [workload, units] = &words[..] else { return usage() };
    let (Some(unit), Ok(units)) = (unit(workload), units.parse::<u32>()) else { return usage() };
    let (device, left) = party();
    let (far_device, right) = party();
    meet(&left, &right, 1, 2);
    meet(&right, &left, 2, 1);
    crowd(&left, unit.peers);
    crowd(&right, unit.peers);
    let mut buffer = vec![0; 1 << 17];
    for _ in 0..units {
        rustix::io::write(&device, &unit.bytes).expect("the left plane's device takes it");
        let mut payload = 0;
        while payload < unit.payload {
            let count =
                rustix::io::read(&far_device, &mut buffer[..]).expect("the right plane's device has it");
            payload += count - VnetHeader::LEN - unit.headers;
        }
    }
    println!("{}", u64::from(units) * unit.packets);
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("costs bulk|single|bulk-crowd|single-crowd UNITS");
    ExitCode::FAILURE
}

/// What the kernel hands over at once: its bytes, the length of its IP and transport headers and of the payload,
/// and how many packets it makes.
struct Unit {
    bytes: Vec<u8>,
    headers: usize,
    payload: usize,
    packets: u64,
    /// Each plane's, all but one of them idle.
    peers: u32,
}

fn unit(workload: &str) -> Option<Unit> {
    match workload {
        "bulk" => Some(tcp(46)),
        "single" => Some(udp(64)),
        "bulk-crowd" => Some(Unit { peers: 1_000, ..tcp(46) }),
        "single-crowd" => Some(Unit { peers: 1_000, ..udp(64) }),
        _ => None,
    }
}

/// A TCP segment that is to be cut.
fn tcp(packets: usize) -> Unit {
    let payload = packets * SEGMENT;
    let header = VnetHeader {
        needs_checksum: true,
        gso: Gso::Tcp4,
        header_len: 40,
        gso_size: SEGMENT as u16,
        checksum_start: 20,
        checksum_offset: 16,
    };
    let mut bytes = header.emit().to_vec();
    bytes.extend(ipv4(6, 20 + payload));
    bytes.extend([0x30, 0x39, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(vec![0x5a; payload]);
    Unit { bytes, headers: 40, payload, packets: packets as u64, peers: 1 }
}

fn udp(payload: usize) -> Unit {
    let mut bytes = VnetHeader::default().emit().to_vec();
    bytes.extend(ipv4(17, 8 + payload));
    bytes.extend([0x30, 0x39, 0x14, 0x51, 0, 8 + payload as u8, 0, 0]);
    bytes.extend(vec![0x5a; payload]);
    Unit { bytes, headers: 28, payload, packets: 1, peers: 1 }
}

fn ipv4(protocol: u8, len: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 8, 0, 2, 10, 8, 0, 1];
    header[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
    let sum: u32 = header.chunks(2).map(|pair| (u32::from(pair[0]) << 8) | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum + (sum >> 16)) as u16).to_be_bytes());
    header
}

struct Party {
    pump: Pump,
    socket: u64,
    address: SocketAddr,
}

/// A plane, and the kernel's end of its device: a pair of sockets that keep messages apart, as a device does.
fn party() -> (OwnedFd, Party) {
    let (kernels, ours) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
    for end in [&kernels, &ours] {
        sockopt::set_socket_send_buffer_size(end, 1 << 20).expect("room for a long packet");
    }
    let observers = Arc::default();
    let tun = Tun::adopt(ours.into_raw_fd(), Kind::Tun, true, true, &observers).expect("a descriptor");
    let pump = Pump::start(Inner::Kernel(vec![tun]), Threads { lanes: 1, apart: false }, Pool::new(8192))
        .expect("a thread");
    let bound = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = bound.local_addr().expect("a port");
    let socket = pump.add_udp(bound.into_raw_fd(), Vec::new()).expect("a socket");
    (kernels, Party { pump, socket, address })
}

fn meet(one: &Party, other: &Party, encrypt: u8, decrypt: u8) {
    let path = Path { socket: one.socket, address: other.address };
    let (encrypt, decrypt) = ([encrypt; MATERIAL_LEN], [decrypt; MATERIAL_LEN]);
    one.pump.command(|plane, now| {
        plane.new_peer(1, path, Some(1), now).expect("a new peer");
        plane.new_key(1, 1, 0, Format::Aead(Cipher::Aes256Gcm), &encrypt, &decrypt).expect("a new key");
        plane.swap(1, 1).expect("the key");
        plane.set_routes(1, &["10.8.0.0/24".parse().expect("a prefix")], None).expect("the peer");
    });
}

/// Peers that have been let in and say nothing, as a server has them, until there are so many in all. One command
/// makes them, for how often many would wake the plane's thread is chance.
fn crowd(party: &Party, peers: u32) {
    party.pump.command(|plane, now| {
        for peer in 2..=peers {
            let path =
                Path { socket: party.socket, address: SocketAddr::from(([127, 0, 0, 2], peer as u16)) };
            let key = [peer as u8; MATERIAL_LEN];
            let inner = format!("10.9.{}.{}", peer >> 8, peer & 0xff).parse().expect("an address");
            plane.new_peer(peer, path, Some(peer), now).expect("a new peer");
            plane.new_key(peer, 1, 0, Format::Aead(Cipher::Aes256Gcm), &key, &key).expect("a new key");
            plane.swap(peer, 1).expect("the key");
            plane.set_peer(peer, 3_600 * SECOND, 7_200 * SECOND, 0, Framing::None, now).expect("the peer");
            plane.set_routes(peer, &[inner], Some(&[inner])).expect("the peer");
        }
    });
}

/// What fits a device's 1,500 bytes once OpenVPN has clamped it.
const SEGMENT: usize = 1_356;
