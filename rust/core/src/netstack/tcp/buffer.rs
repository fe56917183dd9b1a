//! Bytes by their position, in chunks that are there only while something is in them.

use std::collections::VecDeque;

use crate::netstack::budget::{Budget, CHUNK};
use crate::netstack::tcp::sequence::Position;

/// The bytes of one direction. The first chunk is part of the connection's floor, every other is
/// taken from the budget.
pub struct Buffer {
    chunks: VecDeque<Option<Box<[u8]>>>,
    /// Where the first chunk begins.
    base: Position,
    held: usize,
    budget: Budget,
}

impl Buffer {
    pub fn new(budget: Budget) -> Buffer {
        Buffer { chunks: VecDeque::new(), base: 0, held: 0, budget }
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// How many bytes can be written at `position`, if the budget stays as it is.
    pub fn room(&self, position: Position) -> usize {
        let rest = CHUNK - position as usize % CHUNK;
        if self.chunk(position).is_some() {
            rest + self.budget.free()
        } else if self.held == 0 {
            CHUNK
        } else if self.budget.free() >= CHUNK {
            self.budget.free()
        } else {
            0
        }
    }

    /// Copies `bytes` to `position`, and returns how many the budget had room for.
    pub fn write(&mut self, position: Position, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(space) = self.space(position + done as u64) else { break };
            let count = space.len().min(bytes.len() - done);
            space[..count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        done
    }

    /// The space from `position` on that lies in one piece.
    pub fn space(&mut self, position: Position) -> Option<&mut [u8]> {
        if self.chunks.is_empty() {
            self.base = position - position % CHUNK as u64;
        }
        while position < self.base {
            self.chunks.push_front(None);
            self.base -= CHUNK as u64;
        }
        let index = self.index(position)?;
        if self.chunks.get(index).is_none_or(|chunk| chunk.is_none()) {
            if self.held > 0 && !self.budget.take(CHUNK) {
                return None;
            }
            self.held += 1;
            if index >= self.chunks.len() {
                self.chunks.resize_with(index + 1, || None);
            }
            self.chunks[index] = Some(vec![0; CHUNK].into_boxed_slice());
        }
        self.chunks[index].as_mut().map(|chunk| &mut chunk[position as usize % CHUNK..])
    }

    /// The bytes from `position` on, up to `end`, that lie in one piece.
    pub fn piece(&self, position: Position, end: Position) -> &[u8] {
        let Some(chunk) = self.chunk(position) else { return &[] };
        let start = position as usize % CHUNK;
        let len = (CHUNK - start).min(end.saturating_sub(position) as usize);
        &chunk[start..start + len]
    }

    /// Copies the bytes from `position` on. All of them must have been written.
    pub fn copy(&self, position: Position, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = position + done as u64;
            let piece = self.piece(at, at + (into.len() - done) as u64);
            if piece.is_empty() {
                debug_assert!(false, "bytes that were never written");
                return;
            }
            into[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        }
    }

    /// Gives back the chunks before `position`.
    pub fn release(&mut self, position: Position) {
        while self.base + CHUNK as u64 <= position
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.base += CHUNK as u64;
            self.give_back(usize::from(chunk.is_some()));
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.chunks = VecDeque::new();
        self.give_back(self.held);
    }

    fn give_back(&mut self, count: usize) {
        let charged = self.held.saturating_sub(1);
        self.held -= count;
        self.budget.give((charged - self.held.saturating_sub(1)) * CHUNK);
    }

    fn chunk(&self, position: Position) -> Option<&[u8]> {
        self.chunks.get(self.index(position)?)?.as_deref()
    }

    fn index(&self, position: Position) -> Option<usize> {
        Some((position.checked_sub(self.base)? / CHUNK as u64) as usize)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_at_their_position_and_chunks_come_back() {
        let budget = Budget::new(3 * CHUNK);
        let mut buffer = Buffer::new(budget.clone());
        let start = 5 * CHUNK as u64 - 10;
        let bytes: Vec<u8> = (0..5 * CHUNK).map(|at| at as u8).collect();
        // One chunk is free, three are in the budget.
        assert_eq!(buffer.write(start, &bytes), 10 + 3 * CHUNK);
        assert_eq!((budget.free(), buffer.room(start + 10 + 3 * CHUNK as u64)), (0, 0));
        let mut copy = vec![0; 2 * CHUNK];
        buffer.copy(start + 3, &mut copy);
        assert!(copy == bytes[3..3 + 2 * CHUNK]);
        assert_eq!(buffer.piece(start, start + 1000), &bytes[..10]);
        buffer.release(start + 10);
        assert_eq!(budget.used(), 2 * CHUNK);
        drop(buffer);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_comes_later_may_stand_before() {
        let mut buffer = Buffer::new(Budget::new(10 * CHUNK));
        let far = 9 * CHUNK as u64 + 5;
        assert_eq!(buffer.write(far, b"far"), 3);
        assert_eq!(buffer.write(far - 3 * CHUNK as u64, b"near"), 4);
        assert_eq!(buffer.piece(far, far + 3), b"far");
        assert_eq!(
            buffer.piece(far - 3 * CHUNK as u64, far),
            [&b"near"[..], &[0; CHUNK][..CHUNK - 9]].concat()
        );
    }
}
