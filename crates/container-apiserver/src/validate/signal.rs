//! Signals by name and number (Linux, x86_64 and aarch64 alike).

use container_api::escape::escape;
use container_api::{ApiError, Result};

/// Names in the order of their numbers, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First and last real-time signal, as glibc counts them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of `SIGTERM`, `term`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
pub fn parse(text: &str) -> Result<i32> {
    let unknown = || ApiError::invalid(format!("unknown signal '{}'", escape(text)));
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.parse().map_err(|_| unknown())?;
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let alias = match bare {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    if let Some(index) = NAMES.iter().position(|name| *name == alias) {
        return Ok(index as i32 + 1);
    }
    let digits = |rest: &str| match rest.bytes().all(|b| b.is_ascii_digit()) {
        true => rest.parse::<i32>().ok(),
        false => None,
    };
    let number = match (bare.strip_prefix("RTMIN"), bare.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(rest), _) => {
            rest.strip_prefix('+').and_then(digits).and_then(|n| RTMIN.checked_add(n))
        }
        (_, Some(rest)) => {
            rest.strip_prefix('-').and_then(digits).and_then(|n| RTMAX.checked_sub(n))
        }
        _ => None,
    };
    number.filter(|n| (RTMIN..=RTMAX).contains(n)).ok_or_else(unknown)
}

/// The name of a signal's number: `SIGTERM`, `SIGRTMIN+3`.
pub fn name(number: i32) -> String {
    let index = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
    match index.and_then(|i| NAMES.get(i)) {
        Some(name) => format!("SIG{name}"),
        None if number == RTMIN => "SIGRTMIN".into(),
        None if (RTMIN..=RTMAX).contains(&number) => format!("SIGRTMIN+{}", number - RTMIN),
        None => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_numbers_agree() {
        for number in (1..=31).chain(RTMIN..=RTMAX) {
            assert_eq!(parse(&name(number)).unwrap(), number);
            assert_eq!(parse(&number.to_string()).unwrap(), number);
        }
        assert_eq!(parse("term").unwrap(), 15);
        assert_eq!(parse("SIGRTMAX-1").unwrap(), 63);
        for wrong in ["", "0", "65", "-9", "SIG", "SIGFOO", "RTMIN+31", "RTMIN+", "9 "] {
            parse(wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
