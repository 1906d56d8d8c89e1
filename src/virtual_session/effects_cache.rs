//! Effects by the exact text: what an app says, it says again.

use super::sql_lexer::Lexing;
use super::statement_effects::{Effects, classify};
use super::suspects::Suspects;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The longest text that is kept. Longer ones are rarely said twice (bulk INSERTs), and would push out a hundred others.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// What an entry costs besides its text: its slot, its links, its effects.
const ENTRY_OVERHEAD: usize = 192;

/// A bounded cache in front of [`classify`], least recently used out first.
///
/// A hit hashes the text, compares it once and moves four links: O(1), no allocation. The hash is keyed by the operating
/// system's generator, so that no client can fill one bucket. One cache serves one database: it empties itself when it
/// is asked with other [`Suspects`].
#[derive(Debug)]
pub struct EffectsCache {
    entries: Vec<Entry>,
    /// Buckets of chains through `Entry::chain`; a power of two, 0 is none, else index + 1.
    buckets: Box<[u32]>,
    newest: Link,
    oldest: Link,
    free: Vec<u32>,
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
    key: [u64; 2],
    suspects: u64,
    /// The effects of the last text that was not kept.
    unkept: Effects,
}

/// An entry's index, or none.
type Link = Option<u32>;

#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    lexing: Lexing,
    hash: u64,
    effects: Effects,
    chain: u32,
    newer: Link,
    older: Link,
}

impl EffectsCache {
    /// An empty cache of at most this many texts and bytes. Either at 0 keeps nothing.
    pub fn new(entries_max: usize, bytes_max: usize) -> Self {
        let random = RandomState::new();
        let entries_max = entries_max.min(1 << 20);
        Self {
            entries: Vec::new(),
            buckets: vec![0; entries_max.next_power_of_two()].into(),
            newest: None,
            oldest: None,
            free: Vec::new(),
            bytes: 0,
            entries_max,
            bytes_max,
            key: [random.build_hasher().finish(), random.hash_one(1_u8) | 1],
            suspects: 0,
            unkept: Effects::NONE,
        }
    }

    /// The effects of a text, from memory or found now.
    pub fn classify(&mut self, text: &[u8], lexing: Lexing, suspects: &Suspects) -> &Effects {
        if self.suspects != suspects.fingerprint() {
            self.clear();
            self.suspects = suspects.fingerprint();
        }
        let hash = text_hash(self.key, text, lexing);
        if let Some(index) = self.find(hash, text, lexing) {
            self.touch(index);
            return &self.entries[index as usize].effects;
        }
        let effects = classify(text, lexing, suspects);
        match self.keep(hash, text, lexing, effects) {
            Ok(index) => &self.entries[index as usize].effects,
            Err(effects) => {
                self.unkept = effects;
                &self.unkept
            }
        }
    }

    /// How many texts are kept.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the kept texts and their effects take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets every text.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.free.clear();
        self.buckets.fill(0);
        self.newest = None;
        self.oldest = None;
        self.bytes = 0;
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, hash: u64, text: &[u8], lexing: Lexing) -> Link {
        let mut link = self.buckets[self.bucket(hash)];
        loop {
            let index = link.checked_sub(1)?;
            let entry = &self.entries[index as usize];
            if entry.hash == hash && entry.lexing == lexing && *entry.text == *text {
                return Some(index);
            }
            link = entry.chain;
        }
    }

    /// Keeps a text, if it may be kept, at the price of the oldest ones.
    fn keep(&mut self, hash: u64, text: &[u8], lexing: Lexing, effects: Effects) -> Result<u32, Effects> {
        let cost = cost(text, &effects);
        if text.len() > TEXT_BYTES_MAX || self.entries_max == 0 || cost > self.bytes_max {
            return Err(effects);
        }
        while self.len() >= self.entries_max || self.bytes + cost > self.bytes_max {
            let Some(oldest) = self.oldest else { break };
            self.evict(oldest);
        }
        let bucket = self.bucket(hash);
        let chain = self.buckets[bucket];
        let entry = Entry {
            text: text.into(),
            lexing,
            hash,
            effects,
            chain,
            newer: None,
            older: None,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.buckets[bucket] = index + 1;
        self.bytes += cost;
        self.link_newest(index);
        Ok(index)
    }

    fn evict(&mut self, index: u32) {
        self.unlink(index);
        let entry = &mut self.entries[index as usize];
        let (hash, chain) = (entry.hash, entry.chain);
        self.bytes -= cost(&entry.text, &entry.effects);
        entry.text = Box::default();
        entry.effects = Effects::NONE;
        let bucket = self.bucket(hash);
        let mut link = self.buckets[bucket];
        if link == index + 1 {
            self.buckets[bucket] = chain;
        } else {
            while let Some(at) = link.checked_sub(1) {
                link = self.entries[at as usize].chain;
                if link == index + 1 {
                    self.entries[at as usize].chain = chain;
                    break;
                }
            }
        }
        self.free.push(index);
    }

    fn touch(&mut self, index: u32) {
        if self.newest != Some(index) {
            self.unlink(index);
            self.link_newest(index);
        }
    }

    fn unlink(&mut self, index: u32) {
        let (newer, older) = (self.entries[index as usize].newer, self.entries[index as usize].older);
        match newer {
            Some(newer) => self.entries[newer as usize].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.entries[older as usize].newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, index: u32) {
        let older = self.newest.replace(index);
        self.entries[index as usize].newer = None;
        self.entries[index as usize].older = older;
        match older {
            Some(older) => self.entries[older as usize].newer = Some(index),
            None => self.oldest = Some(index),
        }
    }
}

/// What an entry takes. A step repeats at most its own part of the text, with its quotes doubled.
fn cost(text: &[u8], effects: &Effects) -> usize {
    let steps = match effects.steps.len() {
        0 => 0,
        count => count * 96 + 2 * text.len(),
    };
    ENTRY_OVERHEAD + text.len() + steps
}

/// A keyed hash of the text, sixteen bytes at a time.
fn text_hash(key: [u64; 2], text: &[u8], lexing: Lexing) -> u64 {
    let mut hash = key[0] ^ (text.len() as u64) << 8 ^ (lexing.strings as u64) << 2 ^ lexing.encoding as u64;
    let (chunks, tail) = text.as_chunks::<16>();
    for chunk in chunks {
        let halves = u128::from_le_bytes(*chunk);
        hash = mix(hash ^ halves as u64, key[1] ^ (halves >> 64) as u64);
    }
    let mut last = [0_u8; 16];
    last[..tail.len()].copy_from_slice(tail);
    let halves = u128::from_le_bytes(last);
    hash = mix(hash ^ halves as u64, key[1] ^ (halves >> 64) as u64);
    mix(hash, key[1])
}

fn mix(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(number: usize) -> Vec<u8> {
        format!("SELECT {number}").into_bytes()
    }

    #[test]
    fn a_hit_is_what_classify_finds() {
        let (suspects, lexing) = (Suspects::known([]), Lexing::default());
        let mut cache = EffectsCache::new(64, 1 << 20);
        for text in [
            &b"SET x = 1"[..],
            b"select 1",
            b"LISTEN a",
            b"SET x = 1",
            b"select 'a",
            b"",
        ] {
            assert_eq!(
                *cache.classify(text, lexing, &suspects),
                classify(text, lexing, &suspects)
            );
        }
        assert_eq!(cache.len(), 5);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bounds_hold() {
        let (suspects, lexing) = (Suspects::known([]), Lexing::default());
        let mut cache = EffectsCache::new(8, 1 << 20);
        for number in 0..1000 {
            cache.classify(&select(number), lexing, &suspects);
            cache.classify(&select(0), lexing, &suspects);
            assert!(cache.len() <= 8);
        }
        let hash = text_hash(cache.key, &select(0), lexing);
        assert!(cache.find(hash, &select(0), lexing).is_some());
        let hash = text_hash(cache.key, &select(990), lexing);
        assert!(cache.find(hash, &select(990), lexing).is_none());
        assert_eq!(
            cache.bytes(),
            cache
                .entries
                .iter()
                .filter(|e| !e.text.is_empty())
                .map(|e| cost(&e.text, &e.effects))
                .sum::<usize>()
        );
    }

    #[test]
    fn the_bytes_are_bounded_and_large_texts_are_not_kept() {
        let (suspects, lexing) = (Suspects::known([]), Lexing::default());
        let mut cache = EffectsCache::new(1000, 2000);
        for number in 0..100 {
            cache.classify(&select(number), lexing, &suspects);
            assert!(cache.bytes() <= 2000);
        }
        let before = cache.len();
        let large = [b"SELECT '".as_slice(), &[b'x'; TEXT_BYTES_MAX], b"'"].concat();
        assert!(cache.classify(&large, lexing, &suspects).is_none());
        assert_eq!(cache.len(), before);
        assert!(
            EffectsCache::new(0, 0)
                .classify(b"select 1", lexing, &suspects)
                .is_none()
        );
    }

    #[test]
    fn the_lexing_is_a_part_of_the_key() {
        let suspects = Suspects::known([]);
        let mut cache = EffectsCache::new(64, 1 << 20);
        let off = Lexing {
            strings: super::super::sql_lexer::StandardConformingStrings::Off,
            ..Lexing::default()
        };
        let text = br"select '\'; set x = 1; --'";
        assert!(!cache.classify(text, Lexing::default(), &suspects).is_none());
        assert!(cache.classify(text, off, &suspects).is_none());
        assert!(!cache.classify(text, Lexing::default(), &suspects).is_none());
    }

    #[test]
    fn other_suspects_empty_it() {
        use super::super::suspects::SuspectKind;
        let mut cache = EffectsCache::new(64, 1 << 20);
        assert!(
            cache
                .classify(b"select * from v", Lexing::default(), &Suspects::known([]))
                .is_none()
        );
        let suspects = Suspects::known([(SuspectKind::Mention, &b"v"[..])]);
        assert!(
            !cache
                .classify(b"select * from v", Lexing::default(), &suspects)
                .is_none()
        );
        assert_eq!(cache.len(), 1);
    }
}
