//! Eight senders and eight readers on a kernel's TUN device: what arrives does so once, whole, and in its sender's order.
//!
//! `kernel_many DESCRIPTOR ADDRESS COUNT`: the descriptor is the device's, inherited; each sender sends so many
//! datagrams to the address, which is reached through it. Prints how many were read. `tests/test_device_many.py` runs it
//! in a namespace, and asks the kernel what became of the others.

use std::env::args;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ginnel_io::packet_file::{BUFFER, PacketFile};

const THREADS: usize = 8;
const HEADERS: usize = 28;

/// What all threads see: how often each datagram was read, and how many were.
struct Field {
    seen: Vec<Vec<AtomicU8>>,
    received: AtomicU64,
    all_sent: AtomicBool,
}

fn main() {
    let arguments: Vec<String> = args().skip(1).collect();
    let [descriptor, address, count] = arguments.as_slice() else { panic!("DESCRIPTOR ADDRESS COUNT") };
    let file = PacketFile::adopt(descriptor.parse().expect("a number")).expect("the device's descriptor");
    let (address, count) = (address.parse().expect("an address"), count.parse().expect("a number"));
    let field = Field {
        seen: (0..THREADS).map(|_| (0..count).map(|_| AtomicU8::new(0)).collect()).collect(),
        received: AtomicU64::new(0),
        all_sent: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(|| read(&file, &field))));
        let senders: Vec<_> =
            (0..THREADS).map(|number| scope.spawn(move || send(address, number, count))).collect();
        senders.into_iter().for_each(|sender| sender.join().expect("a sender that sends all"));
        field.all_sent.store(true, Ordering::SeqCst);
    });
    assert!(field.seen.iter().flatten().all(|times| times.load(Ordering::Relaxed) <= 1));
    println!("{}", field.received.load(Ordering::Relaxed));
}

fn send(address: SocketAddr, sender: usize, count: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(address).expect("a way there");
    for number in 0..count {
        socket.send(&datagram(sender, number)).expect("taken by the kernel, whatever becomes of it");
    }
}

fn read(file: &PacketFile, field: &Field) {
    let mut last = [None; THREADS];
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    loop {
        // Asked before: what was sent by then lies there, or was read.
        let is_last_look = field.all_sent.load(Ordering::SeqCst);
        let Some(packet) = file.read(&mut buffer).expect("a device that is there") else {
            if is_last_look {
                return;
            }
            file.wait(Some(Duration::from_millis(100))).expect("a wait that nothing interrupts");
            continue;
        };
        let sent = &packet[HEADERS..];
        let (sender, number) =
            (sent[0] as usize, u32::from_be_bytes(sent[1..5].try_into().unwrap()) as usize);
        assert_eq!(sent, datagram(sender, number));
        assert!(last[sender] < Some(number), "sender {sender}: {number} after {:?}", last[sender]);
        last[sender] = Some(number);
        field.seen[sender][number].fetch_add(1, Ordering::Relaxed);
        field.received.fetch_add(1, Ordering::Relaxed);
    }
}

/// Of a length and a content that both follow from its sender and number.
fn datagram(sender: usize, number: usize) -> Vec<u8> {
    let mut datagram = vec![number as u8; 16 + number % 48];
    datagram[0] = sender as u8;
    datagram[1..5].copy_from_slice(&(number as u32).to_be_bytes());
    datagram
}
