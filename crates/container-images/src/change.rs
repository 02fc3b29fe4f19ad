//! `--change` of `commit`: instructions of a Dockerfile that change an image's configuration.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Most bytes of one instruction.
const MAX_LEN: usize = 64 << 10;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD`, `ENTRYPOINT`: the key, and the words.
    Words(&'static str, Vec<String>),
    /// `USER`, `WORKDIR`, `STOPSIGNAL`: the key, and the text.
    Text(&'static str, String),
    /// `EXPOSE`, `VOLUME`: the key, and what is added to its set.
    Set(&'static str, Vec<String>),
    /// `ENV`.
    Environment(Vec<(String, String)>),
    /// `LABEL`.
    Labels(Vec<(String, String)>),
}

impl Change {
    /// Parses an instruction.
    pub fn parse(text: &str) -> Result<Change> {
        let wrong = |problem: &str| {
            let shown: String = text.chars().take(100).collect();
            let shown = container_api::escape::escape(&shown).into_owned();
            Error::malformed(format!("--change '{shown}'"), problem)
        };
        if text.len() > MAX_LEN {
            return Err(wrong("it is too long"));
        }
        let text = text.trim();
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(wrong("it says nothing"));
        }
        let words = || split(rest).ok_or_else(|| wrong("a quote does not end"));
        let one = |key| match words()? {
            words if words.len() == 1 => Ok(Change::Text(key, words.concat())),
            _ => Err(wrong("one word is needed")),
        };
        match name.to_ascii_uppercase().as_str() {
            "CMD" => Ok(Change::Words("Cmd", command(rest))),
            "ENTRYPOINT" => Ok(Change::Words("Entrypoint", command(rest))),
            "USER" => one("User"),
            "WORKDIR" => one("WorkingDir"),
            "STOPSIGNAL" => one("StopSignal"),
            "VOLUME" => Ok(Change::Set("Volumes", array(rest).map_or_else(words, Ok)?)),
            "EXPOSE" => {
                let ports = words()?.iter().map(|word| port(word)).collect::<Option<_>>();
                Ok(Change::Set("ExposedPorts", ports.ok_or_else(|| wrong("not a port"))?))
            }
            "ENV" => {
                pairs(&words()?).map(Change::Environment).ok_or_else(|| wrong("not NAME=value"))
            }
            "LABEL" => pairs(&words()?).map(Change::Labels).ok_or_else(|| wrong("not NAME=value")),
            _ => Err(wrong(
                "only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR \
                 can be changed",
            )),
        }
    }

    /// Changes what an image's configuration says about running it.
    pub fn apply(&self, config: &mut Map<String, Value>) {
        match self {
            Change::Words(key, words) => {
                config.insert((*key).into(), json!(words));
            }
            Change::Text(key, text) => {
                config.insert((*key).into(), json!(text));
            }
            Change::Set(key, names) => {
                let set = object(config, key);
                set.extend(names.iter().map(|name| (name.clone(), json!({}))));
            }
            Change::Labels(pairs) => {
                let labels = object(config, "Labels");
                labels.extend(pairs.iter().map(|(name, value)| (name.clone(), json!(value))));
            }
            Change::Environment(pairs) => {
                let value = config.entry("Env").or_insert(Value::Null);
                let mut all: Vec<Value> = value.as_array().cloned().unwrap_or_default();
                for (name, value) in pairs {
                    let old = format!("{name}=");
                    all.retain(|v| v.as_str().is_none_or(|v| !v.starts_with(&old)));
                    all.push(json!(format!("{name}={value}")));
                }
                *value = Value::Array(all);
            }
        }
    }
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it is one")
}

fn array(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A list of words, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    array(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.into()])
}

/// `PORT[/PROTOCOL]` with its protocol.
fn port(word: &str) -> Option<String> {
    let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let number: u16 = number.parse().ok().filter(|n| *n > 0)?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}

/// `NAME=value…`, or a name and a value.
fn pairs(words: &[String]) -> Option<Vec<(String, String)>> {
    if let [name, value @ ..] = words
        && !name.contains('=')
        && !value.is_empty()
    {
        return Some(vec![(name.clone(), value.join(" "))]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Words, with quotes and backslashes as a Dockerfile has them; `None` when a quote does not end.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), letter) if open == letter => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(letters.next()?),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs_of(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn instructions_are_understood() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_string()).collect::<Vec<_>>();
        let table = [
            ("CMD [\"a\", \"b c\"]", Change::Words("Cmd", words(&["a", "b c"]))),
            ("cmd echo $X", Change::Words("Cmd", words(&["/bin/sh", "-c", "echo $X"]))),
            ("ENTRYPOINT []", Change::Words("Entrypoint", vec![])),
            ("USER web:web", Change::Text("User", "web:web".into())),
            ("WORKDIR \"/a b\"", Change::Text("WorkingDir", "/a b".into())),
            ("EXPOSE 80 53/udp", Change::Set("ExposedPorts", words(&["80/tcp", "53/udp"]))),
            ("VOLUME [\"/d\"]", Change::Set("Volumes", words(&["/d"]))),
            ("VOLUME /d /e", Change::Set("Volumes", words(&["/d", "/e"]))),
            ("ENV A=1 B='x y'", Change::Environment(pairs_of(&[("A", "1"), ("B", "x y")]))),
            ("ENV A some words", Change::Environment(pairs_of(&[("A", "some words")]))),
            ("LABEL a.b=", Change::Labels(pairs_of(&[("a.b", "")]))),
        ];
        for (text, expected) in table {
            assert_eq!(Change::parse(text).unwrap(), expected, "{text}");
        }
        for bad in
            ["", "CMD", "RUN x", "EXPOSE 0", "EXPOSE x", "ENV A", "ENV =1", "USER a b", "LABEL 'a"]
        {
            Change::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn later_variables_win() {
        let mut config = Map::new();
        config.insert("Env".into(), json!(["A=1", "AB=2"]));
        Change::parse("ENV A=3").unwrap().apply(&mut config);
        assert_eq!(config["Env"], json!(["AB=2", "A=3"]));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: String) {
            if let Ok(change) = Change::parse(&text) {
                change.apply(&mut Map::new());
            }
        }
    }
}
