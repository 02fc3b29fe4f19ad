//! YAML of a JSON value. YAML 1.2 is a superset of JSON, so every scalar but a plain word is
//! written as JSON writes it, and only the nesting is block style.

use serde_json::Value;

/// The document, without a marker before it.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => nested(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => nested(value, 0, &mut out),
        other => {
            out.push_str(&scalar(other));
            out.push('\n');
        }
    }
    out
}

/// A list or map that is not empty, each item on lines of its own after `indent` spaces; the first
/// line's indent is written already.
fn nested(value: &Value, indent: usize, out: &mut String) {
    let mut first = true;
    let mut margin = |out: &mut String| {
        if !first {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        first = false;
    };
    match value {
        Value::Array(items) => {
            for item in items {
                margin(out);
                out.push_str("- ");
                entry(item, indent + 2, true, out);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                margin(out);
                out.push_str(&text(key));
                out.push(':');
                entry(item, indent + 2, false, out);
            }
        }
        _ => {}
    }
}

fn entry(item: &Value, indent: usize, in_list: bool, out: &mut String) {
    let is_nested = match item {
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => false,
    };
    match (is_nested, in_list) {
        (true, true) => nested(item, indent, out),
        (true, false) => {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            nested(item, indent, out);
        }
        (false, _) => {
            if !in_list {
                out.push(' ');
            }
            out.push_str(&scalar(item));
            out.push('\n');
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        other => other.to_string(),
    }
}

/// A word as it is, when no reader could take it for anything else; else in quotes.
fn text(string: &str) -> String {
    let plain = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && string.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c));
    // Words that YAML 1.1 or 1.2 reads as something else.
    let taken = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    if plain && !taken.contains(&&*string.to_ascii_lowercase()) {
        return string.to_owned();
    }
    Value::from(string).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nesting_and_quoting() {
        let value = json!([
            {"id": "web", "labels": {}, "list": ["a: b", "no", "1.5"], "map": {"x": [[1, null]]}},
            "last",
        ]);
        let expected = "\
- id: web
  labels: {}
  list:
    - \"a: b\"
    - \"no\"
    - \"1.5\"
  map:
    x:
      - - 1
        - null
- last
";
        assert_eq!(render(&value), expected);
        assert_eq!(render(&json!([])), "[]\n");
    }
}
