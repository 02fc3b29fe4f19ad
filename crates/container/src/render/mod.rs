//! What commands print: tables for people, JSON, YAML and TOML for programs.

use container_api::escape::escape;
use container_api::types::Timestamp;
use container_api::{ApiError, Result};
use serde::Serialize;
use serde_json::Value;

use crate::args::Format;

pub mod rows;
pub mod stats;
pub mod usage;
mod yaml;

/// A table: upper-case headings, columns padded to their widest cell plus two spaces, as
/// apple/container has it. Cells are escaped.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(headings.map(String::from))
        .chain(rows.iter().map(|row| row.each_ref().map(|cell| escape(cell).into_owned())))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0) + 2);
    let mut out = String::new();
    for row in &rows {
        let line: String =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `value` in a form for programs; `name` is the table that TOML puts a list under.
///
/// # Errors
/// `Format::Table` has no general form, which is a mistake of the caller.
pub fn data(format: Format, name: &str, value: &impl Serialize) -> Result<String> {
    let failed = |e: &dyn std::fmt::Display| ApiError::internal(format!("rendering {name}: {e}"));
    let value = serde_json::to_value(value).map_err(|e| failed(&e))?;
    match format {
        Format::Json => Ok(format!("{}\n", printable(&value.to_string()))),
        Format::Yaml => Ok(printable(&yaml::render(&value))),
        Format::Toml => {
            let value = match value {
                list @ Value::Array(_) => {
                    Value::Object([(name.to_owned(), list)].into_iter().collect())
                }
                other => other,
            };
            let text = toml::to_string(&without_nulls(value)).map_err(|e| failed(&e))?;
            Ok(printable(&text))
        }
        Format::Table => Err(failed(&"no table")),
    }
}

/// `value` as JSON with indentation.
pub fn pretty(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| ApiError::internal(format!("rendering: {e}")))?;
    Ok(printable(&text) + "\n")
}

/// JSON, and what is made of it, escapes control characters but neither delete, the second
/// control block, nor bidirectional marks. All of them can stand within strings only, where
/// `\u` means the same in all three forms.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0; 2];
    for c in text.chars() {
        let mut buffer = [0; 4];
        let plain = c == '\n'
            || matches!(escape(c.encode_utf8(&mut buffer)), std::borrow::Cow::Borrowed(_));
        match plain {
            true => out.push(c),
            false => {
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out
}

/// TOML has no null, and no integers above `i64::MAX`.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            items.into_iter().filter(|v| !v.is_null()).map(without_nulls).collect()
        }
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k, without_nulls(v)))
                .collect(),
        ),
        Value::Number(n) if n.as_i64().is_none() && n.is_u64() => Value::String(n.to_string()),
        other => other,
    }
}

/// A moment as tables show it: RFC 3339, UTC, seconds.
pub fn moment(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(at.0).to_string()
}

/// Bytes for people, in powers of 1024 (`512 B`, `1.5 MB`), as apple/container shows sizes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".into(), "running".into()], ["long-name".into(), "".into()]];
        assert_eq!(
            table(["ID", "STATE"], &rows),
            "ID         STATE\na          running\nlong-name\n"
        );
    }

    #[test]
    fn cells_can_not_disturb_the_terminal() {
        let rows = [["\u{1b}]0;x\u{7}\n".into()]];
        assert_eq!(table(["ID"], &rows), "ID\n\\u{1b}]0;x\\u{7}\\n\n");
    }

    #[test]
    fn forms_for_programs() {
        let value = json!([{"id": "a", "none": null, "limit": u64::MAX, "list": [1]}]);
        assert_eq!(
            data(Format::Json, "containers", &value).unwrap(),
            "[{\"id\":\"a\",\"limit\":18446744073709551615,\"list\":[1],\"none\":null}]\n"
        );
        let toml = data(Format::Toml, "containers", &value).unwrap();
        assert_eq!(
            toml,
            "[[containers]]\nid = \"a\"\nlimit = \"18446744073709551615\"\nlist = [1]\n"
        );
        data(Format::Table, "x", &value).unwrap_err();
    }

    #[test]
    fn marks_are_escaped_in_json() {
        let text = pretty(&json!("\u{202e}\u{9b}\u{7f}\u{e0041}")).unwrap();
        assert_eq!(text, "\"\\u202e\\u009b\\u007f\\udb40\\udc41\"\n");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "\u{202e}\u{9b}\u{7f}\u{e0041}");
    }

    #[test]
    fn sizes() {
        assert_eq!(
            (size(0), size(1536), size(5 << 30)),
            ("0 B".into(), "1.5 KB".into(), "5.0 GB".into())
        );
    }
}
