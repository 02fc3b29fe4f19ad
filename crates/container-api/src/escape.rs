//! Strings of strangers, made safe to show.
//!
//! A guest, an image or a registry may put terminal escapes, newlines or bidirectional marks into
//! any string. Whatever prints or logs one passes it through [`escape`] first.

use std::borrow::Cow;

/// Whether `c` could change how the text around it is shown.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `text` with control characters, line separators, and bidirectional or invisible marks written
/// as Rust escapes (`\n`, `\u{1b}`).
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// [`escape`] for bytes: what is not UTF-8 becomes the replacement character.
pub fn escape_bytes(bytes: &[u8]) -> String {
    escape(&String::from_utf8_lossy(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_untouched() {
        assert!(matches!(escape("böse, but printable"), Cow::Borrowed(_)));
    }

    #[test]
    fn escapes_and_marks_are_shown() {
        assert_eq!(escape("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(escape_bytes(b"\xff\x07"), "\u{fffd}\\u{7}");
    }
}
