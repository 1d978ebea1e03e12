//! Kubernetes' amounts: `500m`, `64Mi`, `1e3`, and the fields that hold a number or a name. Pure notation: what an
//! amount is of, the caller knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount as it was written, in Kubernetes' notation and at most [`TEXT_MAX`] characters long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Quantity {
    text: String,
    /// The value in thousandths, rounded up, saturating.
    milli: i128,
}

/// Longest text of an amount; more digits than any machine has bytes.
pub const TEXT_MAX: usize = 64;

/// Why a text is not an amount. The wording is Kubernetes', clients print it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// In whole units, rounded up: bytes for memory.
    pub fn bytes(&self) -> u64 {
        u64::try_from(div_ceil(self.milli, 1000).max(0)).unwrap_or(u64::MAX)
    }

    /// In thousandths, rounded up: millicores for CPU.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.milli.max(0)).unwrap_or(u64::MAX)
    }

    pub fn is_negative(&self) -> bool {
        self.milli < 0
    }

    pub fn is_zero(&self) -> bool {
        self.milli == 0
    }

    /// Whether it is a whole number of units, as extended resources must be.
    pub fn is_whole(&self) -> bool {
        self.milli % 1000 == 0
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.milli.cmp(&other.milli))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let number_end =
            text.bytes().enumerate().find(|(i, b)| !is_number(*i, *b)).map_or(text.len(), |(i, _)| i);
        let (number, suffix) = text.split_at(number_end);
        let milli = scaled(number, suffix_scale(suffix)?)?;
        if text.len() > TEXT_MAX {
            return Err(QuantityError::Format);
        }
        Ok(Self { text: text.to_owned(), milli })
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.text
    }
}

/// JSON allows `cpu: 1` and `cpu: 0.5` beside `cpu: "500m"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(serde_json::Number),
}

impl TryFrom<Written> for Quantity {
    type Error = QuantityError;

    fn try_from(written: Written) -> Result<Self, QuantityError> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Number(number) => number.to_string().parse(),
        }
    }
}

/// The power a suffix stands for.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn is_number(index: usize, byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.' || (index == 0 && (byte == b'+' || byte == b'-'))
}

fn suffix_scale(suffix: &str) -> Result<Scale, QuantityError> {
    Ok(match suffix {
        "" => Scale::Ten(0),
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        _ => return exponent(suffix),
    })
}

fn exponent(suffix: &str) -> Result<Scale, QuantityError> {
    let Some(digits) = suffix.strip_prefix(['e', 'E']) else {
        let known = |b: u8| b"eEinumkKMGTP+-0123456789".contains(&b);
        return Err(if suffix.bytes().all(known) { QuantityError::Suffix } else { QuantityError::Format });
    };
    let power: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
    // Beyond this everything is zero or saturates anyway.
    Ok(Scale::Ten(power.clamp(-60, 60)))
}

/// `number` times the scale, in thousandths, rounded away from zero.
fn scaled(number: &str, scale: Scale) -> Result<i128, QuantityError> {
    let (negative, digits) = match number.as_bytes().first() {
        Some(b'-') => (true, &number[1..]),
        Some(b'+') => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(QuantityError::Format);
    }
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    let fraction_len = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (two, ten) = match scale {
        Scale::Two(two) => (two, 3),
        Scale::Ten(ten) => (0, ten + 3),
    };
    mantissa = mantissa.saturating_mul(1 << two);
    let power = ten.saturating_sub(fraction_len);
    let milli = if power >= 0 {
        (0..power.min(40)).fold(mantissa, |value, _| value.saturating_mul(10))
    } else {
        match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => div_ceil(mantissa, divisor),
            None => i128::from(mantissa > 0),
        }
    };
    Ok(if negative { -milli } else { milli })
}

fn div_ceil(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Int(0)
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::String(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn reads_kubernetes_notation() {
        let table = [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("+1", 1, 1000),
            ("500m", 1, 500),
            ("0.5", 1, 500),
            (".5", 1, 500),
            ("1.", 1, 1000),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000),
            ("1e3", 1000, 1_000_000),
            ("1E-3", 1, 1),
            ("128974848", 128_974_848, 128_974_848_000),
            ("1n", 1, 1),
            ("1E", 10_u64.pow(18), 18_446_744_073_709_551_615),
            ("-1", 0, 0),
        ];
        for (text, bytes, millis) in table {
            assert_eq!((quantity(text).bytes(), quantity(text).millis()), (bytes, millis), "{text}");
            assert_eq!(quantity(text).to_string(), text);
        }
        assert!(quantity("-1m").is_negative() && !quantity("-0").is_negative());
    }

    #[test]
    fn refuses_what_kubernetes_refuses() {
        for bad in ["", "abc", "1.2.3", ".", "+", "--1", "1 Gi", "é"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
        for bad in ["1K", "1ki", "1MiB", "1e", "1ee", "1m5"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn json_numbers_are_amounts_too() {
        let quantity: Quantity = serde_json::from_str("2").unwrap();
        assert_eq!(serde_json::to_string(&quantity).unwrap(), "\"2\"");
    }
}
