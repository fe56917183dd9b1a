use super::*;
use crate::packet::Pool;

const CIPHERS: [Cipher; 4] =
    [Cipher::Aes128Gcm, Cipher::Aes192Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
const LIMIT: u64 = (1 << 36) - 1;

fn material(seed: u8) -> [u8; MATERIAL_LEN] {
    std::array::from_fn(|index| seed ^ index as u8)
}

/// One side's two directions.
struct Epochs {
    sealer: Sealer,
    opener: Opener,
}

impl Epochs {
    fn new(encrypt: u8, decrypt: u8, cipher: Cipher) -> Epochs {
        let (sealer, opener) = super::pair(cipher, &material(encrypt), &material(decrypt));
        Epochs { sealer, opener }
    }
}

fn pair(cipher: Cipher) -> (Epochs, Epochs) {
    (Epochs::new(1, 2, cipher), Epochs::new(2, 1, cipher))
}

fn seal(epochs: &mut Epochs, content: &[u8]) -> Vec<u8> {
    let mut packet = Pool::new(1).local().packet_from(content);
    epochs.sealer.seal(&Header::v2(0, 5), &mut packet).unwrap();
    packet.to_vec()
}

fn open(epochs: &mut Epochs, datagram: &[u8]) -> Result<(Vec<u8>, bool), OpenError> {
    let mut pool = Pool::new(1).local();
    let opened = epochs.opener.open(&Header::v2(0, 5), datagram, 0, &mut pool);
    opened.map(|(packet, newest)| (packet.to_vec(), newest))
}

fn epoch(datagram: &[u8]) -> u16 {
    u16::from_be_bytes([datagram[4], datagram[5]])
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// RFC 5869, appendices A.1 to A.3, and OpenVPN's `test_crypto.c`.
#[test]
fn known_expansions() {
    let first = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5";
    let second = "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244";
    let third = "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04";
    let long: String = (0xb0..=0xff).map(|byte: u8| format!("{byte:02x}")).collect();
    for (secret, info, expected) in [
        (
            first,
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            second,
            &long,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09\
             da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (third, "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
        (
            first,
            "001b0e6f76706e20756e6974207465737400",
            "875a8eec18556380b8d933ed323c2df8e8eccf4972e683f06a83ac",
        ),
    ] {
        let mut output = vec![0; expected.len() / 2];
        expand(&hex(secret).try_into().unwrap(), &hex(info), &mut output);
        assert_eq!(output, hex(expected), "{info}");
    }
    let mut output = [0; 16];
    expand_label(&hex(first).try_into().unwrap(), b"unit test", &mut output);
    assert_eq!(output.to_vec(), hex("185eaa1c7f228ab8eb29773214d92046"));
}

/// OpenVPN's `test_crypto.c`, `epoch_test_derive_data_key`.
#[test]
fn a_known_key_of_an_epoch() {
    let mut bytes = [0; SECRET_LEN];
    bytes[..2].copy_from_slice(&[19, 12]);
    let (key, iv) = Secret { epoch: 17, bytes }.material(Cipher::Aes192Gcm);
    assert_eq!(key[..24].to_vec(), hex("ed8533db1c28ace418e9006ab29c17417d60ebe6cd90bf0a"));
    assert_eq!(key[24..], [0; MATERIAL_LEN - 24]);
    assert_eq!(iv.to_vec(), hex("86890aabf032cb59f4cfa34e"));
}

#[test]
fn what_is_sealed_opens_once() {
    for cipher in CIPHERS {
        let (mut left, mut right) = pair(cipher);
        for content in [&b""[..], b"one", &[7; 1500], &[9; 60_000]] {
            let datagram = seal(&mut left, content);
            assert_eq!(open(&mut right, &datagram).unwrap(), (content.to_vec(), true));
            assert_eq!(open(&mut right, &datagram), Err(OpenError::Replayed));
            let datagram = seal(&mut right, content);
            assert_eq!(open(&mut left, &datagram).unwrap().0, content);
        }
    }
}

#[test]
fn at_the_limit_a_new_epoch_begins_and_the_peer_follows() {
    let (mut left, mut right) = pair(Cipher::Aes256Gcm);
    left.sealer.wear(1, 1, LIMIT - 2);
    let late = seal(&mut left, b"last of the first");
    let first = seal(&mut left, b"first of the second");
    assert_eq!((epoch(&late), epoch(&first)), (1, 2));
    assert_eq!(epoch(&seal(&mut right, b"x")), 1);
    assert_eq!(open(&mut right, &first).unwrap(), (b"first of the second".to_vec(), true));
    assert_eq!(epoch(&seal(&mut right, b"x")), 2, "the peer sends in the new epoch too");
    assert_eq!(open(&mut right, &late).unwrap(), (b"last of the first".to_vec(), false), "N - 1");
    assert_eq!(open(&mut right, &late), Err(OpenError::Replayed));
    assert_eq!(open(&mut right, &first), Err(OpenError::Replayed));
}

#[test]
fn without_a_limit_only_the_packet_ids_end_an_epoch() {
    let (mut left, _) = pair(Cipher::ChaCha20Poly1305);
    left.sealer.wear(1, 1 << 40, 1 << 40);
    assert_eq!(epoch(&seal(&mut left, b"x")), 1);
    left.sealer.wear(1, MAX_ID - 1, 0);
    let last = seal(&mut left, b"x");
    assert_eq!(last[4..12], [0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(seal(&mut left, b"x")[4..12], [0, 2, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_receiver_follows_jumps_within_its_window() {
    let (mut left, mut right) = pair(Cipher::Aes128Gcm);
    let jump = |left: &mut Epochs, to| {
        left.sealer.wear(to, 0, 0);
        seal(left, b"x")
    };
    let second = jump(&mut left, 2);
    let fifth = jump(&mut left, 5);
    assert_eq!(open(&mut right, &jump(&mut left, 6)), Err(OpenError::NoKey), "five ahead");
    assert!(open(&mut right, &fifth).is_ok());
    assert_eq!(open(&mut right, &second), Err(OpenError::NoKey), "skipped");
    for to in (9..0xf000).step_by(4) {
        assert!(open(&mut right, &jump(&mut left, to)).is_ok(), "epoch {to}");
        assert_eq!(epoch(&seal(&mut right, b"x")), to);
    }
    assert!(!right.opener.is_worn() && !right.sealer.is_worn());
    assert!(open(&mut right, &jump(&mut left, 0xf001)).is_ok());
    assert!(right.opener.is_worn() && left.sealer.is_worn());
    seal(&mut right, b"x");
    assert!(right.sealer.is_worn());
}

#[test]
fn the_last_epochs_are_not_reached_and_nothing_wraps() {
    let (mut left, mut right) = pair(Cipher::Aes128Gcm);
    for to in (5..=u16::MAX - 6).step_by(4).chain([u16::MAX - 5]) {
        left.sealer.wear(to, 0, 0);
        assert!(open(&mut right, &seal(&mut left, b"x")).is_ok(), "epoch {to}");
    }
    for to in u16::MAX - 4..=u16::MAX {
        left.sealer.wear(to, 0, 0);
        assert_eq!(open(&mut right, &seal(&mut left, b"x")), Err(OpenError::NoKey));
    }
    left.sealer.wear(u16::MAX, MAX_ID - 1, u64::MAX / 2);
    seal(&mut left, b"x");
    let mut packet = Pool::new(1).local().packet_from(b"x");
    assert_eq!(left.sealer.seal(&Header::v2(0, 5), &mut packet), Err(Exhausted));
    assert_eq!(&packet[..], b"x");
}

#[test]
fn a_peer_that_overuses_its_key_is_asked_to_move() {
    let (mut left, mut right) = pair(Cipher::Aes128Gcm);
    right.opener.current.0.blocks = LIMIT;
    assert!(open(&mut right, &seal(&mut left, b"x")).is_ok(), "still taken");
    let pushing = seal(&mut right, b"x");
    assert_eq!(epoch(&pushing), 2);
    assert_eq!(epoch(&seal(&mut right, b"x")), 2, "but not more than one ahead");
    assert!(open(&mut left, &pushing).is_ok());
    assert_eq!(epoch(&seal(&mut left, b"x")), 2);
}

#[test]
fn forgeries_move_nothing() {
    let (mut left, mut right) = pair(Cipher::Aes256Gcm);
    left.sealer.wear(4, 6, 0);
    let datagram = seal(&mut left, b"content");
    for index in 4..datagram.len() {
        let mut forged = datagram.clone();
        forged[index] ^= 0x80;
        assert!(open(&mut right, &forged).is_err());
        assert!(open(&mut right, &datagram[..index]).is_err());
    }
    let mut zero = datagram.clone();
    zero[6..12].fill(0);
    assert_eq!(open(&mut right, &zero), Err(OpenError::Replayed));
    assert_eq!((right.opener.current.0.epoch, epoch(&seal(&mut right, b"x"))), (1, 1));
    assert!(open(&mut right, &datagram).is_ok());
}

#[test]
fn too_many_forgeries_end_a_key() {
    let (mut left, mut right) = pair(Cipher::ChaCha20Poly1305);
    let datagram = seal(&mut left, b"content");
    let mut forged = datagram.clone();
    forged[20] ^= 1;
    right.opener.current.0.failures = WORN_FAILURES;
    assert!(open(&mut right, &forged).is_err());
    assert_eq!(epoch(&seal(&mut right, b"x")), 2);
    right.opener.current.0.failures = MAX_FAILURES + 1;
    assert_eq!(open(&mut right, &datagram), Err(OpenError::NotAuthentic));
}
