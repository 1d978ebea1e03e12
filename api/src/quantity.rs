//! Kubernetes' amounts: `500m`, `64Mi`, `1e3`, and the fields that hold a number or a name. Pure notation: what an
//! amount is of, the caller knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount, in Kubernetes' canonical notation: no fraction, the largest suffix that needs none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Quantity {
    text: String,
    /// The value in billionths, rounded away from zero, saturating.
    nanos: i128,
}

/// Longest text of an amount; more digits than any machine has bytes.
pub const TEXT_MAX: usize = 64;

const NANOS: i128 = 1_000_000_000;

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
        self.in_units_of(NANOS)
    }

    /// In thousandths, rounded up: millicores for CPU.
    pub fn millis(&self) -> u64 {
        self.in_units_of(NANOS / 1000)
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is a whole number of units, as extended resources must be.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn in_units_of(&self, unit: i128) -> u64 {
        u64::try_from(div_away(self.nanos, unit).max(0)).unwrap_or(u64::MAX)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.nanos.cmp(&other.nanos))
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
        if text.len() > TEXT_MAX {
            return Err(QuantityError::Format);
        }
        let number_end =
            text.bytes().enumerate().find(|(i, b)| !is_number(*i, *b)).map_or(text.len(), |(i, _)| i);
        let (number, suffix) = text.split_at(number_end);
        let scale = Scale::of(suffix)?;
        let nanos = scaled(number, &scale)?;
        Ok(Self { text: canonical(nanos, &scale), nanos })
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

/// The power a suffix stands for, and how it was written.
enum Scale {
    Ten(i32),
    Two(u32),
    Exponent(i32),
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Scale {
    fn of(suffix: &str) -> Result<Self, QuantityError> {
        if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            return Ok(Self::Ten(*power));
        }
        if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            return Ok(Self::Two(*power));
        }
        let Some(digits) = suffix.strip_prefix(['e', 'E']) else {
            let known = |b: u8| b"eEinumkKMGTP+-0123456789".contains(&b);
            return Err(if suffix.bytes().all(known) {
                QuantityError::Suffix
            } else {
                QuantityError::Format
            });
        };
        let power: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
        // Beyond this everything is zero or saturates anyway.
        Ok(Self::Exponent(power.clamp(-60, 60)))
    }
}

fn is_number(index: usize, byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.' || (index == 0 && (byte == b'+' || byte == b'-'))
}

/// `number` times the scale, in billionths, rounded away from zero.
fn scaled(number: &str, scale: &Scale) -> Result<i128, QuantityError> {
    let (negative, digits) = match number.as_bytes().first() {
        Some(b'-') => (true, &number[1..]),
        Some(b'+') => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || digits.contains(['+', '-']) {
        return Err(QuantityError::Format);
    }
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    let fraction_len = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (two, ten) = match scale {
        Scale::Two(two) => (*two, 0),
        Scale::Ten(ten) | Scale::Exponent(ten) => (0, *ten),
    };
    mantissa = mantissa.saturating_mul(1 << two);
    let power = (ten + 9).saturating_sub(fraction_len);
    let nanos = if power >= 0 {
        (0..power.min(40)).fold(mantissa, |value, _| value.saturating_mul(10))
    } else {
        match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => div_away(mantissa, divisor),
            None => i128::from(mantissa > 0),
        }
    };
    Ok(if negative { -nanos } else { nanos })
}

fn div_away(value: i128, divisor: i128) -> i128 {
    let quotient = value / divisor;
    if value % divisor == 0 { quotient } else { quotient + value.signum() }
}

fn canonical(nanos: i128, scale: &Scale) -> String {
    let binary = matches!(scale, Scale::Two(_)) && nanos.unsigned_abs() >= (1024 * NANOS).unsigned_abs();
    if binary && nanos % NANOS == 0 {
        let mut value = nanos / NANOS;
        let mut suffix = "";
        for (name, _) in BINARY {
            if value % 1024 != 0 {
                break;
            }
            value /= 1024;
            suffix = name;
        }
        return format!("{value}{suffix}");
    }
    let mut value = nanos;
    let mut power = 0;
    while power + 1 < DECIMAL.len() && value != 0 && value % 1000 == 0 {
        value /= 1000;
        power += 1;
    }
    if value == 0 {
        return "0".to_owned();
    }
    match (scale, DECIMAL[power]) {
        (Scale::Exponent(_), (_, exponent)) if exponent != 0 => format!("{value}e{exponent}"),
        (_, (suffix, _)) => format!("{value}{suffix}"),
    }
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
    fn prints_the_canonical_form() {
        let table = [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("2000", "2k"),
            ("1500", "1500"),
            ("1024", "1024"),
            ("1e3", "1e3"),
            ("100e-1", "10"),
            ("0Mi", "0"),
            ("+5", "5"),
            ("-0.5", "-500m"),
        ];
        for (written, canonical) in table {
            assert_eq!(quantity(written).to_string(), canonical, "{written}");
            assert_eq!(quantity(canonical), quantity(written), "{written}");
        }
    }

    #[test]
    fn json_numbers_are_amounts_too() {
        let quantity: Quantity = serde_json::from_str("2").unwrap();
        assert_eq!(serde_json::to_string(&quantity).unwrap(), "\"2\"");
    }
}
