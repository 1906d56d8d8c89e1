//! Texts that were read a moment ago, with what they do: a driver says the same few again and again.

use std::ops::Range;

use super::ordinary_statement::ordinary_effects;
use super::sql_lexer::{Lexing, continues_word};
use super::statement_effects::Effects;
use super::suspects::Suspects;

/// Texts that are kept at most. Where one goes depends on its bytes, and whatever is there leaves.
const PLACES: usize = 16;
/// The longest text that is kept, in bytes.
const TEXT_LEN_MAX: usize = 1024;
/// Queries of one beginning, of which one is known, that come before another is known in its place.
const MISSES_MAX: u8 = 8;

/// A few texts and their effects. Nothing of any client's: what a text does depends on nothing but what it is kept with.
#[derive(Debug, Default)]
pub struct KnownTexts {
    places: Vec<Place>,
    /// Queries, whose numbers may be others.
    queries: Vec<QueryPlace>,
}

#[derive(Debug, Default)]
struct QueryPlace {
    /// The digest of the beginning of what was here last.
    digest: u64,
    /// Texts of this beginning that came since one was known.
    misses: u8,
    known: Option<Box<KnownQuery>>,
}

/// A text, with where its numbers stand: with others in their place it would be read the same way.
#[derive(Debug)]
struct KnownQuery {
    known: Known,
    numbers: Vec<Range<usize>>,
}

#[derive(Debug, Default)]
struct Place {
    /// The digest of the text that was here last: what comes once is not kept.
    digest: u64,
    known: Option<Box<Known>>,
}

#[derive(Debug)]
struct Known {
    text: Box<[u8]>,
    lexing: Lexing,
    effects: Effects,
}

impl KnownTexts {
    /// What the text does, where that is known already.
    pub fn known(&self, text: &[u8], lexing: Lexing, suspects: u64) -> Option<&Effects> {
        if text.len() > TEXT_LEN_MAX {
            return None;
        }
        let known = self.places.get(digest(text) as usize % PLACES)?.known.as_deref()?;
        (known.lexing == lexing && known.effects.suspects == suspects && *known.text == *text).then_some(&known.effects)
    }

    /// What a Query's text does, where that is known of it or of one that differs from it in numbers alone.
    pub fn known_query(&self, text: &[u8], lexing: Lexing, suspects: u64) -> Option<&Effects> {
        let place = self.queries.get(beginning(text) as usize % PLACES)?;
        let KnownQuery { known, numbers } = place.known.as_deref()?;
        let fits = known.lexing == lexing && known.effects.suspects == suspects;
        (fits && differs_in_numbers_alone(text, &known.text, numbers)).then_some(&known.effects)
    }

    /// A Query's text was found to do this. It is kept if others of its beginning came, and if it is one of which nothing
    /// depends on the numbers in it.
    pub fn note_query(&mut self, text: &[u8], lexing: Lexing, effects: &Effects, suspects: &Suspects) {
        let is_known = || self.known_query(text, lexing, effects.suspects).is_some();
        if text.len() > TEXT_LEN_MAX || !effects.is_plain() || is_known() {
            return;
        }
        if self.queries.is_empty() {
            self.queries.resize_with(PLACES, QueryPlace::default);
        }
        let digest = beginning(text);
        let Some(place) = self.queries.get_mut(digest as usize % PLACES) else {
            return;
        };
        let is_another = std::mem::replace(&mut place.digest, digest) != digest;
        place.misses = place.misses.saturating_add(1);
        let is_kept_apart = place.known.is_some() && place.misses < MISSES_MAX;
        if is_another || is_kept_apart || ordinary_effects(text, lexing, suspects).is_none() {
            return;
        }
        place.misses = 0;
        place.known = Some(Box::new(KnownQuery {
            known: Known {
                text: text.into(),
                lexing,
                effects: effects.clone(),
            },
            numbers: numbers_in(text),
        }));
    }

    /// What the text does; `classify` tells it where that is not known. `suspects` is the fingerprint of what the catalog
    /// says now.
    pub fn effects(
        &mut self,
        text: &[u8],
        lexing: Lexing,
        suspects: u64,
        classify: impl FnOnce() -> Effects,
    ) -> Effects {
        if text.len() > TEXT_LEN_MAX {
            return classify();
        }
        let digest = digest(text);
        if self.places.is_empty() {
            self.places.resize_with(PLACES, Place::default);
        }
        let Some(place) = self.places.get_mut(digest as usize % PLACES) else {
            return classify();
        };
        let fits =
            |known: &&Known| known.lexing == lexing && known.effects.suspects == suspects && *known.text == *text;
        if let Some(known) = place.known.as_deref().filter(fits) {
            return known.effects.clone();
        }
        let effects = classify();
        if std::mem::replace(&mut place.digest, digest) == digest && effects.steps.is_empty() {
            place.known = Some(Box::new(Known {
                text: text.into(),
                lexing,
                effects: effects.clone(),
            }));
        }
        effects
    }
}

/// Tells most Queries apart by how they begin, which is where their numbers do not stand.
fn beginning(text: &[u8]) -> u64 {
    match text.first_chunk::<24>() {
        Some(chunk) => digest(chunk) & !0xff | digest(chunk) >> 56,
        None => digest(text),
    }
}

/// Where runs of digits stand that the first look at an ordinary text takes for numbers: outside of quotes (which have no
/// escapes in such a text), and no part of a word. It looks at none of their digits.
fn numbers_in(text: &[u8]) -> Vec<Range<usize>> {
    let (mut numbers, mut quote, mut at) = (Vec::new(), None, 0);
    while let Some(&byte) = text.get(at) {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'0'..=b'9') => {
                let is_of_a_word = at > 0 && text.get(at - 1).is_some_and(|&before| continues_word(before));
                let start = at;
                at += digits_at(text, at);
                if !is_of_a_word {
                    numbers.push(start..at);
                }
                continue;
            }
            (None, _) => {}
        }
        at += 1;
    }
    numbers
}

#[inline]
fn digits_at(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn differs_in_numbers_alone(text: &[u8], known: &[u8], numbers: &[Range<usize>]) -> bool {
    let (mut at, mut known_at) = (0, 0);
    for number in numbers {
        let len = number.start - known_at;
        let digits = digits_at(text, at + len);
        if digits == 0 || text.get(at..at + len) != known.get(known_at..number.start) {
            return false;
        }
        at += len + digits;
        known_at = number.end;
    }
    text.get(at..) == known.get(known_at..)
}

/// Tells most texts apart by their length and both ends, which is where they differ.
fn digest(text: &[u8]) -> u64 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let number = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let middle = text.get(text.len() / 2..).and_then(<[u8]>::first_chunk);
    let mut digest = text.len() as u64;
    for part in [text.first_chunk(), middle, text.last_chunk()] {
        digest = (digest.rotate_left(5) ^ number(part)).wrapping_mul(MIX);
    }
    // Never that of a place where nothing was yet.
    (digest ^ (digest >> 32)) | (1 << 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_session::sql_lexer::StandardConformingStrings;
    use crate::virtual_session::statement_effects::classify;
    use crate::virtual_session::suspects::Suspects;

    fn read(known: &mut KnownTexts, text: &[u8], lexing: Lexing, suspects: &Suspects) -> (Effects, bool) {
        let mut is_classified = false;
        let effects = known.effects(text, lexing, suspects.fingerprint(), || {
            is_classified = true;
            Effects {
                suspects: suspects.fingerprint(),
                ..classify(text, lexing, suspects)
            }
        });
        (effects, is_classified)
    }

    #[test]
    fn a_text_is_read_twice_and_then_known() {
        let (mut known, nothing) = (KnownTexts::default(), Suspects::known([]));
        let lexing = Lexing::default();
        for text in [&b"SELECT a FROM b WHERE c = $1"[..], b"BEGIN", b"", b"x", b"COMMIT"] {
            let (first, _) = read(&mut known, text, lexing, &nothing);
            let (second, is_read) = read(&mut known, text, lexing, &nothing);
            assert!(is_read, "{text:?}");
            let (third, is_read) = read(&mut known, text, lexing, &nothing);
            assert_eq!((&first, &first), (&second, &third));
            assert_eq!(is_read, !first.steps.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn another_catalog_or_another_way_to_read_makes_it_unknown() {
        let (mut known, nothing) = (KnownTexts::default(), Suspects::known([]));
        let (lexing, everything) = (Lexing::default(), Suspects::everything());
        let text = b"SELECT f('\\', 1)";
        for _ in 0..3 {
            read(&mut known, text, lexing, &nothing);
        }
        assert!(!read(&mut known, text, lexing, &nothing).1);
        let old = Lexing {
            strings: StandardConformingStrings::Off,
            ..lexing
        };
        let (effects, is_read) = read(&mut known, text, old, &nothing);
        assert!(is_read);
        assert_eq!(effects.pins, classify(text, old, &nothing).pins);
        assert!(read(&mut known, text, lexing, &everything).1);
    }

    #[test]
    fn texts_of_one_digest_are_told_apart() {
        let (mut known, nothing) = (KnownTexts::default(), Suspects::known([]));
        let texts: [&[u8]; 2] = [
            b"SELECT aaaaaaaaaa, now() FROM table_of_rows",
            b"SELECT aaaaaaaaaa; SET x = 1; table_of_rows",
        ];
        assert_eq!(texts[0].len(), texts[1].len());
        for text in texts.into_iter().cycle().take(8) {
            let (effects, _) = read(&mut known, text, Lexing::default(), &nothing);
            assert_eq!(effects.steps, classify(text, Lexing::default(), &nothing).steps);
        }
    }

    /// Every text below with other numbers is known, or read, as it would be read alone.
    #[test]
    fn a_query_of_other_numbers_does_the_same_or_is_read_again() {
        let texts: [&[u8]; 14] = [
            b"SELECT abalance FROM pgbench_accounts WHERE aid = 17;",
            b"SELECT abalance FROM pgbench_accounts WHERE aid = 17 AND b2 = 'x 5 y' AND c = 1.5",
            b"SELECT a1, \"b 2\", $1, 3, t.4 FROM t12 WHERE x IN (1,2,33) LIMIT 5 OFFSET 0",
            b"UPDATE accounts_of_clients SET b = b + 5 WHERE a = -17",
            b"DELETE FROM accounts_of_clients WHERE a=1 OR a=2",
            b"INSERT INTO accounts_of_clients VALUES (1, 2)",
            b"SELECT pg_advisory_lock(5) FROM accounts_of_clients",
            b"SELECT 1e5, 0x1f, 1_000 FROM accounts_of_clients",
            b"SELECT E'a\\'5' FROM accounts_of_clients WHERE x = 'it''s 5' AND y = 6",
            b"SELECT lo_open(1), now(), abs(5) FROM accounts_of_clients",
            b"SELECT 5 -- 7 and nothing else FROM accounts_of_clients",
            b"SELECT 1; SELECT 2 FROM accounts_of_clients_and_others",
            b"SELECT f5(1) FROM accounts_of_clients",
            b"SELECT 1",
        ];
        let suspects = Suspects::known([]);
        let lexing = Lexing::default();
        let fingerprint = suspects.fingerprint();
        let mut known_count = 0;
        for text in texts {
            let effects = Effects {
                suspects: fingerprint,
                ..classify(text, lexing, &suspects)
            };
            let mut known = KnownTexts::default();
            known.note_query(text, lexing, &effects, &suspects);
            assert_eq!(
                known.known_query(text, lexing, fingerprint),
                None,
                "what comes once is not kept"
            );
            known.note_query(text, lexing, &effects, &suspects);
            for (at, _) in text.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()) {
                for other in [
                    &b"9"[..],
                    b"0",
                    b"12345678901234567890",
                    b"",
                    b"a",
                    b"5'",
                    b"'",
                    b".",
                    b"5x",
                    b"_",
                    b"$1",
                    b" ",
                ] {
                    let other = [&text[..at], other, &text[at + 1..]].concat();
                    let Some(found) = known.known_query(&other, lexing, fingerprint) else {
                        continue;
                    };
                    known_count += 1;
                    let read = Effects {
                        suspects: fingerprint,
                        ..classify(&other, lexing, &suspects)
                    };
                    assert_eq!(*found, read, "{:?}", String::from_utf8_lossy(&other));
                }
            }
            assert_eq!(known.known_query(text, lexing, fingerprint + 1), None);
        }
        assert!(known_count > 40, "{known_count}");
    }

    #[test]
    fn numbers_in_words_and_quotes_are_none() {
        let text = b"SELECT a1, 'b 2', \"c 3\", $4, 55.66, x-7 FROM t8";
        let numbers: Vec<_> = numbers_in(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(numbers, [&b"55"[..], b"66", b"7"]);
    }

    #[test]
    fn a_known_query_gives_way_to_one_that_comes_more_often() {
        let (mut known, suspects) = (KnownTexts::default(), Suspects::known([]));
        let lexing = Lexing::default();
        let texts: [&[u8]; 2] = [
            b"SELECT aaaaaaaaaaaaaaaaaaaaaa FROM b",
            b"SELECT aaaaaaaaaaaaaaaaaaaaaa FROM c",
        ];
        let effects = Effects {
            suspects: suspects.fingerprint(),
            ..classify(texts[0], lexing, &suspects)
        };
        let is_known = |known: &KnownTexts, text| known.known_query(text, lexing, suspects.fingerprint()).is_some();
        for text in texts {
            for _ in 0..MISSES_MAX {
                known.note_query(text, lexing, &effects, &suspects);
            }
            assert!(is_known(&known, text));
        }
        assert!(!is_known(&known, texts[0]));
    }

    #[test]
    fn a_long_text_is_not_kept() {
        let (mut known, nothing) = (KnownTexts::default(), Suspects::known([]));
        let text = [b"SELECT 1 -- ".as_slice(), &[b'x'; TEXT_LEN_MAX]].concat();
        for _ in 0..3 {
            assert!(read(&mut known, &text, Lexing::default(), &nothing).1);
        }
    }
}
