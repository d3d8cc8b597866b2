//! Quantities as Kubernetes writes them: `100m`, `0.5`, `1e3`, `24Mi`. Parsed to be compared; written as they came.

use std::fmt;

use serde_json::Value;

/// An amount of something, and its text.
#[derive(Debug, Clone)]
pub(super) struct Quantity {
    text: String,
    /// Thousand-millionths, the smallest unit there is.
    nano: u128,
}

impl Quantity {
    /// Reads a quantity that is not negative.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let nano = nano(text).ok_or_else(|| format!("{text:?} is not a quantity such as 100m, 0.5 or 24Mi"))?;
        Ok(Self { text: text.to_owned(), nano })
    }

    /// Reads the value of a manifest, where a bare number may stand.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text).ok(),
            Value::Number(number) => Self::parse(&number.to_string()).ok(),
            _ => None,
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.nano == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// `<digits>[.<digits>]` and a suffix. What is below the smallest unit is rounded up, as Kubernetes does.
fn nano(text: &str) -> Option<u128> {
    let number = text.strip_prefix('+').unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (number, suffix) = number.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() + fraction.len() > 30 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, mut power) = scale(suffix)?;
    power -= i32::try_from(fraction.len()).ok()?;
    let scaled = digits.checked_mul(factor)?;
    if power >= 0 {
        scaled.checked_mul(10u128.checked_pow(power.unsigned_abs())?)
    } else {
        Some(scaled.div_ceil(10u128.checked_pow(power.unsigned_abs()).unwrap_or(u128::MAX)))
    }
}

/// What a suffix stands for, as a factor and a power of ten, counted in thousand-millionths.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    const ONE: i32 = 9;
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(at) = decimal.iter().position(|known| *known == suffix) {
        return Some((1, i32::try_from(at).ok()? * 3));
    }
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(at) = binary.iter().position(|known| *known == suffix) {
        return Some((1024u128.pow(u32::try_from(at).ok()? + 1), ONE));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-99..=99).contains(&exponent).then_some((1, ONE + exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_amounts_are_equal_however_they_are_written() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "5e-1"),
            ("1e3", "1k"),
            ("1Ki", "1024"),
            ("1.5Gi", "1536Mi"),
            ("+2", "2."),
            ("0", "0Mi"),
            ("1E", "1000P"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(Quantity::parse(one), Quantity::parse(other), "{one} {other}");
        }
        assert!(Quantity::parse("25M") < Quantity::parse("24Mi"));
        assert_eq!(Quantity::of(&serde_json::json!(0.5)), Quantity::parse("500m").ok());
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "m", "-1", "1 Mi", "1mi", "1.2.3", ".", "1e", "1e1000", "ten", "1KiB"] {
            assert!(Quantity::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.eE+-]{0,45}[a-zA-Z]{0,3}") {
            let _ = Quantity::parse(&text);
        }
    }
}
