//! Texts that were read a moment ago, with what they do: a driver says the same few again and again.

use super::sql_lexer::Lexing;
use super::statement_effects::Effects;

/// Texts that are kept at most. Where one goes depends on its bytes, and whatever is there leaves.
const PLACES: usize = 16;
/// The longest text that is kept, in bytes.
const TEXT_LEN_MAX: usize = 1024;

/// A few texts and their effects. Nothing of any client's: what a text does depends on nothing but what it is kept with.
#[derive(Debug, Default)]
pub struct KnownTexts {
    places: Vec<Place>,
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

    #[test]
    fn a_long_text_is_not_kept() {
        let (mut known, nothing) = (KnownTexts::default(), Suspects::known([]));
        let text = [b"SELECT 1 -- ".as_slice(), &[b'x'; TEXT_LEN_MAX]].concat();
        for _ in 0..3 {
            assert!(read(&mut known, &text, Lexing::default(), &nothing).1);
        }
    }
}
