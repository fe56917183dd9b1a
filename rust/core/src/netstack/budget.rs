//! The memory that all connections share.

/// Bytes of ring buffers: how many there may be, and how many are given out.
pub struct Budget {
    limit: usize,
    used: usize,
}

/// The buffers of one connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub receive: usize,
    pub send: usize,
}

impl Share {
    pub fn total(self) -> usize {
        self.receive + self.send
    }
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { limit, used: 0 }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used
    }

    /// Buffers for one more connection beside `others`; `None` past the budget.
    ///
    /// Rings cannot grow later, so the share falls with the number of connections: the n-th gets
    /// 1/8n of the budget. The sum grows with the logarithm of n, which leaves all a lone stream
    /// can use and still something for hundreds.
    pub fn reserve(&mut self, others: usize) -> Option<Share> {
        let fair = (self.limit / (8 * (others + 1))).clamp(SMALLEST, LARGEST);
        let total = if fair <= self.limit.saturating_sub(self.used) { fair } else { SMALLEST };
        if self.used + total > self.limit {
            return None;
        }
        self.used += total;
        // Downloads outweigh uploads.
        let receive = total / 8 * 5;
        Some(Share { receive, send: total - receive })
    }

    pub fn release(&mut self, share: Share) {
        self.used -= share.total();
    }
}

const SMALLEST: usize = 32 * 1024;
const LARGEST: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gets_much_and_hundreds_fit() {
        let mut budget = Budget::new(64 << 20);
        let mut shares = Vec::new();
        while let Some(share) = budget.reserve(shares.len()) {
            shares.push(share);
        }
        assert!(shares[0].receive >= 4 << 20 && shares[0].send >= 2 << 20);
        assert!(shares[99].receive >= 48 << 10);
        assert!(shares.len() >= 600, "{}", shares.len());
        assert!(budget.used() <= budget.limit());
        shares.into_iter().for_each(|share| budget.release(share));
        assert_eq!(budget.used(), 0);
    }
}
