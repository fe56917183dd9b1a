//! The header before each datagram between a SOCKS5 client and its relay (RFC 1928, section 7).

/// What stands behind the header; `None` for a fragment, and for what is malformed.
pub fn payload(datagram: &[u8]) -> Option<&[u8]> {
    let (&[0, 0, 0, kind, first], _) = datagram.split_first_chunk()? else { return None };
    let address = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => 1 + usize::from(first),
        _ => return None,
    };
    datagram.get(BEFORE_ADDRESS + address + PORT..)
}

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// Two bytes that are zero, the fragment's number, and which sort of address follows.
const BEFORE_ADDRESS: usize = 4;
const PORT: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn relayed(kind: u8, address: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, kind], address, &[4, 170], b"content"].concat()
    }

    #[test]
    fn every_sort_of_address_is_passed_over() {
        let name: Vec<u8> = [&[11], b"vpn.example".as_slice()].concat();
        for (kind, address) in [(IPV4, &[192, 0, 2, 1][..]), (IPV6, &[7; 16]), (NAME, &name)] {
            assert_eq!(payload(&relayed(kind, address)), Some(&b"content"[..]), "{kind}");
        }
    }

    #[test]
    fn a_datagram_may_be_empty_but_its_header_must_be_whole() {
        let whole = relayed(IPV6, &[7; 16]);
        for end in 0..whole.len() {
            let expected = (end >= 22).then(|| &whole[22.min(end)..end]);
            assert_eq!(payload(&whole[..end]), expected, "{end}");
        }
    }

    #[test]
    fn fragments_and_unknown_sorts_are_nothing() {
        for (at, value) in [(0, 1), (1, 1), (2, 1), (2, 0x80), (3, 0), (3, 2), (3, 5)] {
            let mut datagram = relayed(IPV4, &[192, 0, 2, 1]);
            datagram[at] = value;
            assert_eq!(payload(&datagram), None, "{at} {value}");
        }
    }
}
