//! One direction of the relay: what was read, how far it was decided on, and what is to be written.
//!
//! The bytes that pass are written from the buffer into which they were read, as the longest run that needs no change;
//! what we say ourselves stands in a second buffer and is gathered in between (one vectored write). The read buffer is
//! reused only when everything decided on has been written, which is the back-pressure: at most one buffer of one
//! direction is in memory, whatever the size of a message.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use crate::net::Stream;
use crate::wire::{Header, Malformed};

/// The buffer that a direction starts with, in bytes.
pub const BUFFER_LEN: usize = 8 * 1024;
/// The buffer of a direction in which full reads follow one another.
pub const BULK_BUFFER_LEN: usize = 256 * 1024;
/// Bytes of written messages that are kept at most.
const KEPT_MAX: usize = BUFFER_LEN / 2;
/// Slices gathered into one write at most.
const SLICES_MAX: usize = 16;
/// Bytes of several pieces that are copied into one slice: less than the kernel takes for looking at several.
const COPIED_MAX: usize = 512;

#[derive(Debug, Clone)]
enum Piece {
    /// Bytes of the read buffer.
    Read(Range<usize>),
    /// Bytes of ours.
    Own(Range<usize>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Read(range) | Self::Own(range) => range.len(),
        }
    }

    const fn range(&mut self) -> &mut Range<usize> {
        match self {
            Self::Read(range) | Self::Own(range) => range,
        }
    }
}

/// What happens to the rest of a message that is longer than what has arrived of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It is passed on.
    Pass,
    /// It is thrown away.
    Skip,
}

/// Bytes on their way from one peer to the other.
#[derive(Debug)]
pub struct Flow {
    read: BytesMut,
    /// Bytes of `read` that were decided on.
    decided: usize,
    own: BytesMut,
    pieces: VecDeque<Piece>,
    /// Bytes of the message at hand that have not arrived yet, and their fate.
    rest: (usize, Rest),
    full_reads: u32,
    /// Written, and not yet known to have left the TLS layer.
    unflushed: bool,
    written: u64,
    mark: Option<usize>,
    /// What was decided from here on stays in the buffer, for [`Self::say_again`].
    kept: Option<usize>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            read: BytesMut::new(),
            decided: 0,
            own: BytesMut::new(),
            pieces: VecDeque::new(),
            rest: (0, Rest::Pass),
            full_reads: 0,
            unflushed: false,
            written: 0,
            mark: None,
            kept: None,
        }
    }
}

impl Flow {
    /// As new, but for its buffers, which are kept unless they were made for bulk.
    #[inline]
    pub(super) fn recycle(&mut self) {
        for buffer in [&mut self.read, &mut self.own] {
            buffer.clear();
            if buffer.capacity() > BUFFER_LEN {
                *buffer = BytesMut::new();
            }
        }
        self.pieces.clear();
        self.decided = 0;
        self.rest = (0, Rest::Pass);
        self.full_reads = 0;
        self.unflushed = false;
        self.written = 0;
        self.mark = None;
        self.kept = None;
    }

    /// Bytes that arrived and were not decided on.
    pub fn undecided(&self) -> &[u8] {
        self.read.get(self.decided..).unwrap_or_default()
    }

    /// Nothing waits to be written.
    pub fn is_written(&self) -> bool {
        self.pieces.is_empty() && !self.unflushed
    }

    /// Bytes of ours that were said since everything was last written.
    pub fn said_len(&self) -> usize {
        self.own.len()
    }

    /// Nothing waits anywhere: no half message, no byte to decide on, nothing to write.
    pub fn is_empty(&self) -> bool {
        self.is_written() && self.undecided().is_empty() && self.rest.0 == 0
    }

    /// The peer has been given part of a message whose rest has not come: nothing else may be said to it.
    pub fn is_amid_message(&self) -> bool {
        self.rest.0 > 0 && self.rest.1 == Rest::Pass
    }

    /// What has not arrived of the message at hand is decided on already.
    pub const fn is_amid_rest(&self) -> bool {
        self.rest.0 > 0
    }

    /// Bytes written since the last call.
    pub fn take_written(&mut self) -> u64 {
        std::mem::take(&mut self.written)
    }

    /// The header of the next message, once its five bytes are there and the one before has ended.
    pub fn next_header(&mut self) -> Result<Option<Header>, Malformed> {
        self.continue_rest();
        if self.rest.0 > 0 {
            return Ok(None);
        }
        Header::peek(self.undecided())
    }

    /// The body of the message whose header was peeked, if all of it has arrived.
    pub fn whole_body(&self, header: Header) -> Option<&[u8]> {
        self.undecided().get(crate::wire::HEADER_LEN..header.frame_len())
    }

    /// What has arrived of the body of the message whose header was peeked.
    pub fn body_prefix(&self, header: Header) -> &[u8] {
        let end = header.frame_len().min(self.undecided().len());
        self.undecided().get(crate::wire::HEADER_LEN..end).unwrap_or_default()
    }

    /// Passes the message on as it is; what has not arrived follows by itself.
    pub fn pass(&mut self, header: Header) {
        self.decide(header.frame_len(), Rest::Pass);
    }

    /// Throws the message away.
    pub fn skip(&mut self, header: Header) {
        self.decide(header.frame_len(), Rest::Skip);
    }

    /// Says `own` in place of the message's first `replaced` bytes and passes its rest on.
    pub fn pass_behind(&mut self, header: Header, replaced: usize, own: impl FnOnce(&mut BytesMut)) {
        self.decided += replaced;
        self.say(own);
        self.decide(header.frame_len() - replaced, Rest::Pass);
    }

    /// Everything that was read and not decided on, where it begins with a message.
    pub fn whole_messages(&self) -> Option<&[u8]> {
        (self.rest.0 == 0).then(|| self.undecided())
    }

    /// Passes on everything that was read, which ends with a message.
    pub fn pass_all(&mut self) {
        self.push_read(self.decided..self.read.len());
        self.decided = self.read.len();
    }

    /// The same with `own` in place of its first `replaced` bytes: in one piece, if it is little.
    pub fn pass_all_behind(&mut self, replaced: usize, own: impl FnOnce(&mut BytesMut)) {
        let start = self.own.len();
        own(&mut self.own);
        let passed = self.decided + replaced..self.read.len();
        self.decided = self.read.len();
        let is_little = self.own.len() - start + passed.len() <= COPIED_MAX;
        if is_little {
            self.own
                .extend_from_slice(self.read.get(passed.clone()).unwrap_or_default());
        }
        self.pieces.push_back(Piece::Own(start..self.own.len()));
        if !is_little {
            self.push_read(passed);
        }
    }

    /// Says something of ours behind everything decided so far.
    pub fn say(&mut self, own: impl FnOnce(&mut BytesMut)) {
        let start = self.own.len();
        own(&mut self.own);
        let end = self.own.len();
        match self.pieces.back_mut() {
            Some(Piece::Own(range)) if range.end == start => range.end = end,
            _ if start == end => {}
            _ => self.pieces.push_back(Piece::Own(start..end)),
        }
    }

    /// Takes up bytes that were read elsewhere, before anything else.
    pub fn preload(&mut self, bytes: &[u8]) {
        self.read.extend_from_slice(bytes);
    }

    /// The next message has not arrived whole (or at all), so that nothing can be done for it yet.
    pub fn next_is_incomplete(&self) -> bool {
        self.rest.0 == 0
            && match Header::peek(self.undecided()) {
                Ok(Some(header)) => self.undecided().len() < header.frame_len(),
                Ok(None) => true,
                Err(_) => false,
            }
    }

    /// Remembers this point, between two messages, for [`Self::rewind`].
    pub fn mark(&mut self) {
        self.mark = Some(self.decided);
    }

    /// Undoes every decision since the mark, if nothing was written or thrown away since.
    pub fn rewind(&mut self) -> bool {
        let Some(mark) = self.mark.take() else {
            return false;
        };
        self.decided = mark;
        self.pieces.clear();
        self.own.clear();
        self.rest = (0, Rest::Pass);
        true
    }

    /// Keeps the messages from here on, though they are written, as long as they are few.
    pub const fn keep(&mut self) {
        self.kept = Some(self.decided);
    }

    /// What was kept is not needed any more.
    pub const fn keep_nothing(&mut self) {
        self.kept = None;
    }

    /// Everything that was kept has been written whole, and can be decided on again.
    pub fn can_say_again(&self) -> bool {
        self.kept.is_some() && self.is_written() && self.rest.0 == 0
    }

    /// What was kept is to be decided on again.
    pub fn say_again(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.decided = kept;
        }
    }

    /// Takes what was read and not decided on, as whole messages: what is missing of a half decided one is announced as
    /// a notice, which nobody has to answer.
    pub fn hand_over(&mut self) -> BytesMut {
        let mut unread = BytesMut::new();
        if self.rest.0 > 0 {
            let len = u32::try_from(self.rest.0 + 4).unwrap_or(u32::MAX);
            unread.extend_from_slice(&[crate::wire::BackendTag::NoticeResponse.byte()]);
            unread.extend_from_slice(&len.to_be_bytes());
        }
        unread.extend_from_slice(self.undecided());
        self.forget_undecided();
        unread
    }

    /// The peer written to is gone: what waits for it is thrown away, and the rest of a half passed message with it.
    pub fn forget_pieces(&mut self) {
        self.pieces.clear();
        self.own.clear();
        self.unflushed = false;
        self.mark = None;
        self.kept = None;
        self.rest.1 = Rest::Skip;
    }

    /// The peer read from is gone: what it said and was not decided on is thrown away.
    pub fn forget_undecided(&mut self) {
        self.decided = self.read.len();
        self.rest = (0, Rest::Pass);
    }

    fn decide(&mut self, len: usize, fate: Rest) {
        let here = len.min(self.read.len() - self.decided);
        if fate == Rest::Pass {
            self.push_read(self.decided..self.decided + here);
        }
        self.decided += here;
        self.rest = (len - here, fate);
    }

    fn continue_rest(&mut self) {
        if let (len @ 1.., fate) = self.rest {
            self.decide(len, fate);
        }
    }

    fn push_read(&mut self, run: Range<usize>) {
        match self.pieces.back_mut() {
            _ if run.is_empty() => {}
            Some(Piece::Read(range)) if range.end == run.start => range.end = run.end,
            _ => self.pieces.push_back(Piece::Read(run)),
        }
    }

    /// Reads once into the buffer, which has room for a message of `whole` bytes that must be read as one (0: none). The
    /// rest of a message at hand is decided on with what follows it, by [`Self::next_header`], to be written with it.
    /// Must not be called while something waits to be written. Ready with 0 at the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut Stream, whole: usize) -> Poll<std::io::Result<usize>> {
        self.make_room(whole);
        let room = self.read.capacity() - self.read.len();
        let count = ready!(from.poll_read(cx, &mut self.read))?;
        self.full_reads = if count == room { self.full_reads + 1 } else { 0 };
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self, whole: usize) {
        debug_assert!(self.pieces.is_empty());
        self.mark = None;
        self.kept = self.kept.filter(|kept| self.read.len() - kept <= KEPT_MAX);
        let start = self.kept.unwrap_or(self.decided);
        if start == self.read.len() {
            self.read.clear();
        } else if start > 0 {
            let tail = self.read.len() - start;
            self.read.copy_within(start.., 0);
            self.read.truncate(tail);
        }
        self.decided -= start;
        self.kept = self.kept.map(|_| 0);
        let floor = if self.full_reads >= 2 {
            BULK_BUFFER_LEN
        } else {
            BUFFER_LEN
        };
        let wanted = floor.max(self.decided + whole);
        if self.read.capacity() < wanted || self.read.capacity() == self.read.len() {
            let missing = wanted.max(self.read.len() + 1) - self.read.len();
            self.read.reserve(missing);
        }
    }

    /// Writes what waits. Ready when all of it is with the kernel (or, over TLS, with the kernel too: it is flushed).
    pub fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<std::io::Result<()>> {
        if self.is_written() {
            return Poll::Ready(Ok(()));
        }
        while let Some(first) = self.pieces.front() {
            let (count, len) = match self.pieces.len() {
                1 => (ready!(to.poll_write(cx, self.bytes_of(first)))?, first.len()),
                _ => (ready!(self.poll_write_pieces(cx, to))?, usize::MAX),
            };
            if count == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            if count == len {
                // All of it, as nearly always.
                self.written += count as u64;
                self.mark = None;
                self.pieces.clear();
            } else {
                self.advance(count);
            }
        }
        self.own.clear();
        self.unflushed = true;
        ready!(to.poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_write_pieces(&self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<std::io::Result<usize>> {
        let len = self.pieces.iter().map(Piece::len).sum::<usize>();
        if len <= COPIED_MAX {
            return self.poll_write_copied(cx, to);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(self.bytes_of(piece));
            used += 1;
        }
        to.poll_write_vectored(cx, slices.get(..used).unwrap_or_default())
    }

    fn poll_write_copied(&self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<std::io::Result<usize>> {
        let mut copied = [0; COPIED_MAX];
        let mut len = 0;
        for piece in &self.pieces {
            let bytes = self.bytes_of(piece);
            if let Some(room) = copied.get_mut(len..len + bytes.len()) {
                room.copy_from_slice(bytes);
                len += bytes.len();
            }
        }
        to.poll_write(cx, copied.get(..len).unwrap_or_default())
    }

    fn bytes_of(&self, piece: &Piece) -> &[u8] {
        let bytes = match piece {
            Piece::Read(range) => self.read.get(range.start..range.end),
            Piece::Own(range) => self.own.get(range.start..range.end),
        };
        bytes.unwrap_or_default()
    }

    fn advance(&mut self, mut count: usize) {
        self.written += count as u64;
        self.mark = None;
        while let Some(piece) = self.pieces.front_mut() {
            let range = piece.range();
            let step = count.min(range.len());
            range.start += step;
            count -= step;
            if range.start < range.end {
                break;
            }
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::wire::compose;

    /// Passes on every message that has arrived, as the walks do.
    fn pass_what_arrived(flow: &mut Flow) {
        while let Some(header) = flow.next_header().unwrap() {
            flow.pass(header);
        }
    }

    #[tokio::test]
    async fn the_rest_of_a_message_goes_out_with_what_follows_it() {
        let mut rows = BytesMut::new();
        for _ in 0..3 {
            compose::frame(&mut rows, b'D', &[&[b'x'; 100]]);
        }
        let (mut said, mut heard) = Stream::pair().unwrap();
        let (mut sent, mut got) = Stream::pair().unwrap();
        let mut flow = Flow::default();
        let (first, second) = rows.split_at(50);
        for (bytes, written) in [(first, 50), (second, second.len())] {
            said.write_all(bytes).await.unwrap();
            poll_fn(|cx| flow.poll_read(cx, &mut heard, 0)).await.unwrap();
            assert!(
                flow.is_written(),
                "nothing is written ahead of the walk over all that has come"
            );
            pass_what_arrived(&mut flow);
            assert_eq!(flow.pieces.len(), 1);
            poll_fn(|cx| flow.poll_write(cx, &mut sent)).await.unwrap();
            assert_eq!(flow.take_written(), written as u64);
        }
        assert!(flow.is_empty());
        let mut all = BytesMut::with_capacity(1024);
        while all.len() < rows.len() {
            got.read_buf(&mut all).await.unwrap();
        }
        assert_eq!(all, rows);
    }
}
