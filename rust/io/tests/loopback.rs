//! Two pumps on loopback sockets.

use std::net::{SocketAddr, UdpSocket};
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
    socket: u32,
}

const ONE: Threads = Threads { lanes: 1, apart: false };
const FOUR: Threads = Threads { lanes: 2, apart: true };

impl Party {
    fn new(capacity: usize, threads: Threads) -> Party {
        let pool = Pool::new(8192);
        let device = Device::new(Kind::Tun, 1500, capacity);
        let stack = device.attach(Side::Interface).unwrap();
        device.set_up(true);
        let pump =
            Pump::start(Inner::memory(device.attach(Side::Application).unwrap()), threads, pool.clone())
                .unwrap();
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
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
