//! A fuzzer's bytes as a source of numbers, zeros behind their end.

pub struct Seeded {
    bytes: std::vec::IntoIter<u8>,
}

impl Seeded {
    pub fn new(bytes: &[u8]) -> Seeded {
        Seeded { bytes: bytes.to_vec().into_iter() }
    }

    pub fn next(&mut self) -> u64 {
        self.byte().into()
    }

    /// Two bytes where one can't name them all.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = if limit > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (number + usize::from(self.byte())) % limit.max(1)
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    fn byte(&mut self) -> u8 {
        self.bytes.next().unwrap_or(0)
    }
}
