//! The cipher of tls-crypt, for control packets and for wrapped keys.
//!
//! An HMAC-SHA256 of what is in clear and of the plain text is the tag, and its first half the counter at which
//! AES-256-CTR starts. Source: `tls_crypt.c` of OpenVPN.

use aws_lc_rs::cipher::{AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

pub const KEY_LEN: usize = 32;
pub const TAG_LEN: usize = 32;

/// A key for one direction.
pub struct ControlCipher {
    cipher: DecryptingKey,
    mac: hmac::Key,
}

impl ControlCipher {
    pub fn new(cipher: &[u8; KEY_LEN], mac: &[u8; KEY_LEN]) -> ControlCipher {
        let key = UnboundCipherKey::new(&AES_256, cipher).expect("a key of its length");
        ControlCipher {
            cipher: DecryptingKey::ctr(key).expect("a block cipher"),
            mac: hmac::Key::new(hmac::HMAC_SHA256, mac),
        }
    }

    /// The tag and the body's ciphertext. `head` is what goes in clear, and is not repeated.
    pub fn seal(&self, head: &[u8], body: &[u8]) -> Vec<u8> {
        let tag = self.tag(head, body);
        let mut sealed = Vec::with_capacity(TAG_LEN + body.len());
        sealed.extend_from_slice(tag.as_ref());
        sealed.extend_from_slice(body);
        self.count(tag.as_ref(), &mut sealed[TAG_LEN..]);
        sealed
    }

    /// The body of what [`ControlCipher::seal`] made; `None` if it was made otherwise, or with another head.
    pub fn open(&self, head: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (tag, body) = sealed.split_at_checked(TAG_LEN)?;
        let mut body = body.to_vec();
        self.count(tag, &mut body);
        verify_slices_are_equal(tag, self.tag(head, &body).as_ref()).ok()?;
        Some(body)
    }

    fn tag(&self, head: &[u8], body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(head);
        context.update(body);
        context.sign()
    }

    /// In counter mode either direction is the same.
    fn count(&self, tag: &[u8], text: &mut [u8]) {
        let start = *tag.first_chunk::<COUNTER_LEN>().expect("a whole tag");
        let context = DecryptionContext::Iv128(FixedLength::from(start));
        self.cipher.decrypt(text, context).expect("any length fits");
    }
}

const COUNTER_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let cipher = ControlCipher::new(&[1; KEY_LEN], &[2; KEY_LEN]);
        for len in [0, 1, 15, 16, 17, 1200] {
            let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let sealed = cipher.seal(b"head", &body);
            assert_eq!(cipher.open(b"head", &sealed), Some(body));
            assert_eq!(cipher.open(b"tail", &sealed), None);
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert_eq!(cipher.open(b"head", &changed), None);
            }
            assert_eq!(cipher.open(b"head", &sealed[..TAG_LEN - 1]), None);
        }
    }
}
