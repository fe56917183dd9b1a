//! Which packets of strangers are worth a look: those whose wrap is made with a key that the server gave out.
//!
//! Only what passes is counted against the limit of strangers, so that a flood of noise uses nothing of it up. The
//! formats are told in `src/ginnel/openvpn/wrap.py` and `tls_crypt_v2.py`.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;

use crate::control::{ControlCipher, KEY_LEN};

/// What a packet's wrap may be. A stranger's is the first packet of its client: there is no replay window yet.
pub enum Lock {
    /// `tls-auth`, by the key of the clients' way.
    TlsAuth(hmac::Key),
    /// `tls-crypt`, by the key of the clients' way.
    TlsCrypt(ControlCipher),
    /// `tls-crypt-v2`, by the server's key, which opens the client's at the end of the packet.
    TlsCryptV2(ControlCipher),
}

/// Whose key a packet is made with, as far as the server can tell: by the tag of a wrapped key, which nobody makes
/// without the server's.
pub type Holder = [u8; 16];

/// Of a key that all clients share, or of none.
pub const ANYBODY: Holder = [0; 16];

/// Without a lock everything passes: with no wrap nothing says whose a packet is.
#[derive(Default)]
pub struct Guard {
    locks: Vec<Lock>,
}

impl Guard {
    pub fn new(locks: Vec<Lock>) -> Guard {
        Guard { locks }
    }

    pub fn is_set(&self) -> bool {
        !self.locks.is_empty()
    }

    /// Who made a packet that passes.
    pub fn holder(&self, datagram: &[u8]) -> Option<Holder> {
        match self.locks.is_empty() {
            true => Some(ANYBODY),
            false => self.locks.iter().find_map(|lock| lock.fits(datagram)),
        }
    }
}

impl Lock {
    /// `kind` is `tls-crypt`, with a static key of 256 bytes, `tls-crypt-v2`, with a server's of 128, or the name of
    /// the digest of tls-auth, with the key of the clients' way.
    pub fn new(kind: &str, key: &[u8]) -> Option<Lock> {
        let algorithm = match kind {
            "tls-crypt" => return (key.len() == STATIC_KEY_LEN).then(|| Lock::TlsCrypt(clients_way(key))),
            "tls-crypt-v2" => return (key.len() == SERVER_KEY_LEN).then(|| Lock::TlsCryptV2(part(key, 0))),
            "SHA1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            "SHA224" => hmac::HMAC_SHA224,
            "SHA256" => hmac::HMAC_SHA256,
            "SHA384" => hmac::HMAC_SHA384,
            "SHA512" => hmac::HMAC_SHA512,
            _ => return None,
        };
        Some(Lock::TlsAuth(hmac::Key::new(algorithm, key)))
    }

    fn fits(&self, datagram: &[u8]) -> Option<Holder> {
        match self {
            Lock::TlsAuth(key) => {
                let (header, rest) = datagram.split_at_checked(HEADER_LEN)?;
                let (tag, rest) = rest.split_at_checked(key.algorithm().tag_len())?;
                let (packet_id, body) = rest.split_at_checked(PACKET_ID_LEN)?;
                let mut context = hmac::Context::with_key(key);
                [packet_id, header, body].into_iter().for_each(|part| context.update(part));
                verify_slices_are_equal(tag, context.sign().as_ref()).ok().map(|()| ANYBODY)
            }
            Lock::TlsCrypt(cipher) => opens(cipher, datagram).map(|()| ANYBODY),
            Lock::TlsCryptV2(cipher) => {
                if !WITH_WRAPPED_KEY.contains(&(datagram.first()? >> 3)) {
                    return None;
                }
                let (_, length) = datagram.split_last_chunk::<2>()?;
                let wrapped_len = usize::from(u16::from_be_bytes(*length));
                let (packet, wrapped) =
                    datagram.split_at_checked(datagram.len().checked_sub(wrapped_len)?)?;
                let (sealed, length) = wrapped.split_at_checked(wrapped_len.checked_sub(2)?)?;
                let plain = cipher.open(length, sealed)?;
                opens(&clients_way(plain.get(..STATIC_KEY_LEN)?), packet)?;
                wrapped.first_chunk().copied()
            }
        }
    }
}

/// The key that clients send with, of the two in a static key.
fn clients_way(key: &[u8]) -> ControlCipher {
    part(key, STATIC_KEY_LEN / 2)
}

/// 64 bytes for the cipher and 64 for the MAC, of which half is used.
fn part(key: &[u8], at: usize) -> ControlCipher {
    let half = |at: usize| key[at..at + KEY_LEN].try_into().expect("a key of its length");
    ControlCipher::new(half(at), half(at + 64))
}

fn opens(cipher: &ControlCipher, packet: &[u8]) -> Option<()> {
    let (head, sealed) = packet.split_at_checked(HEADER_LEN + PACKET_ID_LEN)?;
    cipher.open(head, sealed).map(drop)
}

const STATIC_KEY_LEN: usize = 256;
const SERVER_KEY_LEN: usize = 128;
/// Opcode and session id.
const HEADER_LEN: usize = 9;
/// With its time.
const PACKET_ID_LEN: usize = 8;
/// P_CONTROL_HARD_RESET_CLIENT_V3 and P_CONTROL_WKC_V1.
const WITH_WRAPPED_KEY: [u8; 2] = [10, 11];

#[cfg(test)]
mod tests {
    use super::*;

    fn static_key(seed: u8) -> Vec<u8> {
        (0..STATIC_KEY_LEN).map(|at| at as u8 ^ seed).collect()
    }

    const SERVER_KEY: [u8; SERVER_KEY_LEN] = [7; SERVER_KEY_LEN];

    fn server_key() -> ControlCipher {
        part(&SERVER_KEY, 0)
    }

    fn tls_crypt(opcode: u8, key: &[u8]) -> Vec<u8> {
        let mut packet = [&[opcode << 3][..], b"sessionx", &[0, 0, 0, 1, 5, 5, 5, 5]].concat();
        let sealed = clients_way(key).seal(&packet, &[0; 5]);
        packet.extend(sealed);
        packet
    }

    fn tls_crypt_v2(opcode: u8, metadata: usize) -> Vec<u8> {
        let key = static_key(3);
        let length = (32 + STATIC_KEY_LEN + metadata + 2) as u16;
        let mut packet = tls_crypt(opcode, &key);
        packet.extend(server_key().seal(&length.to_be_bytes(), &[key, vec![1; metadata]].concat()));
        packet.extend(length.to_be_bytes());
        packet
    }

    fn tls_auth(key: &hmac::Key) -> Vec<u8> {
        let (header, rest) = ([&[7 << 3][..], b"sessionx"].concat(), b"\0\0\0\x01timebody.");
        let tag = hmac::sign(key, &[&rest[..8], &header, &rest[8..]].concat());
        [&header, tag.as_ref(), rest].concat()
    }

    #[test]
    fn what_is_made_with_our_keys_passes_and_every_change_of_it_does_not() {
        let auth = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &[4; 20]);
        let auth = ([("SHA1", vec![4; 20])].to_vec(), tls_auth(&auth));
        let crypt = [("tls-crypt", static_key(9))].to_vec();
        let v2 = [("tls-crypt-v2", SERVER_KEY.to_vec())].to_vec();
        let both = [v2.clone(), crypt.clone()].concat();
        let cases = [
            auth,
            (crypt, tls_crypt(7, &static_key(9))),
            (v2.clone(), tls_crypt_v2(10, 9)),
            (v2.clone(), tls_crypt_v2(11, 0)),
            (both.clone(), tls_crypt(7, &static_key(9))),
            (both, tls_crypt_v2(10, 735 - 1)),
        ];
        let guard = |locks: &[(&str, Vec<u8>)]| {
            Guard::new(locks.iter().map(|(kind, key)| Lock::new(kind, key).unwrap()).collect())
        };
        for (locks, packet) in cases {
            let guard = guard(&locks);
            // Of what is wrapped each key is somebody's own.
            let is_own = WITH_WRAPPED_KEY.contains(&(packet[0] >> 3));
            assert!(guard.holder(&packet).is_some_and(|holder| is_own == (holder != ANYBODY)));
            for at in 0..packet.len() {
                let mut changed = packet.clone();
                changed[at] ^= 1;
                assert!(guard.holder(&changed).is_none(), "{at}");
                assert!(guard.holder(&packet[..at]).is_none(), "{at}");
            }
        }
        assert!(guard(&v2).holder(&tls_crypt_v2(4, 9)).is_none());
        assert!(Lock::new("tls-crypt", &[0; 255]).is_none() && Lock::new("MD5", &[0; 16]).is_none());
        assert!(Guard::default().holder(b"x") == Some(ANYBODY));
    }
}
