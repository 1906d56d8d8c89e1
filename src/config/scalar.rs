//! Single values as they are written: `30s`, `off`, `10%`, `1MiB`, `20`, `true`.
//!
//! Zero means off wherever a key can be off, and is refused where it can't: there is no key whose zero means "at once".

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Visitor};

/// The longest duration that is taken: ten years, far below what timers overflow at.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);

/// One value of the file, a variable or a flag, not yet read as what its key wants.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    /// Text; from variables and flags always.
    Text(String),
    /// A YAML integer.
    Integer(i128),
    /// A YAML number with a fraction.
    Float(f64),
    /// A YAML boolean.
    Bool(bool),
}

impl Scalar {
    /// A string. Numbers and booleans are refused: `password: 0123` would silently become another password.
    pub(super) fn text(&self) -> Result<String, String> {
        match self {
            Self::Text(text) if text.contains('\0') => Err("must not contain a NUL byte".into()),
            Self::Text(text) if text.is_empty() => Err("must not be empty".into()),
            Self::Text(text) => Ok(text.clone()),
            _ => Err("must be text; put it in quotes".into()),
        }
    }

    /// The value of a PostgreSQL setting, as it would be said to PostgreSQL.
    pub(super) fn setting_value(&self) -> Result<String, String> {
        match self {
            Self::Bool(value) => Ok(if *value { "on" } else { "off" }.to_owned()),
            Self::Integer(number) => Ok(number.to_string()),
            Self::Float(number) => Ok(number.to_string()),
            Self::Text(text) if text.contains('\0') => Err("must not contain a NUL byte".into()),
            Self::Text(text) => Ok(text.clone()),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Result<bool, String> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "on" | "yes" => Ok(true),
                "false" | "off" | "no" => Ok(false),
                _ => Err("must be true or false".into()),
            },
            _ => Err("must be true or false".into()),
        }
    }

    /// A whole number within bounds.
    pub(super) fn count(&self, least: u32, most: u32) -> Result<u32, String> {
        let number = match self {
            Self::Integer(number) => u32::try_from(*number).ok(),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("must be a whole number from {least} to {most}, not {self}"))
    }

    /// A whole number from 0 on, or `None` for `max_size`.
    pub(super) fn count_or_max_size(&self) -> Result<Option<u32>, String> {
        match self {
            Self::Text(text) if text.trim().eq_ignore_ascii_case("max_size") => Ok(None),
            _ => self
                .count(0, 100_000)
                .map(Some)
                .map_err(|message| message.replace(", not ", ", or max_size, not ")),
        }
    }

    /// A duration, or `None` for `off`, `none`, `false` and 0.
    pub(super) fn duration_or_off(&self) -> Result<Option<Duration>, String> {
        match self {
            Self::Bool(false) | Self::Integer(0) => Ok(None),
            Self::Text(text) if is_off(text) => Ok(None),
            Self::Text(text) => parse_duration(text).map(|duration| Some(duration).filter(|it| !it.is_zero())),
            _ => Err(format!(
                "must be a duration with its unit, such as 500ms, 30s, 10m or 1h, or off, not {self}"
            )),
        }
    }

    /// A duration that can't be off.
    pub(super) fn duration(&self) -> Result<Duration, String> {
        self.duration_or_off()
            .map_err(|message| message.replace(", or off", ""))?
            .ok_or_else(|| "can't be off or 0: it must be a duration such as 5s".into())
    }

    /// A duration whose off is zero, for caches and grace times that simply end at once.
    pub(super) fn duration_or_zero(&self) -> Result<Duration, String> {
        self.duration_or_off().map(Option::unwrap_or_default)
    }

    /// `10%` as 0.1; `off` and 0 as 0.0.
    pub(super) fn share(&self) -> Result<f64, String> {
        let wrong = || format!("must be a percentage from 0% to 100%, not {self}");
        match self {
            Self::Bool(false) | Self::Integer(0) => Ok(0.0),
            Self::Text(text) if is_off(text) => Ok(0.0),
            Self::Text(text) => {
                let percent: f64 = text
                    .trim()
                    .strip_suffix('%')
                    .and_then(|it| it.trim().parse().ok())
                    .ok_or_else(wrong)?;
                if (0.0..=100.0).contains(&percent) {
                    Ok(percent / 100.0)
                } else {
                    Err(wrong())
                }
            }
            _ => Err(wrong()),
        }
    }

    /// A size in bytes: `65536`, `64kB`, `1MiB`. As in PostgreSQL's settings kB, MB and GB are powers of 1024.
    pub(super) fn size(&self) -> Result<usize, String> {
        let wrong = || format!("must be a size such as 65536, 64kB, 64KiB or 1MiB, not {self}");
        let bytes = match self {
            Self::Integer(bytes) => usize::try_from(*bytes).ok(),
            Self::Text(text) => parse_size(text),
            _ => None,
        };
        bytes.filter(|bytes| (1..=1 << 30).contains(bytes)).ok_or_else(wrong)
    }

    /// Text, or `None` for `none` and `off`.
    pub(super) fn text_or_none(&self) -> Result<Option<String>, String> {
        match self {
            Self::Bool(false) => Ok(None),
            Self::Text(text) if text.eq_ignore_ascii_case("none") || text.eq_ignore_ascii_case("off") => Ok(None),
            other => other.text().map(Some),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        // YAML readers of the 1.1 kind quote `off`; ours reads `false` as a boolean, so both spellings arrive here.
        let said = match self {
            Self::Text(text) => text.as_str(),
            Self::Bool(false) => "off",
            _ => "",
        };
        words
            .iter()
            .find(|(word, _)| *word == said)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("must be one of {}, not {self}", known.join(", "))
            })
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;
        impl Visitor<'_> for AnyScalar {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(AnyScalar)
    }
}

/// Whether a text is one of the words for "off".
pub(super) fn is_off(text: &str) -> bool {
    ["off", "none", "false", "0"]
        .iter()
        .any(|word| text.trim().eq_ignore_ascii_case(word))
}

/// `1h30m`, `500ms`: numbers with units, the units falling.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("must be a duration such as 500ms, 30s, 10m or 1h, not {text:?}");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|it: char| it.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds_per_unit = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("{text:?} has no unit; write it as {number}s or {number}ms")),
            _ => return Err(wrong()),
        };
        let part = number
            .checked_mul(milliseconds_per_unit)
            .map(Duration::from_millis)
            .ok_or_else(wrong)?;
        total = total
            .checked_add(part)
            .filter(|it| *it <= DURATION_MAX)
            .ok_or_else(wrong)?;
        rest = after;
    }
    if text.trim().is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let bytes_per_unit: usize = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" | "KiB" => 1 << 10,
        "MB" | "MiB" => 1 << 20,
        "GB" | "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(bytes_per_unit)
}

/// A duration as it would be written, in the largest unit that holds it whole.
pub(super) fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "off".into(),
        it if it % 3_600_000 == 0 => format!("{}h", it / 3_600_000),
        it if it % 60_000 == 0 => format!("{}m", it / 60_000),
        it if it % 1000 == 0 => format!("{}s", it / 1000),
        it => format!("{it}ms"),
    }
}

/// A size as it would be written.
pub(super) fn show_size(bytes: usize) -> String {
    match bytes {
        it if it % (1 << 20) == 0 => format!("{}MiB", it >> 20),
        it if it % (1 << 10) == 0 => format!("{}KiB", it >> 10),
        it => it.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Scalar {
        Scalar::Text(text.into())
    }

    #[test]
    fn durations_carry_their_unit() {
        for (said, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("10min", 600_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(text(said).duration(), Ok(Duration::from_millis(milliseconds)), "{said}");
        }
        assert!(text("30").duration().unwrap_err().contains("30s"));
        assert!(Scalar::Integer(30).duration().unwrap_err().contains("unit"));
        for bad in ["", "s", "30x", "-1s", "1.5s", "99999999999999999999s", "9999999d"] {
            assert!(text(bad).duration().is_err(), "{bad}");
        }
    }

    #[test]
    fn trap_47_zero_means_off_or_is_refused() {
        for off in [
            text("off"),
            text("none"),
            text("0"),
            text("0s"),
            Scalar::Integer(0),
            Scalar::Bool(false),
        ] {
            assert_eq!(off.duration_or_off(), Ok(None), "{off}");
            assert!(off.duration().is_err(), "{off}");
            assert_eq!(off.duration_or_zero(), Ok(Duration::ZERO));
        }
    }

    #[test]
    fn shares_and_sizes() {
        assert_eq!(text("10%").share(), Ok(0.1));
        assert_eq!(text("off").share(), Ok(0.0));
        assert!(text("10").share().is_err());
        assert!(text("101%").share().is_err());
        assert!(text("NaN%").share().is_err());
        assert_eq!(text("64kB").size(), Ok(65_536));
        assert_eq!(text("1MiB").size(), Ok(1 << 20));
        assert_eq!(Scalar::Integer(9).size(), Ok(9));
        assert!(text("1 parsec").size().is_err());
        assert!(text("99GB").size().is_err());
    }

    #[test]
    fn a_number_is_not_a_text() {
        assert!(Scalar::Integer(12).text().is_err());
        assert!(text("").text().is_err());
        assert!(text("a\0b").text().is_err());
        assert_eq!(text("12").text(), Ok("12".into()));
    }

    #[test]
    fn counts_have_bounds() {
        assert_eq!(text("20").count(1, 30), Ok(20));
        assert_eq!(Scalar::Integer(20).count(1, 30), Ok(20));
        for bad in [
            text("0"),
            text("31"),
            text("-1"),
            text("2.5"),
            Scalar::Float(2.5),
            Scalar::Bool(true),
        ] {
            assert!(bad.count(1, 30).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for milliseconds in [1, 500, 1000, 90_000, 600_000, 3_600_000, 5_400_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(text(&show_duration(duration)).duration(), Ok(duration));
        }
        for bytes in [1, 1023, 1024, 1 << 20, 4 << 20] {
            assert_eq!(text(&show_size(bytes)).size(), Ok(bytes));
        }
    }
}
