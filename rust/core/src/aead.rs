//! The AEAD format of OpenVPN's data channel: packet id, tag, ciphertext.
//!
//! The nonce is the packet id (4 bytes, big endian) and the implicit IV (8 bytes, from the key
//! material). P_DATA_V2 authenticates its whole header with the packet id, P_DATA_V1 only the
//! packet id. Source: `src/openvpn/crypto.c`, `ssl.c` of OpenVPN.

use crate::Nanos;
use crate::cipher::{self, Cipher, MATERIAL_LEN, NONCE_LEN, TAG_LEN};
use crate::header::Header;
use crate::packet::{LocalPool, MAX_LEN, Packet};
use crate::replay::Window;

/// All packet ids of a key are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It names a key that there is not.
    NoKey,
    Malformed,
    Replayed,
    NotAuthentic,
}

/// One direction's cipher state, whichever the direction.
struct Key {
    key: cipher::Key,
    implicit_iv: [u8; IV_LEN],
    blocks: u64,
    failures: u64,
    usage_limit: Option<u64>,
}

impl Key {
    fn new(cipher: Cipher, material: &[u8; MATERIAL_LEN]) -> Key {
        let mut implicit_iv = [0; IV_LEN];
        implicit_iv.copy_from_slice(&material[MATERIAL_LEN / 2..][..IV_LEN]);
        let usage_limit = cipher.usage_limit();
        Key { key: cipher.bind(material), implicit_iv, blocks: 0, failures: 0, usage_limit }
    }

    fn nonce(&self, id: [u8; ID_LEN]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..ID_LEN].copy_from_slice(&id);
        nonce[ID_LEN..].copy_from_slice(&self.implicit_iv);
        nonce
    }

    fn count(&mut self, len: usize) {
        self.blocks += len.div_ceil(BLOCK_LEN) as u64;
    }

    /// Whether so much has been protected that the cipher's margin of safety ends.
    fn is_worn(&self, packets: u64) -> bool {
        self.usage_limit.is_some_and(|limit| self.blocks + packets > limit) || self.failures > WORN_FAILURES
    }
}

/// The sending half of a data key.
pub struct Sealer {
    key: Key,
    last_id: u32,
}

impl Sealer {
    pub fn new(cipher: Cipher, material: &[u8; MATERIAL_LEN]) -> Sealer {
        Sealer { key: Key::new(cipher, material), last_id: 0 }
    }

    /// Turns an inner packet into a datagram in place: needs the room of [`crate::format`].
    /// A packet id is never used twice: after the last, the packet stays as it was.
    pub fn seal(&mut self, header: &Header, packet: &mut Packet) -> Result<(), Exhausted> {
        self.last_id = self.last_id.checked_add(1).ok_or(Exhausted)?;
        let id = self.last_id.to_be_bytes();
        self.key.count(packet.len());
        let header_len = header.bytes().len();
        packet.grow_front(header_len + ID_LEN + TAG_LEN);
        let (front, plaintext) = packet.split_at_mut(header_len + ID_LEN + TAG_LEN);
        let (clear, tag) = front.split_at_mut(header_len + ID_LEN);
        clear[..header_len].copy_from_slice(header.bytes());
        clear[header_len..].copy_from_slice(&id);
        let authenticated = &clear[header.authenticated_from()..];
        tag.copy_from_slice(&self.key.key.seal(self.key.nonce(id), authenticated, plaintext));
        Ok(())
    }

    /// Whether the packet ids or the cipher's usage limit come to their end: time for a new key.
    pub fn is_worn(&self) -> bool {
        self.last_id >= WRAP_TRIGGER || self.key.is_worn(self.last_id.into())
    }

    /// Pretends that ids up to `id` and `blocks` of the cipher have been used.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, id: u32, blocks: u64) {
        self.last_id = id;
        self.key.blocks = blocks;
    }
}

/// The receiving half of a data key, with its replay window.
pub struct Opener {
    key: Key,
    window: Window,
}

impl Opener {
    pub fn new(cipher: Cipher, material: &[u8; MATERIAL_LEN]) -> Opener {
        Opener { key: Key::new(cipher, material), window: Window::new() }
    }

    /// The inner packet of a datagram whose header is `header`, and whether its packet id is the
    /// highest so far.
    pub fn open(
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
        let (tag, ciphertext) = sealed.split_first_chunk().ok_or(OpenError::Malformed)?;
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&clear[header_len..]);
        let number = u32::from_be_bytes(id).into();
        if !self.window.admits(number, now) {
            return Err(OpenError::Replayed);
        }
        if self.key.failures > MAX_FAILURES {
            return Err(OpenError::NotAuthentic);
        }
        let authenticated = &clear[header.authenticated_from()..];
        let mut packet = pool.packet(ciphertext.len());
        if self.key.key.open(self.key.nonce(id), authenticated, ciphertext, tag, &mut packet).is_err() {
            self.key.failures += 1;
            pool.recycle(packet);
            return Err(OpenError::NotAuthentic);
        }
        self.key.count(packet.len());
        let newest = self.window.commit(number);
        Ok((packet, newest))
    }

    /// Whether the peer has used its half up to the cipher's limit, for peers that don't watch it.
    pub fn is_worn(&self) -> bool {
        self.key.is_worn(self.window.highest())
    }
}

/// Stock OpenVPN renegotiates from here on; the 16 million ids left are for the time that takes.
pub const WRAP_TRIGGER: u32 = 0xff00_0000;

/// Forgeries under one key after which a new one is wanted, and after which nothing is opened any more:
/// the bounds of DTLS 1.3 (RFC 9147, section 4.5.3).
pub const WORN_FAILURES: u64 = 1 << 35;
pub const MAX_FAILURES: u64 = 1 << 36;

const ID_LEN: usize = 4;
const IV_LEN: usize = 8;
const BLOCK_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::GCM_USAGE_LIMIT;
    use crate::packet::Pool;

    const CIPHERS: [Cipher; 4] =
        [Cipher::Aes128Gcm, Cipher::Aes192Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

    fn material() -> [u8; MATERIAL_LEN] {
        std::array::from_fn(|index| index as u8)
    }

    fn seal(sealer: &mut Sealer, header: &Header, content: &[u8]) -> Vec<u8> {
        let mut packet = Pool::new(1).local().packet_from(content);
        sealer.seal(header, &mut packet).unwrap();
        packet.to_vec()
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let mut pool = Pool::new(4).local();
        for cipher in CIPHERS {
            for header in [Header::v1(7), Header::v2(3, 0x00ab_cdef)] {
                let mut sealer = Sealer::new(cipher, &material());
                let mut opener = Opener::new(cipher, &material());
                for content in [&b""[..], b"one", &[7; 1500], &[9; 60_000]] {
                    let datagram = seal(&mut sealer, &header, content);
                    let (packet, newest) = opener.open(&header, &datagram, 0, &mut pool).unwrap();
                    assert_eq!(&packet[..], content);
                    assert!(newest);
                    let again = opener.open(&header, &datagram, 0, &mut pool).err();
                    assert_eq!(again, Some(OpenError::Replayed));
                }
            }
        }
    }

    #[test]
    fn every_changed_byte_is_noticed_and_moves_nothing() {
        let mut pool = Pool::new(4).local();
        let header = Header::v2(0, 5);
        let mut opener = Opener::new(Cipher::Aes256Gcm, &material());
        let datagram = seal(&mut Sealer::new(Cipher::Aes256Gcm, &material()), &header, b"content");
        for index in Header::MAX_LEN..datagram.len() {
            let mut forged = datagram.clone();
            forged[index] ^= 0x80;
            assert_eq!(opener.open(&header, &forged, 0, &mut pool).err(), Some(OpenError::NotAuthentic));
        }
        let other = Header::v2(0, 6);
        assert_eq!(
            opener.open(&other, &[other.bytes(), &datagram[4..]].concat(), 0, &mut pool).err().unwrap(),
            OpenError::NotAuthentic
        );
        for len in 0..Header::MAX_LEN + ID_LEN + TAG_LEN {
            let error = opener.open(&header, &datagram[..len], 0, &mut pool).err();
            assert_eq!(error, Some(OpenError::Malformed));
        }
        assert!(opener.open(&header, &datagram, 0, &mut pool).is_ok());
    }

    #[test]
    fn packet_ids_never_wrap() {
        let header = Header::v1(0);
        let mut sealer = Sealer::new(Cipher::ChaCha20Poly1305, &material());
        sealer.wear(WRAP_TRIGGER - 2, 0);
        seal(&mut sealer, &header, b"x");
        assert!(!sealer.is_worn());
        seal(&mut sealer, &header, b"x");
        assert!(sealer.is_worn());
        sealer.wear(u32::MAX - 1, 0);
        assert_eq!(seal(&mut sealer, &header, b"x")[1..5], [0xff; 4]);
        let mut packet = Pool::new(1).local().packet_from(b"x");
        assert_eq!(sealer.seal(&header, &mut packet), Err(Exhausted));
        assert_eq!(&packet[..], b"x");
    }

    #[test]
    fn the_usage_limit_is_gcms_alone() {
        for (cipher, worn) in [(Cipher::Aes128Gcm, true), (Cipher::ChaCha20Poly1305, false)] {
            let mut sealer = Sealer::new(cipher, &material());
            sealer.wear(1, GCM_USAGE_LIMIT - 4);
            seal(&mut sealer, &Header::v1(0), &[0; 17]);
            assert!(!sealer.is_worn());
            seal(&mut sealer, &Header::v1(0), b"x");
            assert_eq!(sealer.is_worn(), worn);
        }
    }
}
