//! The AEAD ciphers, by whichever library is the faster on this processor.

use aws_lc_rs::aead as aws;
use ring::aead as ring;

/// The bytes of key material for one direction, as in OpenVPN's `struct key`.
pub const MATERIAL_LEN: usize = 128;
pub const TAG_LEN: usize = 16;
pub const NONCE_LEN: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Aes128Gcm,
    Aes192Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    /// The cipher of this OpenVPN name, in any case.
    pub fn from_name(name: &str) -> Option<Cipher> {
        NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|&(_, cipher)| cipher)
    }

    /// How many blocks and packets one key may protect; `None` without such a limit.
    pub fn usage_limit(self) -> Option<u64> {
        match self {
            Cipher::Aes128Gcm | Cipher::Aes192Gcm | Cipher::Aes256Gcm => Some(GCM_USAGE_LIMIT),
            Cipher::ChaCha20Poly1305 => None,
        }
    }

    pub fn key_len(self) -> usize {
        self.of_aws().key_len()
    }

    /// The key at the front of this material.
    pub fn bind(self, material: &[u8; MATERIAL_LEN]) -> Key {
        match self.of_ring() {
            Some(algorithm) if ring_is_faster() => self.bind_ring(algorithm, material),
            _ => self.bind_aws(material),
        }
    }

    fn bind_ring(self, algorithm: &'static ring::Algorithm, material: &[u8; MATERIAL_LEN]) -> Key {
        let key = ring::UnboundKey::new(algorithm, &material[..self.key_len()]).expect("key of its length");
        Key(Library::Ring(ring::LessSafeKey::new(key)))
    }

    fn bind_aws(self, material: &[u8; MATERIAL_LEN]) -> Key {
        let key =
            aws::UnboundKey::new(self.of_aws(), &material[..self.key_len()]).expect("key of its length");
        Key(Library::Aws(aws::LessSafeKey::new(key)))
    }

    fn of_aws(self) -> &'static aws::Algorithm {
        match self {
            Cipher::Aes128Gcm => &aws::AES_128_GCM,
            Cipher::Aes192Gcm => &aws::AES_192_GCM,
            Cipher::Aes256Gcm => &aws::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &aws::CHACHA20_POLY1305,
        }
    }

    /// What ring has of these, and has faster.
    fn of_ring(self) -> Option<&'static ring::Algorithm> {
        match self {
            Cipher::Aes128Gcm => Some(&ring::AES_128_GCM),
            Cipher::Aes256Gcm => Some(&ring::AES_256_GCM),
            Cipher::Aes192Gcm | Cipher::ChaCha20Poly1305 => None,
        }
    }
}

/// A cipher with its key.
pub struct Key(Library);

#[allow(clippy::large_enum_variant)] // There are few keys, and each is used for every packet.
enum Library {
    Aws(aws::LessSafeKey),
    Ring(ring::LessSafeKey),
}

/// The tag is not that of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

impl Key {
    /// Encrypts a text in place, which must be shorter than 64 GiB, and returns its tag.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], authenticated: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        match &self.0 {
            Library::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                let made = key.seal_in_place_separate_tag(nonce, aws::Aad::from(authenticated), text);
                tag.copy_from_slice(made.expect(TOO_LONG).as_ref());
            }
            Library::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let made = key.seal_in_place_separate_tag(nonce, ring::Aad::from(authenticated), text);
                tag.copy_from_slice(made.expect(TOO_LONG).as_ref());
            }
        }
        tag
    }

    /// Decrypts into `text`, which is as long as `sealed` and worth nothing after an error.
    pub fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        authenticated: &[u8],
        sealed: &[u8],
        tag: &[u8; TAG_LEN],
        text: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        match &self.0 {
            Library::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, aws::Aad::from(authenticated), sealed, tag, text)
                    .map_err(|_| NotAuthentic)
            }
            Library::Ring(key) => {
                // It works in place alone; the copy costs a tenth of what it is faster by.
                text.copy_from_slice(sealed);
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let (aad, tag) = (ring::Aad::from(authenticated), ring::Tag::from(*tag));
                match key.open_in_place_separate_tag(nonce, aad, tag, text, 0..) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(NotAuthentic),
                }
            }
        }
    }
}

/// Whether this processor has VAES, which ring uses with AVX2, but not AVX-512, without which aws-lc does not.
/// Measured in `docs/benchmarks.md`.
fn ring_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

const NAMES: [(&str, Cipher); 4] = [
    ("AES-128-GCM", Cipher::Aes128Gcm),
    ("AES-192-GCM", Cipher::Aes192Gcm),
    ("AES-256-GCM", Cipher::Aes256Gcm),
    ("CHACHA20-POLY1305", Cipher::ChaCha20Poly1305),
];

/// Blocks and packets that keep an attacker's advantage under 2^-57 (draft-irtf-cfrg-aead-limits).
pub const GCM_USAGE_LIMIT: u64 = (1 << 36) - 1;

const TOO_LONG: &str = "a packet is shorter than any cipher's limit";

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];
    const MATERIAL: [u8; MATERIAL_LEN] = [0x42; MATERIAL_LEN];

    #[test]
    fn what_one_library_seals_the_other_opens() {
        for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
            let ring = cipher.bind_ring(cipher.of_ring().unwrap(), &MATERIAL);
            let aws = cipher.bind_aws(&MATERIAL);
            for len in (0..300).chain([1399, 1400, 1500, 9000, 65_000]) {
                let plain: Vec<u8> = (0..len).map(|index| (index * 7) as u8).collect();
                let (mut one, mut other) = (plain.clone(), plain.clone());
                let tag = ring.seal(NONCE, b"header", &mut one);
                assert_eq!(aws.seal(NONCE, b"header", &mut other), tag);
                assert_eq!(one, other);
                for key in [&ring, &aws] {
                    let mut text = vec![0; len];
                    assert_eq!(key.open(NONCE, b"header", &one, &tag, &mut text), Ok(()));
                    assert_eq!(text, plain);
                    let mut wrong = tag;
                    wrong[len % TAG_LEN] ^= 1;
                    assert_eq!(key.open(NONCE, b"header", &one, &wrong, &mut text), Err(NotAuthentic));
                    assert_eq!(key.open(NONCE, b"Header", &one, &tag, &mut text), Err(NotAuthentic));
                }
            }
        }
    }

    #[test]
    fn names_are_known_in_any_case() {
        assert_eq!(Cipher::from_name("aes-192-gcm"), Some(Cipher::Aes192Gcm));
        assert_eq!(Cipher::from_name("ChaCha20-Poly1305"), Some(Cipher::ChaCha20Poly1305));
        assert_eq!(Cipher::from_name("BF-CBC"), None);
    }
}
