//! TCP's options (RFC 9293, 3.2; RFC 2018; RFC 7323).

use crate::netstack::tcp::sequence::Position;

/// The options of a segment that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub most_payload: Option<u16>,
    pub window_shift: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<Timestamps>,
    /// Left and right edges; the first `sack_count` are in use.
    sacks: [(u32, u32); MOST_SACKS],
    sack_count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    pub value: u32,
    pub echo: u32,
}

impl Options {
    /// Reads options as far as they make sense.
    pub fn parse(mut bytes: &[u8]) -> Options {
        let mut options = Options::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                END => break,
                PADDING => bytes = rest,
                kind => {
                    let Some(len) = rest.first().map(|len| usize::from(*len)) else { break };
                    let Some(data) = bytes.get(2..len) else { break };
                    options.take(kind, data);
                    bytes = &bytes[len..];
                }
            }
        }
        options
    }

    pub fn sacks(&self) -> &[(u32, u32)] {
        &self.sacks[..self.sack_count]
    }

    fn take(&mut self, kind: u8, data: &[u8]) {
        match (kind, data) {
            (MOST_PAYLOAD, &[high, low]) => self.most_payload = Some(u16::from_be_bytes([high, low])),
            (WINDOW_SHIFT, &[shift]) => self.window_shift = Some(shift.min(MOST_SHIFT)),
            (SACK_PERMITTED, []) => self.sack_permitted = true,
            (SACK, edges) => {
                for block in edges.chunks_exact(8).take(MOST_SACKS) {
                    self.sacks[self.sack_count.min(MOST_SACKS - 1)] = (number(block), number(&block[4..]));
                    self.sack_count = (self.sack_count + 1).min(MOST_SACKS);
                }
            }
            (TIMESTAMPS, data) if data.len() == 8 => {
                self.timestamps = Some(Timestamps { value: number(data), echo: number(&data[4..]) });
            }
            _ => {}
        }
    }
}

/// Options on their way out, padded to whole words.
pub struct Writer {
    bytes: [u8; MOST_BYTES],
    len: usize,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { bytes: [0; MOST_BYTES], len: 0 }
    }
}

impl Writer {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn most_payload(&mut self, len: u16) {
        self.put(&[MOST_PAYLOAD, 4]);
        self.put(&len.to_be_bytes());
    }

    pub fn window_shift(&mut self, shift: u8) {
        self.put(&[PADDING, WINDOW_SHIFT, 3, shift]);
    }

    pub fn sack_permitted(&mut self) {
        self.put(&[PADDING, PADDING, SACK_PERMITTED, 2]);
    }

    pub fn timestamps(&mut self, Timestamps { value, echo }: Timestamps) {
        self.put(&[PADDING, PADDING, TIMESTAMPS, 10]);
        self.put(&value.to_be_bytes());
        self.put(&echo.to_be_bytes());
    }

    /// As many of the blocks as there is space for.
    pub fn sacks(&mut self, blocks: &[(Position, Position)], wire: impl Fn(Position) -> u32) {
        let count = blocks.len().min((MOST_BYTES - self.len).saturating_sub(4) / 8);
        if count == 0 {
            return;
        }
        self.put(&[PADDING, PADDING, SACK, 2 + 8 * count as u8]);
        for (start, end) in &blocks[..count] {
            self.put(&wire(*start).to_be_bytes());
            self.put(&wire(*end).to_be_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes"))
}

pub const TIMESTAMPS_LEN: usize = 12;
pub const MOST_SACKS: usize = 4;
const MOST_SHIFT: u8 = 14;
const MOST_BYTES: usize = 40;
const END: u8 = 0;
const PADDING: u8 = 1;
const MOST_PAYLOAD: u8 = 2;
const WINDOW_SHIFT: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.most_payload(1460);
        writer.sack_permitted();
        writer.timestamps(Timestamps { value: 7, echo: 8 });
        writer.window_shift(9);
        let options = Options::parse(writer.bytes());
        assert_eq!((options.most_payload, options.window_shift), (Some(1460), Some(9)));
        assert!(options.sack_permitted && writer.len() % 4 == 0);
        let mut writer = Writer::default();
        writer.timestamps(Timestamps { value: 7, echo: 8 });
        writer.sacks(&[(1, 2), (3, 4), (5, 6), (7, 8)], |position| position as u32);
        let options = Options::parse(writer.bytes());
        assert_eq!(options.timestamps, Some(Timestamps { value: 7, echo: 8 }));
        assert_eq!(options.sacks(), [(1, 2), (3, 4), (5, 6)]);
    }

    #[test]
    fn lengths_that_lie_end_the_options() {
        for bytes in [&[5u8, 0][..], &[5, 1], &[5], &[8, 11, 1, 1], &[2, 4, 1], &[3, 2, 3, 3, 99]] {
            let options = Options::parse(bytes);
            assert_eq!((options.timestamps, options.most_payload, options.sacks().len()), (None, None, 0));
        }
        assert_eq!(Options::parse(&[3, 3, 200]).window_shift, Some(14));
    }
}
