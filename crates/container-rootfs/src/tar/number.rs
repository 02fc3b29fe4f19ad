//! Numbers as tar headers hold them.

/// A header field: octal with spaces or NULs around it, or base-256 when its first bit is set.
/// An empty field is 0.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base256(bytes),
        _ => octal(bytes),
    }
}

fn octal(bytes: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = bytes.iter().position(|byte| !padding(byte)).unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Two's complement, most significant byte first, the very first bit being the mark.
fn base256(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    let negative = first & 0x40 != 0;
    let start = if negative { i64::from(*first) - 0x100 } else { i64::from(first & 0x7f) };
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// A decimal number without sign, as pax records hold it.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A pax time: decimal seconds, maybe negative, maybe with a fraction, which is cut to
/// nanoseconds (towards the past).
pub(super) fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |value, index| {
        value * 10 + fraction.get(index).map_or(0, |digit| u32::from(digit - b'0'))
    });
    let lost = fraction.get(9..).is_some_and(|rest| rest.iter().any(|digit| *digit != b'0'));
    if !negative {
        return Some((seconds, nanos));
    }
    let nanos = nanos + u32::from(lost);
    if nanos == 0 { Some((-seconds, 0)) } else { Some((-seconds - 1, 1_000_000_000 - nanos)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields() {
        assert_eq!(field(b"0000644\0"), Some(0o644));
        assert_eq!(field(b"   644 \0"), Some(0o644));
        assert_eq!(field(b"77777777777"), Some(0o77777777777));
        assert_eq!(field(b"\0\0\0\0"), Some(0));
        assert_eq!(field(b""), Some(0));
        assert_eq!(field(b"0000648\0"), None);
        assert_eq!(field(b"-1\0"), None);
    }

    #[test]
    fn base256_fields() {
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(0x2_0000_0000));
        assert_eq!(field(&[0xff; 12]), Some(-1));
        assert_eq!(field(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(
            field(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
            Some(i64::MAX)
        );
        let min = [0xff, 255, 255, 255, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(field(&min), Some(i64::MIN));
    }

    #[test]
    fn pax_times() {
        assert_eq!(time(b"1350244992.023960108"), Some((1350244992, 23960108)));
        assert_eq!(time(b"5"), Some((5, 0)));
        assert_eq!(time(b"5."), Some((5, 0)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-0.0000000001"), Some((-1, 999_999_999)));
        assert_eq!(time(b"1.00000000019"), Some((1, 0)));
        for bad in [&b""[..], b".5", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }
}
