//! Two pumps on loopback sockets.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;
use std::thread;

use ginnel_core::cipher::{Cipher, MATERIAL_LEN};
use ginnel_core::device::{Device, End, Kind, Side};
use ginnel_core::format::Format;
use ginnel_core::packet::Pool;
use ginnel_core::plane::{Event, Path};
use ginnel_core::queue::Wake;
use ginnel_io::inner::Inner;
use ginnel_io::pump::{Pump, Threads};
use rustix::event::{PollFd, PollFlags, poll};

struct Party {
    pump: Pump,
    stack: End,
    pool: Arc<Pool>,
    address: SocketAddr,
    socket: u64,
}

const ONE: Threads = Threads { lanes: 1, apart: false };
const FOUR: Threads = Threads { lanes: 2, apart: true };

impl Party {
    fn new(capacity: usize, threads: Threads) -> Party {
        Party::at("127.0.0.1:0", capacity, threads)
    }

    fn at(bound: &str, capacity: usize, threads: Threads) -> Party {
        let pool = Pool::new(8192);
        let device = Device::new(Kind::Tun, 1500, capacity);
        let stack = device.attach(Side::Interface).unwrap();
        device.set_up(true);
        let pump =
            Pump::start(Inner::memory(device.attach(Side::Application).unwrap()), threads, pool.clone())
                .unwrap();
        let bound = UdpSocket::bind(bound).unwrap();
        let address = bound.local_addr().unwrap();
        let socket = pump.add_udp(bound.into_raw_fd(), Vec::new()).unwrap();
        Party { pump, stack, pool, address, socket }
    }

    fn meet(&self, other: &Party, encrypt: u8, decrypt: u8) {
        let path = Path { socket: self.socket, address: other.address };
        let (encrypt, decrypt) = ([encrypt; MATERIAL_LEN], [decrypt; MATERIAL_LEN]);
        self.pump.command(|plane, now| {
            plane.new_peer(1, path, Some(1), now).unwrap();
            plane.new_key(1, 1, 0, Format::Aead(Cipher::Aes256Gcm), &encrypt, &decrypt).unwrap();
            plane.swap(1, 1).unwrap();
        });
    }

    fn count(&self, name: &str) -> u64 {
        self.pump.statistics().iter().find(|(known, _)| *known == name).unwrap().1
    }
}

fn pair(capacity: usize, threads: Threads) -> (Party, Party) {
    let (left, right) = (Party::new(capacity, threads), Party::new(capacity, threads));
    left.meet(&right, 1, 2);
    right.meet(&left, 2, 1);
    (left, right)
}

/// Fails as a bug in the packet path would: on one of the pump's threads, once.
struct Fault;

impl Wake for Fault {
    fn wake(&self) {
        let is_ours = thread::current().name().is_some_and(|name| name.starts_with("ginnel-data"));
        assert!(!is_ours || thread::panicking(), "a fault on purpose");
    }
}

#[test]
fn a_panic_on_a_thread_closes_the_sockets_and_hangs_nobody() {
    [ONE, FOUR].into_iter().for_each(a_panic);
}

fn a_panic(threads: Threads) {
    let (left, right) = pair(10, threads);
    right.stack.incoming().set_reader(Some(Arc::new(Fault)));
    left.stack.send(&mut vec![left.pool.local().packet_from(&[0x45; 40])]).unwrap();
    poll(&mut [PollFd::new(&right.pump.events_descriptor(), PollFlags::IN)], None).unwrap();
    let path = Path { socket: right.socket, address: right.address };
    assert_eq!(right.pump.events(), [Event::Closed { path, errno: libc::EIO }]);
    let spare = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(right.pump.add_udp(spare.as_raw_fd(), Vec::new()).is_err());
    assert!(UdpSocket::bind(right.address).is_ok(), "its port is free again");
    right.pump.send_control(b"x", path).unwrap();
    assert_eq!(right.count("tx_closed"), 1);
    right.pump.close();
}

/// A socket of every address of ours, a peer that wrote to one of them once, and many strangers since: as many as are
/// remembered, each from an address of its own.
#[test]
fn a_peer_is_answered_from_where_it_wrote_to_whoever_else_has_written_since() {
    let (mut left, right) = (Party::at("0.0.0.0:0", 100, ONE), Party::new(100, ONE));
    left.address.set_ip([127, 0, 0, 5].into());
    right.meet(&left, 1, 2);
    let path = Path { socket: left.socket, address: right.address };
    let wait = |party: &Party, name, least| {
        while party.count(name) < least {
            thread::yield_now();
        }
    };
    right.pump.send_control(b"\x38 hello", Path { socket: right.socket, address: left.address }).unwrap();
    wait(&left, "rx_control", 1);
    left.pump.new_peer(1, path, Some(1)).unwrap();
    left.pump.command(|plane, _| {
        let (encrypt, decrypt) = ([2; MATERIAL_LEN], [1; MATERIAL_LEN]);
        plane.new_key(1, 1, 0, Format::Aead(Cipher::Aes256Gcm), &encrypt, &decrypt).unwrap();
        plane.swap(1, 1).unwrap();
    });
    for stranger in 0..40_000u16 {
        let [high, low] = stranger.to_be_bytes();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 9, high, low), 0)).unwrap();
        socket.send_to(b"\x38 noise", (Ipv4Addr::LOCALHOST, left.address.port())).unwrap();
        if stranger % 100 == 0 {
            wait(&left, "rx_control", u64::from(stranger) + 2);
        }
    }
    left.stack.send(&mut vec![left.pool.local().packet_from(&[0x45; 40])]).unwrap();
    left.pump.send_control(b"\x38 hello", path).unwrap();
    wait(&right, "rx_packets", 1);
    wait(&right, "rx_control", 1);
    // From another address it would have moved the peer, or be nobody's.
    assert_eq!((right.count("floats"), right.count("strangers_dropped")), (0, 0));
    let from = |event: &Event| matches!(event, Event::Control { path, .. } if path.address == left.address);
    assert!(right.pump.events().iter().all(from));
    // And from elsewhere once it has written there, with what is authentic.
    right.pump.command(|plane, _| plane.del_peer(1)).unwrap();
    left.address.set_ip([127, 0, 0, 6].into());
    right.meet(&left, 1, 2);
    right.stack.send(&mut vec![right.pool.local().packet_from(&[0x45; 40])]).unwrap();
    wait(&left, "rx_packets", 1);
    left.stack.send(&mut vec![left.pool.local().packet_from(&[0x45; 40])]).unwrap();
    wait(&right, "rx_packets", 2);
    assert_eq!(right.count("floats"), 0);
}
