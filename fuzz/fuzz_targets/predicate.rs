//! The language of `container system logs --predicate`, applied to a line.

#![no_main]

use container::predicate::{Field, Predicate};
use libfuzzer_sys::fuzz_target;

// Up to the first zero byte the predicate, then the line.
fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (text, line) = text.split_once('\0').unwrap_or((&text, ""));
    let Ok(predicate) = Predicate::parse(text) else { return };
    let field = |field: Field| match field {
        Field::Message => line,
        Field::Level => "INFO",
        Field::Container => "",
        _ => "container-apiserver",
    };
    let holds = predicate.holds(&field);
    // Its negation is the opposite, where it is not too long or too deep by that.
    if let Ok(not) = Predicate::parse(&format!("NOT ({text})")) {
        assert_eq!(not.holds(&field), !holds, "{text}");
    }
});
