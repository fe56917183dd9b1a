//! The AEAD format with epochs, of OpenVPN 2.7: packet id, ciphertext, tag.
//!
//! A packet id has 64 bits: the epoch's number (16) and the packet's within it (48). Each direction's
//! secret is iterated from epoch to epoch, and an epoch's key and IV are derived from it. Who sends begins a new epoch
//! when the cipher's limit is near; who receives knows a few epochs ahead, and moves on with the first
//! authentic packet of one, sending included. The nonce is the IV, XORed with the packet id at its front. Source:
//! `crypto_epoch.c`, `crypto.c` of OpenVPN.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use aws_lc_rs::hmac;

use crate::Nanos;
use crate::aead::{Exhausted, MAX_FAILURES, OpenError, WORN_FAILURES};
use crate::cipher::{self, Cipher, MATERIAL_LEN, NONCE_LEN, TAG_LEN};
use crate::header::Header;
use crate::packet::{LocalPool, MAX_LEN, Packet};
use crate::replay::Window;

/// Both directions of a data key. Which epoch one uses depends on the other, and they may be on different threads.
pub fn pair(cipher: Cipher, encrypt: &[u8; MATERIAL_LEN], decrypt: &[u8; MATERIAL_LEN]) -> (Sealer, Opener) {
    let received = Arc::new(Received::default());
    let sealer = Sealer::new(cipher, Secret::first(encrypt), received.clone());
    (sealer, Opener::new(cipher, Secret::first(decrypt), received))
}

/// What the receiving direction tells the sending one.
#[derive(Default)]
struct Received {
    /// The peer's current epoch.
    current: AtomicU16,
    /// The last epoch in which the peer used its key to the limit, or 0.
    worn: AtomicU16,
}

/// The sending direction.
pub struct Sealer {
    cipher: Cipher,
    secret: Secret,
    key: Key,
    last_id: u64,
    received: Arc<Received>,
}

impl Sealer {
    fn new(cipher: Cipher, secret: Secret, received: Arc<Received>) -> Sealer {
        Sealer { cipher, key: secret.key(cipher), secret, last_id: 0, received }
    }

    /// Turns an inner packet into a datagram in place: needs the room of [`crate::format`].
    /// A packet id is never used twice: after the last, the packet stays as it was.
    pub fn seal(&mut self, header: &Header, packet: &mut Packet) -> Result<(), Exhausted> {
        let current = self.received.current.load(Ordering::Relaxed);
        if self.secret.epoch < current {
            self.follow(current);
        }
        if self.needs_next() {
            self.follow(self.secret.epoch + 1);
        }
        self.seal_in_epoch(header, packet)
    }

    /// Whether the epochs come to their end.
    pub fn is_worn(&self) -> bool {
        self.secret.epoch >= WORN_EPOCH
    }

    /// Whether the next packet must go out in a new epoch: at our key's limit, or at the peer's,
    /// who then follows us.
    fn needs_next(&self) -> bool {
        self.secret.epoch < u16::MAX
            && (self.last_id == MAX_ID
                || self.key.is_worn(self.cipher.usage_limit(), self.last_id)
                || self.key.epoch == self.received.worn.load(Ordering::Relaxed))
    }

    /// Pretends that the key has protected so much.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, epoch: u16, id: u64, blocks: u64) {
        if self.secret.epoch < epoch {
            self.follow(epoch);
        }
        self.last_id = id;
        self.key.blocks = blocks;
    }

    /// Moves on to an epoch. The packet ids begin anew, under a key that was never used.
    fn follow(&mut self, epoch: u16) {
        while self.secret.epoch < epoch {
            self.secret = self.secret.next();
        }
        self.key = self.secret.key(self.cipher);
        self.last_id = 0;
    }

    fn seal_in_epoch(&mut self, header: &Header, packet: &mut Packet) -> Result<(), Exhausted> {
        if self.last_id == MAX_ID {
            return Err(Exhausted);
        }
        self.last_id += 1;
        let id = (u64::from(self.key.epoch) << ID_BITS | self.last_id).to_be_bytes();
        self.key.count(packet.len());
        let header_len = header.bytes().len();
        packet.grow_front(header_len + ID_LEN);
        let (clear, plaintext) = packet.split_at_mut(header_len + ID_LEN);
        clear[..header_len].copy_from_slice(header.bytes());
        clear[header_len..].copy_from_slice(&id);
        let authenticated = &clear[header.authenticated_from()..];
        let tag = self.key.key.seal(self.key.nonce(id), authenticated, plaintext);
        let tag_at = packet.len();
        packet.grow_back(TAG_LEN);
        packet[tag_at..].copy_from_slice(&tag);
        Ok(())
    }
}

/// The receiving direction.
pub struct Opener {
    cipher: Cipher,
    /// The secret of the last epoch in `future`.
    secret: Secret,
    current: (Key, Window),
    retiring: Option<(Key, Window)>,
    /// The keys of the epochs that come next, in their order.
    future: VecDeque<Key>,
    received: Arc<Received>,
}

impl Opener {
    fn new(cipher: Cipher, secret: Secret, received: Arc<Received>) -> Opener {
        let current = (secret.key(cipher), Window::new());
        let mut opener =
            Opener { cipher, secret, current, retiring: None, future: VecDeque::new(), received };
        opener.derive_future();
        opener
    }

    /// As [`crate::aead::Opener::open`].
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), OpenError> {
        let opened = self.open_in_epoch(header, datagram, now, pool);
        let (key, window) = &self.current;
        if key.is_worn(self.cipher.usage_limit(), window.highest()) {
            self.received.worn.store(key.epoch, Ordering::Relaxed);
        }
        opened
    }

    /// Whether the epochs come to their end.
    pub fn is_worn(&self) -> bool {
        self.current.0.epoch >= WORN_EPOCH
    }

    fn open_in_epoch(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), OpenError> {
        let header_len = header.bytes().len();
        if datagram.len() < header_len + ID_LEN + TAG_LEN || datagram.len() > MAX_LEN {
            return Err(OpenError::Malformed);
        }
        let (clear, sealed) = datagram.split_at(header_len + ID_LEN);
        let (ciphertext, tag) = sealed.split_last_chunk().ok_or(OpenError::Malformed)?;
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&clear[header_len..]);
        let (epoch, number) = ((u64::from_be_bytes(id) >> ID_BITS) as u16, u64::from_be_bytes(id) & MAX_ID);
        let (key, window) = self.find(epoch).ok_or(OpenError::NoKey)?;
        if number == 0 || window.is_some_and(|window| !window.admits(number, now)) {
            return Err(OpenError::Replayed);
        }
        if key.failures > MAX_FAILURES {
            return Err(OpenError::NotAuthentic);
        }
        let authenticated = &clear[header.authenticated_from()..];
        let mut packet = pool.packet(ciphertext.len());
        let nonce = key.nonce(id);
        if key.key.open(nonce, authenticated, ciphertext, tag, &mut packet).is_err() {
            key.failures += 1;
            pool.recycle(packet);
            return Err(OpenError::NotAuthentic);
        }
        key.count(packet.len());
        if epoch > self.current.0.epoch {
            self.advance(epoch);
        }
        let is_current = epoch == self.current.0.epoch;
        let (_, window) = self.find(epoch).ok_or(OpenError::NoKey)?;
        let newest = window.is_some_and(|window| window.admits(number, now) && window.commit(number));
        Ok((packet, newest && is_current))
    }

    /// An epoch's key, and its window where packets have come in it. Near the last number there
    /// are no epochs ahead any longer.
    fn find(&mut self, epoch: u16) -> Option<(&mut Key, Option<&mut Window>)> {
        if epoch == self.current.0.epoch {
            return Some((&mut self.current.0, Some(&mut self.current.1)));
        }
        if let Some((key, window)) = self.retiring.as_mut().filter(|(key, _)| key.epoch == epoch) {
            return Some((key, Some(window)));
        }
        if epoch > u16::MAX - FUTURE as u16 - 1 {
            return None;
        }
        self.future.iter_mut().find(|key| key.epoch == epoch).map(|key| (key, None))
    }

    /// Makes an epoch ahead the current one: its first packet was authentic.
    fn advance(&mut self, epoch: u16) {
        while let Some(key) = self.future.pop_front() {
            if key.epoch == epoch {
                self.retiring = Some(std::mem::replace(&mut self.current, (key, Window::new())));
                self.received.current.store(epoch, Ordering::Relaxed);
                break;
            }
        }
        self.derive_future();
    }

    fn derive_future(&mut self) {
        let highest = self.current.0.epoch.saturating_add(FUTURE as u16);
        while self.secret.epoch < highest {
            self.secret = self.secret.next();
            self.future.push_back(self.secret.key(self.cipher));
        }
    }
}

/// An epoch's secret, from which its key and the next secret are derived.
struct Secret {
    epoch: u16,
    bytes: [u8; SECRET_LEN],
}

impl Secret {
    fn first(material: &[u8; MATERIAL_LEN]) -> Secret {
        let mut bytes = [0; SECRET_LEN];
        bytes.copy_from_slice(&material[..SECRET_LEN]);
        Secret { epoch: 1, bytes }
    }

    fn next(&self) -> Secret {
        let mut bytes = [0; SECRET_LEN];
        expand_label(&self.bytes, b"datakey upd", &mut bytes);
        Secret { epoch: self.epoch + 1, bytes }
    }

    fn key(&self, cipher: Cipher) -> Key {
        let (material, iv) = self.material(cipher);
        Key { epoch: self.epoch, key: cipher.bind(&material), iv, blocks: 0, failures: 0 }
    }

    /// The cipher's key, at the front, and the IV.
    fn material(&self, cipher: Cipher) -> ([u8; MATERIAL_LEN], [u8; NONCE_LEN]) {
        let (mut key, mut iv) = ([0; MATERIAL_LEN], [0; NONCE_LEN]);
        expand_label(&self.bytes, b"data_key", &mut key[..cipher.key_len()]);
        expand_label(&self.bytes, b"data_iv", &mut iv);
        (key, iv)
    }
}

/// One epoch's key of one direction.
struct Key {
    epoch: u16,
    key: cipher::Key,
    iv: [u8; NONCE_LEN],
    blocks: u64,
    failures: u64,
}

impl Key {
    fn nonce(&self, id: [u8; ID_LEN]) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        nonce.iter_mut().zip(id).for_each(|(byte, id)| *byte ^= id);
        nonce
    }

    fn count(&mut self, len: usize) {
        self.blocks += len.div_ceil(BLOCK_LEN) as u64;
    }

    fn is_worn(&self, limit: Option<u64>, packets: u64) -> bool {
        limit.is_some_and(|limit| self.blocks + packets > limit) || self.failures > WORN_FAILURES
    }
}

/// HKDF-Expand-Label (RFC 8446, section 7.1) with SHA-256, no context, and OpenVPN's prefix.
fn expand_label(secret: &[u8; SECRET_LEN], label: &[u8], output: &mut [u8]) {
    let len = (output.len() as u16).to_be_bytes();
    let label_len = [(PREFIX.len() + label.len()) as u8];
    expand(secret, &[&len[..], &label_len, PREFIX, label, &[0]].concat(), output);
}

/// HKDF-Expand (RFC 5869, section 2.3) with SHA-256.
fn expand(secret: &[u8; SECRET_LEN], info: &[u8], output: &mut [u8]) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut block: Vec<u8> = Vec::new();
    for (chunk, number) in output.chunks_mut(SECRET_LEN).zip(1..) {
        let tag = hmac::sign(&key, &[&block, info, &[number]].concat());
        chunk.copy_from_slice(&tag.as_ref()[..chunk.len()]);
        block = tag.as_ref().to_vec();
    }
}

const SECRET_LEN: usize = 32;
const PREFIX: &[u8] = b"ovpn ";
const BLOCK_LEN: usize = 16;
const ID_LEN: usize = 8;
const ID_BITS: u32 = 48;
const MAX_ID: u64 = (1 << ID_BITS) - 1;

/// How many epochs a receiver knows ahead. Stock's own number.
const FUTURE: usize = 4;

/// Stock OpenVPN renegotiates from this epoch on.
const WORN_EPOCH: u16 = 0xf000;

#[cfg(test)]
mod tests;
