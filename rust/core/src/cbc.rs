//! The format of ciphers that authenticate nothing: HMAC, IV, ciphertext.
//!
//! The MAC covers IV and ciphertext, but no header; the packet id stands in front of the inner packet and is
//! encrypted with it. The cipher is AES in CBC mode with PKCS #7 padding, or none: then there is no IV
//! either. Source: `crypto.c` of OpenVPN, its functions with `v1` in their names.

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use crate::Nanos;
use crate::aead::{Exhausted, OpenError, WRAP_TRIGGER};
use crate::cipher::MATERIAL_LEN;
use crate::header::Header;
use crate::packet::{LocalPool, MAX_LEN, Packet};
use crate::replay::Window;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Aes128,
    Aes192,
    Aes256,
    None,
}

impl Cipher {
    /// The cipher of this OpenVPN name, in any case.
    pub fn from_name(name: &str) -> Option<Cipher> {
        CIPHERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|&(_, cipher)| cipher)
    }

    fn algorithm(self) -> Option<(&'static Algorithm, usize)> {
        match self {
            Cipher::Aes128 => Some((&AES_128, 16)),
            Cipher::Aes192 => Some((&AES_192, 24)),
            Cipher::Aes256 => Some((&AES_256, 32)),
            Cipher::None => None,
        }
    }

    fn key(self, material: &[u8; MATERIAL_LEN]) -> Option<UnboundCipherKey> {
        let (algorithm, len) = self.algorithm()?;
        Some(UnboundCipherKey::new(algorithm, &material[..len]).expect("key of its length"))
    }
}

/// The hash of the HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    None,
}

impl Digest {
    /// The digest of this OpenVPN name, in any case.
    pub fn from_name(name: &str) -> Option<Digest> {
        DIGESTS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|&(_, digest)| digest)
    }

    fn key(self, material: &[u8; MATERIAL_LEN]) -> Option<hmac::Key> {
        let algorithm = match self {
            Digest::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Digest::Sha224 => hmac::HMAC_SHA224,
            Digest::Sha256 => hmac::HMAC_SHA256,
            Digest::Sha384 => hmac::HMAC_SHA384,
            Digest::Sha512 => hmac::HMAC_SHA512,
            Digest::None => return None,
        };
        let key = &material[MATERIAL_LEN / 2..][..algorithm.tag_len()];
        Some(hmac::Key::new(algorithm, key))
    }
}

/// The sending half of a data key.
pub struct Sealer {
    cipher: Option<EncryptingKey>,
    mac: Option<hmac::Key>,
    last_id: u32,
}

impl Sealer {
    pub fn new(cipher: Cipher, digest: Digest, material: &[u8; MATERIAL_LEN]) -> Sealer {
        let cipher = cipher.key(material).map(|key| EncryptingKey::cbc(key).expect("a block cipher"));
        Sealer { cipher, mac: digest.key(material), last_id: 0 }
    }

    /// Makes a datagram of an inner packet, in a buffer of its own.
    /// A packet id is never used twice: after the last, the packet stays as it was.
    ///
    /// Panics if the datagram would be longer than [`MAX_LEN`].
    pub fn seal(
        &mut self,
        header: &Header,
        packet: &mut Packet,
        pool: &mut LocalPool,
    ) -> Result<(), Exhausted> {
        self.last_id = self.last_id.checked_add(1).ok_or(Exhausted)?;
        let header_len = header.bytes().len();
        let iv_at = header_len + tag_len(&self.mac);
        let id_at = iv_at + if self.cipher.is_some() { IV_LEN } else { 0 };
        let content_at = id_at + ID_LEN;
        let plain_len = ID_LEN + packet.len();
        let padding = if self.cipher.is_some() { BLOCK_LEN - plain_len % BLOCK_LEN } else { 0 };
        let mut sealed = pool.packet(id_at + plain_len + padding);
        sealed[..header_len].copy_from_slice(header.bytes());
        sealed[id_at..content_at].copy_from_slice(&self.last_id.to_be_bytes());
        sealed[content_at..][..packet.len()].copy_from_slice(packet);
        if let Some(cipher) = &self.cipher {
            sealed[id_at + plain_len..].fill(padding as u8);
            let context = cipher.encrypt(&mut sealed[id_at..]).expect("whole blocks");
            let iv: &[u8] = (&context).try_into().expect("CBC has an IV");
            sealed[iv_at..id_at].copy_from_slice(iv);
        }
        if let Some(key) = &self.mac {
            let tag = hmac::sign(key, &sealed[iv_at..]);
            sealed[header_len..iv_at].copy_from_slice(tag.as_ref());
        }
        pool.recycle(std::mem::replace(packet, sealed));
        Ok(())
    }

    /// Whether the packet ids come to their end.
    pub fn is_worn(&self) -> bool {
        self.last_id >= WRAP_TRIGGER
    }

    /// Pretends that ids up to `id` have been used.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, id: u32) {
        self.last_id = id;
    }
}

/// The receiving half of a data key, with its replay window.
pub struct Opener {
    cipher: Option<DecryptingKey>,
    mac: Option<hmac::Key>,
    window: Window,
}

impl Opener {
    pub fn new(cipher: Cipher, digest: Digest, material: &[u8; MATERIAL_LEN]) -> Opener {
        let cipher = cipher.key(material).map(|key| DecryptingKey::cbc(key).expect("a block cipher"));
        Opener { cipher, mac: digest.key(material), window: Window::new() }
    }

    /// As [`crate::aead::Opener::open`].
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), OpenError> {
        let sealed = &datagram[header.bytes().len()..];
        let iv_len = if self.cipher.is_some() { IV_LEN } else { 0 };
        if datagram.len() > MAX_LEN || sealed.len() < tag_len(&self.mac) + iv_len + ID_LEN {
            return Err(OpenError::Malformed);
        }
        let (tag, sealed) = sealed.split_at(tag_len(&self.mac));
        if let Some(key) = &self.mac {
            hmac::verify(key, sealed, tag).map_err(|_| OpenError::NotAuthentic)?;
        }
        let (iv, content) = sealed.split_at(iv_len);
        let mut packet = pool.packet_from(content);
        let Some(number) = self.decrypt(iv, &mut packet) else {
            pool.recycle(packet);
            return Err(OpenError::Malformed);
        };
        if !self.window.admits(number, now) {
            pool.recycle(packet);
            return Err(OpenError::Replayed);
        }
        let newest = self.window.commit(number);
        Ok((packet, newest))
    }

    /// Leaves the inner packet in `packet`, and returns its packet id. `None` if it is malformed.
    fn decrypt(&self, iv: &[u8], packet: &mut Packet) -> Option<u64> {
        if let Some(cipher) = &self.cipher {
            let iv: [u8; IV_LEN] = iv.try_into().ok()?;
            let context = DecryptionContext::Iv128(FixedLength::from(iv));
            cipher.decrypt(packet, context).ok()?;
            let padding = *packet.last()?;
            let len = packet.len().checked_sub(padding.into())?;
            let is_padded = (1..=BLOCK_LEN).contains(&padding.into());
            if !is_padded || packet[len..].iter().any(|&byte| byte != padding) {
                return None;
            }
            packet.truncate(len);
        }
        let id = u32::from_be_bytes(*packet.first_chunk()?);
        packet.trim_front(ID_LEN);
        Some(id.into())
    }
}

fn tag_len(key: &Option<hmac::Key>) -> usize {
    key.as_ref().map_or(0, |key| key.algorithm().tag_len())
}

const CIPHERS: [(&str, Cipher); 4] = [
    ("AES-128-CBC", Cipher::Aes128),
    ("AES-192-CBC", Cipher::Aes192),
    ("AES-256-CBC", Cipher::Aes256),
    ("none", Cipher::None),
];

const DIGESTS: [(&str, Digest); 6] = [
    ("SHA1", Digest::Sha1),
    ("SHA224", Digest::Sha224),
    ("SHA256", Digest::Sha256),
    ("SHA384", Digest::Sha384),
    ("SHA512", Digest::Sha512),
    ("none", Digest::None),
];

const ID_LEN: usize = 4;
const IV_LEN: usize = 16;
const BLOCK_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;

    fn material() -> [u8; MATERIAL_LEN] {
        std::array::from_fn(|index| index as u8)
    }

    fn seal(sealer: &mut Sealer, header: &Header, content: &[u8]) -> Vec<u8> {
        let mut pool = Pool::new(2).local();
        let mut packet = pool.packet_from(content);
        sealer.seal(header, &mut packet, &mut pool).unwrap();
        packet.to_vec()
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let mut pool = Pool::new(4).local();
        for (_, cipher) in CIPHERS {
            for (_, digest) in DIGESTS {
                for header in [Header::v1(7), Header::v2(3, 0x00ab_cdef)] {
                    let mut sealer = Sealer::new(cipher, digest, &material());
                    let mut opener = Opener::new(cipher, digest, &material());
                    for content in [&b""[..], b"one", &[7; 12], &[8; 28], &[9; 1500], &[9; 60_000]] {
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
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let mut pool = Pool::new(4).local();
        let header = Header::v2(0, 5);
        for (_, cipher) in CIPHERS {
            let mut opener = Opener::new(cipher, Digest::Sha256, &material());
            let datagram = seal(&mut Sealer::new(cipher, Digest::Sha256, &material()), &header, b"content");
            for index in Header::MAX_LEN..datagram.len() {
                let mut forged = datagram.clone();
                forged[index] ^= 0x80;
                let error = opener.open(&header, &forged, 0, &mut pool).err();
                assert_eq!(error, Some(OpenError::NotAuthentic));
            }
            for len in Header::MAX_LEN..datagram.len() {
                assert!(opener.open(&header, &datagram[..len], 0, &mut pool).is_err());
            }
            assert!(opener.open(&header, &datagram, 0, &mut pool).is_ok());
        }
    }

    #[test]
    fn without_a_mac_nothing_panics() {
        let mut pool = Pool::new(4).local();
        let header = Header::v1(0);
        let mut random = 99u64;
        for (_, cipher) in CIPHERS {
            let mut opener = Opener::new(cipher, Digest::None, &material());
            for len in 0..200 {
                let mut datagram = header.bytes().to_vec();
                for _ in 0..len {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    datagram.push((random >> 56) as u8);
                }
                let _ = opener.open(&header, &datagram, 0, &mut pool);
            }
        }
    }

    #[test]
    fn no_iv_comes_twice() {
        let mut sealer = Sealer::new(Cipher::Aes128, Digest::Sha1, &material());
        let ivs: std::collections::HashSet<_> =
            (0..100).map(|_| seal(&mut sealer, &Header::v1(0), b"x")[21..37].to_vec()).collect();
        assert_eq!(ivs.len(), 100);
    }

    #[test]
    fn packet_ids_never_wrap() {
        let mut sealer = Sealer::new(Cipher::Aes128, Digest::Sha1, &material());
        sealer.wear(WRAP_TRIGGER - 1);
        assert!(!sealer.is_worn());
        seal(&mut sealer, &Header::v1(0), b"x");
        assert!(sealer.is_worn());
        sealer.wear(u32::MAX);
        let mut pool = Pool::new(1).local();
        let mut packet = pool.packet_from(b"x");
        assert_eq!(sealer.seal(&Header::v1(0), &mut packet, &mut pool), Err(Exhausted));
        assert_eq!(&packet[..], b"x");
    }
}
