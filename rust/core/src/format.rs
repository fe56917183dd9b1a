//! The formats of data packets behind one face.

use crate::Nanos;
use crate::aead::{self, Exhausted, OpenError};
use crate::cbc;
use crate::cipher::{self, MATERIAL_LEN};
use crate::epoch;
use crate::framing;
use crate::header::Header;
use crate::packet::{LocalPool, MAX_LEN, Packet};

/// The room that sealing takes around an inner packet, framing included.
pub const FRONT: usize = Header::MAX_LEN + 4 + 16 + framing::FRONT;
pub const BACK: usize = 16 + framing::BACK;

/// The longest inner packet that is sealed: the longest datagram less the most that any format adds.
pub const MAX_INNER: usize = MAX_LEN - 128;

/// A format with its ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Aead(cipher::Cipher),
    Epoch(cipher::Cipher),
    Cbc(cbc::Cipher, cbc::Digest),
}

impl Format {
    /// The format with this cipher and digest, by OpenVPN's names for them. An AEAD cipher has no use
    /// for a digest, and no other comes with epochs.
    pub fn from_names(cipher: &str, digest: &str, epochs: bool) -> Option<Format> {
        match (cipher::Cipher::from_name(cipher), cbc::Cipher::from_name(cipher)) {
            (Some(cipher), _) => Some(if epochs { Format::Epoch(cipher) } else { Format::Aead(cipher) }),
            (None, Some(cipher)) if !epochs => Some(Format::Cbc(cipher, cbc::Digest::from_name(digest)?)),
            _ => None,
        }
    }

    /// The keys of both directions, for sending and for receiving, from their material.
    pub fn keys(self, encrypt: &[u8; MATERIAL_LEN], decrypt: &[u8; MATERIAL_LEN]) -> (Sealer, Opener) {
        match self {
            Format::Aead(cipher) => (
                Sealer::Aead(aead::Sealer::new(cipher, encrypt)),
                Opener::Aead(aead::Opener::new(cipher, decrypt)),
            ),
            Format::Epoch(cipher) => {
                let (sealer, opener) = epoch::pair(cipher, encrypt, decrypt);
                (Sealer::Epoch(Box::new(sealer)), Opener::Epoch(Box::new(opener)))
            }
            Format::Cbc(cipher, digest) => (
                Sealer::Cbc(Box::new(cbc::Sealer::new(cipher, digest, encrypt))),
                Opener::Cbc(Box::new(cbc::Opener::new(cipher, digest, decrypt))),
            ),
        }
    }
}

/// The sending half of a data key.
#[allow(clippy::large_enum_variant)] // The one that is large is the one that is fast and usual.
pub enum Sealer {
    Aead(aead::Sealer),
    Epoch(Box<epoch::Sealer>),
    Cbc(Box<cbc::Sealer>),
}

impl Sealer {
    /// Turns an inner packet of at most [`MAX_INNER`] bytes, with [`FRONT`] and [`BACK`] around it, into
    /// a datagram. After the last packet id it stays as it was.
    pub fn seal(
        &mut self,
        header: &Header,
        packet: &mut Packet,
        pool: &mut LocalPool,
    ) -> Result<(), Exhausted> {
        match self {
            Sealer::Aead(sealer) => sealer.seal(header, packet),
            Sealer::Epoch(sealer) => sealer.seal(header, packet),
            Sealer::Cbc(sealer) => sealer.seal(header, packet, pool),
        }
    }

    /// Whether it comes to its end: time for new keys.
    pub fn is_worn(&self) -> bool {
        match self {
            Sealer::Aead(sealer) => sealer.is_worn(),
            Sealer::Epoch(sealer) => sealer.is_worn(),
            Sealer::Cbc(sealer) => sealer.is_worn(),
        }
    }
}

/// The receiving half of a data key.
#[allow(clippy::large_enum_variant)] // As above.
pub enum Opener {
    Aead(aead::Opener),
    Epoch(Box<epoch::Opener>),
    Cbc(Box<cbc::Opener>),
}

impl Opener {
    /// The inner packet of a datagram whose header is `header`, and whether it is the newest.
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), OpenError> {
        match self {
            Opener::Aead(opener) => opener.open(header, datagram, now, pool),
            Opener::Epoch(opener) => opener.open(header, datagram, now, pool),
            Opener::Cbc(opener) => opener.open(header, datagram, now, pool),
        }
    }

    /// Whether the peer has used its half up: time for new keys.
    pub fn is_worn(&self) -> bool {
        match self {
            Opener::Aead(opener) => opener.is_worn(),
            Opener::Epoch(opener) => opener.is_worn(),
            Opener::Cbc(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;

    /// OpenVPN's `test_ssl.c`, `test_data_channel_known_vectors_run`: the key, the packet and what comes of it.
    #[test]
    fn known_data_packets() {
        let text = b"abcdefgh01234567ABCDEFGHjkuchenl";
        let material: [u8; MATERIAL_LEN] = std::array::from_fn(|index| text[index % 32] ^ index as u8);
        let mut pool = Pool::new(1).local();
        let mut seal = |sealer: &mut Sealer| {
            let mut packet = pool.packet_from(b"The quick little fox jumps over the bureaucratic hurdles");
            sealer.seal(&Header::raw([7, 0, 0, 23]), &mut packet, &mut pool).unwrap();
            packet.to_vec()
        };
        let cipher = cipher::Cipher::Aes256Gcm;
        let datagram = seal(&mut Format::Aead(cipher).keys(&material, &material).0);
        assert_eq!(datagram[4..8], [0, 0, 0, 1]);
        assert_eq!(datagram[8..24], 0x1fdd_908f_0e9d_c25e_79d8_3202_0d58_e73f_u128.to_be_bytes());
        assert_eq!(datagram[34..40], [0xa8, 0x2e, 0x6b, 0x17, 0x06, 0xd9]);
        let (mut sealer, _) = Format::Epoch(cipher).keys(&material, &material);
        let Sealer::Epoch(epochs) = &mut sealer else { panic!("epochs") };
        epochs.wear(4, 0, 0);
        let datagram = seal(&mut sealer);
        assert_eq!(datagram[4..12], [0, 4, 0, 0, 0, 0, 0, 1]);
        let tag = datagram.len() - 16;
        assert_eq!(datagram[tag..], 0x0fff_f591_3d39_d75b_1857_3b57_4858_9a7d_u128.to_be_bytes());
        assert_eq!(datagram[18..24], [0x36, 0xaa, 0xb4, 0xd4, 0x9c, 0xe6]);
    }

    #[test]
    fn only_what_fits_together_is_a_format() {
        assert!(matches!(Format::from_names("aes-256-gcm", "SHA1", true), Some(Format::Epoch(_))));
        assert!(matches!(Format::from_names("AES-128-CBC", "sha256", false), Some(Format::Cbc(..))));
        for (cipher, digest, epochs) in
            [("AES-128-CBC", "SHA1", true), ("AES-128-CBC", "MD5", false), ("BF-CBC", "SHA1", false)]
        {
            assert_eq!(Format::from_names(cipher, digest, epochs), None);
        }
    }
}
