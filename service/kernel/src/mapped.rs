//! What is done to memory through a [`Mapping`]: typed words, and ranges of bytes where there is no
//! fd for pread(2) and pwrite(2) (System V segments) or no write(2) (huge pages).
//!
//! Other processes may change the memory at any moment, so ranges are copied word by word with
//! relaxed atomic operations: no byte is read twice, and nothing is assumed about what it holds.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::{io::Errno, mm::Advice};

use crate::{Error, Kind, Result, guard::Mapping, shape::Word};

/// How often an addition of floating-point numbers is tried against other writers.
const MAX_TRIES: usize = 100_000;

impl Mapping {
    pub fn load_word(&self, offset: usize, kind: Word) -> Result<Word> {
        Ok(kind.with_bits(self.load(offset, kind.width())?))
    }

    pub fn store_word(&self, offset: usize, value: Word) -> Result<()> {
        self.swap(offset, value.width(), value.bits()).map(drop)
    }

    /// Whether it was exchanged, and what was there. Numbers are compared by their bits.
    pub fn compare_exchange_word(
        &self,
        offset: usize,
        expected: Word,
        desired: Word,
    ) -> Result<(bool, Word)> {
        if std::mem::discriminant(&expected) != std::mem::discriminant(&desired) {
            return Err(Error::invalid("the expected and the desired value must be of the same type"));
        }
        let (done, found) =
            self.compare_exchange(offset, expected.width(), expected.bits(), desired.bits())?;
        Ok((done, expected.with_bits(found)))
    }

    /// Adds, and returns what was there.
    pub fn fetch_add_word(&self, offset: usize, value: Word) -> Result<Word> {
        let width = value.width();
        if !value.is_float() {
            return Ok(value.with_bits(self.fetch_add(offset, width, value.bits())?));
        }
        let mut found = self.load(offset, width)?;
        for _ in 0..MAX_TRIES {
            let sum = value.with_bits(found).wrapping_add(value);
            let (done, now) = self.compare_exchange(offset, width, found, sum.bits())?;
            if done {
                return Ok(value.with_bits(found));
            }
            found = now;
        }
        Err(Error::new(
            Kind::Busy,
            format!("another process changed the word {MAX_TRIES} times between reading and writing it"),
        ))
    }

    /// Sets memory aside for a range, or says that there is none, as no store could.
    pub fn populate(&self, offset: usize, length: usize) -> Result<()> {
        self.must_be_writable()?;
        let page = rustix::param::page_size();
        let first = offset - offset % page;
        self.advise(first, offset.saturating_add(length).saturating_sub(first), Advice::LinuxPopulateWrite)
    }

    /// Gives the memory of a range back; it reads as zeros then.
    pub fn remove(&self, offset: usize, length: usize) -> Result<()> {
        let page = rustix::param::page_size();
        let end = offset.saturating_add(length);
        // Pages as a whole; the rest is written.
        let (first, last) = (offset.next_multiple_of(page).min(end), (end - end % page).max(offset));
        if first >= last {
            return self.write_bytes(offset, &vec![0; length]);
        }
        self.write_bytes(offset, &vec![0; first - offset])?;
        self.advise(first, last - first, Advice::LinuxRemove)?;
        self.write_bytes(last, &vec![0; end - last])
    }

    fn advise(&self, offset: usize, length: usize, advice: Advice) -> Result<()> {
        let start = self.range(offset, length)?;
        // SAFETY: a range of this mapping, which nobody refers to but by atomic operations: what is
        // given back reads as zeros, and what is populated is not changed.
        unsafe { rustix::mm::madvise(start.cast(), length, advice) }.map_err(|errno| match errno {
            Errno::FAULT => Error::new(
                Kind::Gone,
                "the memory was truncated by another process while it was in use (EFAULT)",
            ),
            Errno::INVAL => Error::not_supported(
                "the kernel cannot do this with memory of this kind (madvise(2), EINVAL)",
            ),
            errno => Error::from_errno(errno, format!("act on {length} bytes of memory (madvise(2))")),
        })
    }

    /// Copies a range out of the memory.
    pub fn read_bytes(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let from = self.range(offset, data.len())?;
        let (head, words) = by_words(from, data.len());
        let (first, rest) = data.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(words * 8);
        let byte = |at: usize| {
            // SAFETY: within the range that was checked; the memory is only touched atomically.
            unsafe { AtomicU8::from_ptr(from.add(at)) }.load(Ordering::Relaxed)
        };
        first.iter_mut().enumerate().for_each(|(n, to)| *to = byte(n));
        for (n, to) in middle.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: as above; `head` bytes were skipped so that the words are aligned.
            let word = unsafe { AtomicU64::from_ptr(from.add(head + n * 8).cast()) };
            *to = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        last.iter_mut().enumerate().for_each(|(n, to)| *to = byte(head + words * 8 + n));
        self.must_be_whole()
    }

    /// Copies a range into the memory.
    pub fn write_bytes(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.must_be_writable()?;
        let to = self.range(offset, data.len())?;
        let (head, words) = by_words(to, data.len());
        let (first, rest) = data.split_at(head);
        let (middle, last) = rest.split_at(words * 8);
        let store = |at: usize, byte: u8| {
            // SAFETY: within the range that was checked; the memory is only touched atomically.
            unsafe { AtomicU8::from_ptr(to.add(at)) }.store(byte, Ordering::Relaxed);
        };
        first.iter().enumerate().for_each(|(n, byte)| store(n, *byte));
        for (n, bytes) in middle.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: as above; `head` bytes were skipped so that the words are aligned.
            let word = unsafe { AtomicU64::from_ptr(to.add(head + n * 8).cast()) };
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        last.iter().enumerate().for_each(|(n, byte)| store(head + words * 8 + n, *byte));
        self.must_be_whole()
    }
}

/// How a range falls into bytes and aligned words of eight; what is left are bytes again.
fn by_words(start: *mut u8, length: usize) -> (usize, usize) {
    let head = start.align_offset(8).min(length);
    (head, (length - head) / 8)
}
