//! A set of ASCII words that is looked up case-insensitively, without allocation and without a lock.
//!
//! The tables (keywords, PostgreSQL's own functions) are built by the compiler: a lookup costs a hash of the word and,
//! nearly always, at most one comparison, which is what lets every identifier of every statement be looked up.

/// A fixed set of lower-case words, each known by its position in the list it was built from.
#[derive(Debug)]
pub struct WordTable<const SLOTS: usize> {
    words: &'static [&'static str],
    /// Position + 1 of the word that hashes here; 0 is a free slot, at which a search ends.
    slots: [u16; SLOTS],
}

impl<const SLOTS: usize> WordTable<SLOTS> {
    /// Builds the table; meant for `const` and `static` items. `SLOTS` is a power of two above the number of words, so
    /// that a free slot ends every search; a list that breaks this does not compile.
    pub const fn new(words: &'static [&'static str]) -> Self {
        assert!(SLOTS.is_power_of_two() && words.len() * 5 < SLOTS * 4 && words.len() < u16::MAX as usize);
        let mut slots = [0_u16; SLOTS];
        let mut index = 0;
        while index < words.len() {
            let mut slot = word_hash(words[index].as_bytes()) as usize & (SLOTS - 1);
            while slots[slot] != 0 {
                slot = (slot + 1) & (SLOTS - 1);
            }
            slots[slot] = index as u16 + 1;
            index += 1;
        }
        Self { words, slots }
    }

    /// Where `word` stands in the list, compared without regard to ASCII case.
    pub fn position(&self, word: &[u8]) -> Option<usize> {
        let mut slot = word_hash(word) as usize & (SLOTS - 1);
        loop {
            let index = usize::from(self.slots[slot]).checked_sub(1)?;
            if self.words[index].as_bytes().eq_ignore_ascii_case(word) {
                return Some(index);
            }
            slot = (slot + 1) & (SLOTS - 1);
        }
    }
}

/// A hash that does not tell `a` from `A`, of eight bytes at a time. Not keyed: for tables that no peer can fill.
pub const fn word_hash(word: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = word.len() as u64;
    let mut rest = word;
    while let Some((chunk, tail)) = rest.split_first_chunk::<8>() {
        hash = (hash ^ fold(u64::from_le_bytes(*chunk))).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
        rest = tail;
    }
    let tail = match (rest.first_chunk::<4>(), rest.last_chunk::<4>(), rest) {
        (Some(head), Some(end), _) => (u32::from_le_bytes(*head) as u64) << 32 | u32::from_le_bytes(*end) as u64,
        (_, _, [a, b, c]) => (*a as u64) << 16 | (*b as u64) << 8 | *c as u64,
        (_, _, [a, b]) => (*a as u64) << 8 | *b as u64,
        (_, _, [a]) => *a as u64,
        _ => 0,
    };
    hash = (hash ^ fold(tail)).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 29)
}

/// Sets the bit in which ASCII cases differ. Other bytes may meet here too: the comparison tells them apart.
const fn fold(bytes: u64) -> u64 {
    bytes | 0x2020_2020_2020_2020
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOME: WordTable<16> = WordTable::new(&["select", "a", "ab", "abc", "pg_advisory_xact_lock_shared", "set"]);

    #[test]
    fn every_word_is_found_in_any_case_and_no_other() {
        assert_eq!(SOME.position(b"SeLeCt"), Some(0));
        assert_eq!(SOME.position(b"A"), Some(1));
        assert_eq!(SOME.position(b"aB"), Some(2));
        assert_eq!(SOME.position(b"ABC"), Some(3));
        assert_eq!(SOME.position(b"pg_advisory_XACT_lock_shared"), Some(4));
        for other in [
            &b""[..],
            b"selec",
            b"selects",
            b"pg_advisory_xact_lock_share",
            b"\0",
            b"b",
            b"s\x05t",
        ] {
            assert_eq!(SOME.position(other), None);
        }
    }
}
