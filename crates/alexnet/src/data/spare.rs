//! Buffers that are used again. Memory that is new to a process costs a page fault every 4 KiB, and a picture of half a
//! megabyte has more than a hundred.

/// Most bytes that are kept.
const KEPT_BYTES: usize = 16 << 20;

/// Buffers that nobody needs at the moment; one a thread.
#[derive(Debug, Default)]
pub(super) struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spare {
    /// A buffer with room for `len` bytes: the smallest that has it, else a new one. What is in it, and how long it is, is
    /// arbitrary.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let fits = self.buffers.iter().enumerate().filter(|(_, b)| b.capacity() >= len);
        match fits.min_by_key(|(_, b)| b.capacity()).map(|(i, _)| i) {
            Some(i) => {
                let buffer = self.buffers.swap_remove(i);
                self.bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(len),
        }
    }

    /// A buffer of `len` bytes, whatever they are.
    pub fn take_filled(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.take(len);
        buffer.resize(len, 0);
        buffer
    }

    /// Keeps a buffer; the smallest ones go when there are too many bytes.
    pub fn give(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() == 0 || buffer.capacity() > KEPT_BYTES {
            return;
        }
        self.bytes += buffer.capacity();
        self.buffers.push(buffer);
        while self.bytes > KEPT_BYTES {
            let smallest = (0..self.buffers.len()).min_by_key(|&i| self.buffers[i].capacity());
            let Some(smallest) = smallest else { break };
            self.bytes -= self.buffers.swap_remove(smallest).capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_their_bytes_are_bounded() {
        let mut spare = Spare::default();
        for bytes in [100, 1000, 10] {
            spare.give(vec![7; bytes]);
        }
        assert_eq!(spare.take(50).capacity(), 100);
        assert_eq!(spare.take(50).capacity(), 1000);
        assert_eq!(spare.take_filled(20), [0; 20]);
        assert_eq!((spare.take_filled(10), spare.bytes), (vec![7; 10], 0));
        spare.give(Vec::with_capacity(KEPT_BYTES + 1));
        assert_eq!(spare.bytes, 0);
        for _ in 0..100 {
            spare.give(Vec::with_capacity(KEPT_BYTES / 10));
        }
        spare.give(vec![1]);
        assert!(spare.bytes <= KEPT_BYTES && spare.buffers.len() >= 9);
    }
}
