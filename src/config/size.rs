//! Sizes in bytes, as people write them.

/// Why a size cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A unit that means one thing to some and another to others.
    #[error("has the ambiguous unit {unit:?}: write {binary} (1024) or {decimal} (1000)")]
    Ambiguous { unit: String, binary: &'static str, decimal: &'static str },
    #[error("has the unknown unit {unit:?}: use KiB, MiB, GiB, TiB, KB, MB, GB or TB, or no unit for bytes")]
    UnknownUnit { unit: String },
    #[error("is not a size: write a whole number and a unit, such as \"1GiB\"")]
    NotANumber,
    #[error("is larger than this program can count")]
    TooLarge,
}

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const AMBIGUOUS: [(&str, &str, &str); 4] =
    [("K", "KiB", "KB"), ("M", "MiB", "MB"), ("G", "GiB", "GB"), ("T", "TiB", "TB")];

/// Bytes meant by `text`: a whole number, with one of the units KiB, MiB, GiB, TiB (powers of 1024), KB, MB, GB, TB
/// (powers of 1000), B, or none.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits == 0 {
        return Err(SizeError::NotANumber);
    }
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if unit.starts_with(['.', ',', '_']) {
        return Err(SizeError::NotANumber);
    }
    if let Some((_, binary, decimal)) = AMBIGUOUS.iter().find(|(a, _, _)| a.eq_ignore_ascii_case(unit)) {
        return Err(SizeError::Ambiguous { unit: unit.to_owned(), binary, decimal });
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(SizeError::UnknownUnit { unit: unit.to_owned() });
    };
    // The digits are ASCII digits, so the only way to fail is a number that does not fit.
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(*factor).ok_or(SizeError::TooLarge)
}

/// A size for people: exact where a unit divides it, else rounded to one decimal.
pub fn show_size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, factor) in units {
        if bytes >= factor {
            let rounded = bytes as f64 / factor as f64;
            return if bytes.is_multiple_of(factor) {
                format!("{} {name}", bytes / factor)
            } else {
                format!("{rounded:.1} {name}")
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size(" 256 MiB "), Ok(256 << 20));
        assert_eq!(parse_size("2TB"), Ok(2_000_000_000_000));
        assert_eq!(parse_size("8B"), Ok(8));
        assert_eq!(parse_size("16777215TiB"), Ok(16_777_215 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        let text = |s: &str| parse_size(s).unwrap_err().to_string();
        assert_eq!(text("1G"), "has the ambiguous unit \"G\": write GiB (1024) or GB (1000)");
        assert!(text("1gib").contains("unknown unit \"gib\""));
        assert!(text("1.5GiB").contains("whole number"));
        assert!(text("-1").contains("whole number"));
        assert!(text("").contains("whole number"));
        assert!(text("GiB").contains("whole number"));
        assert!(text("1\u{e9}").contains("unknown unit"));
        assert!(text("99999999999999999999").contains("larger"));
        assert!(text("16777216TiB").contains("larger"));
    }

    #[test]
    fn sizes_are_shown_for_people() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(4096), "4 KiB");
        assert_eq!(show_size(1 << 30), "1 GiB");
        assert_eq!(show_size((1 << 30) + (1 << 29)), "1.5 GiB");
        assert_eq!(show_size(u64::MAX), "16777216.0 TiB");
    }
}
