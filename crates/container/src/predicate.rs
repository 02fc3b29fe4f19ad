//! Which lines of a log are wanted: the predicates of macOS's `log` command, as far as they make
//! sense here.
//!
//! ```text
//! expression = and { OR and }
//! and        = not { AND not }
//! not        = NOT not | ( expression ) | field operator value
//! field      = process | subsystem | category | level | container | message
//! operator   = == | != | CONTAINS | BEGINSWITH | ENDSWITH      each with [c]: any case
//! value      = "…" | '…' | word
//! ```
//! Words of the language are understood in either case; `&&`, `||` and `!` stand for theirs. A
//! level is compared without regard to case.

use container_api::escape::escape;
use container_api::{ApiError, Result};

/// Longest text in bytes.
const MAX_LEN: usize = 4096;
/// Deepest nesting.
const MAX_DEPTH: u32 = 32;

/// What can be said of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The program: `container-apiserver`.
    Process,
    /// The part of the program that speaks, up to its module: `container_apiserver`.
    Subsystem,
    /// The module: `launch`.
    Category,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG`, `TRACE`.
    Level,
    /// The container that it is about.
    Container,
    /// The text with its fields.
    Message,
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    Differs,
    Contains,
    BeginsWith,
    EndsWith,
}

/// A parsed predicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predicate {
    /// Both.
    And(Box<Predicate>, Box<Predicate>),
    /// One of them.
    Or(Box<Predicate>, Box<Predicate>),
    /// The opposite.
    Not(Box<Predicate>),
    /// A field compared with a value.
    Is(Comparison),
}

/// A field compared with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    field: Field,
    operator: Operator,
    any_case: bool,
    value: String,
}

impl Predicate {
    /// Parses a text.
    ///
    /// # Errors
    /// `InvalidArgument` with what was expected where.
    pub fn parse(text: &str) -> Result<Predicate> {
        if text.len() > MAX_LEN {
            return Err(ApiError::invalid(format!("a predicate has at most {MAX_LEN} bytes")));
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
        let predicate = parser.any()?;
        match parser.next() {
            None => Ok(predicate),
            Some(token) => Err(unexpected(&token, "AND, OR or the end")),
        }
    }

    /// Whether a line is wanted, of which `field` tells.
    pub fn holds<'t>(&self, field: &impl Fn(Field) -> &'t str) -> bool {
        match self {
            Predicate::And(a, b) => a.holds(field) && b.holds(field),
            Predicate::Or(a, b) => a.holds(field) || b.holds(field),
            Predicate::Not(a) => !a.holds(field),
            Predicate::Is(comparison) => comparison.holds(field(comparison.field)),
        }
    }
}

impl Comparison {
    fn holds(&self, text: &str) -> bool {
        if self.any_case || self.field == Field::Level {
            self.compare(&text.to_lowercase(), &self.value.to_lowercase())
        } else {
            self.compare(text, &self.value)
        }
    }

    fn compare(&self, text: &str, value: &str) -> bool {
        match self.operator {
            Operator::Equals => text == value,
            Operator::Differs => text != value,
            Operator::Contains => text.contains(value),
            Operator::BeginsWith => text.starts_with(value),
            Operator::EndsWith => text.ends_with(value),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Word(String),
    Text(String),
    Sign(&'static str),
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    const SIGNS: [(&str, &str); 6] =
        [("==", "=="), ("!=", "!="), ("&&", "AND"), ("||", "OR"), ("=", "=="), ("!", "NOT")];
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = SIGNS.into_iter().find(|(sign, _)| rest.starts_with(sign));
        let (token, after) = match (first, sign) {
            ('(', _) => (Token::Open, &rest[1..]),
            (')', _) => (Token::Close, &rest[1..]),
            ('"' | '\'', _) => quoted(&rest[1..], first)?,
            (_, Some((sign, meaning))) => (Token::Sign(meaning), &rest[sign.len()..]),
            _ => {
                let ends = |c: char| c.is_whitespace() || "()=!&|\"'".contains(c);
                let end = rest.find(ends).unwrap_or(rest.len());
                if end == 0 {
                    let message = format!("'{}' is not part of a predicate", escape(rest));
                    return Err(ApiError::invalid(message));
                }
                (Token::Word(rest[..end].to_owned()), &rest[end..])
            }
        };
        found.push(token);
        rest = after.trim_start();
    }
    Ok(found)
}

/// A text up to its closing mark; a backslash takes the next character as it is.
fn quoted(rest: &str, mark: char) -> Result<(Token, &str)> {
    let mut text = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => text.extend(chars.next().map(|(_, c)| c)),
            c if c == mark => return Ok((Token::Text(text), &rest[at + c.len_utf8()..])),
            c => text.push(c),
        }
    }
    Err(ApiError::invalid(format!("a text in a predicate has no closing {mark}")))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Takes the next token if it is this word of the language.
    fn takes(&mut self, word: &str) -> bool {
        let found = match self.tokens.get(self.at) {
            Some(Token::Word(text)) => text.eq_ignore_ascii_case(word),
            Some(Token::Sign(sign)) => *sign == word,
            _ => false,
        };
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<Predicate> {
        let mut left = self.all()?;
        while self.takes("OR") {
            left = Predicate::Or(Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Predicate> {
        let mut left = self.one()?;
        while self.takes("AND") {
            left = Predicate::And(Box::new(left), Box::new(self.one()?));
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Predicate> {
        if self.takes("NOT") {
            return self.deeper(|parser| Ok(Predicate::Not(Box::new(parser.one()?))));
        }
        match self.next() {
            Some(Token::Open) => self.deeper(|parser| {
                let inner = parser.any()?;
                match parser.next() {
                    Some(Token::Close) => Ok(inner),
                    other => Err(missing(other, "AND, OR or ')'")),
                }
            }),
            Some(Token::Word(name)) => self.comparison(&name),
            other => Err(missing(other, "a field, NOT or '('")),
        }
    }

    fn deeper(&mut self, parse: impl FnOnce(&mut Self) -> Result<Predicate>) -> Result<Predicate> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ApiError::invalid("the predicate is nested too deeply"));
        }
        let inner = parse(self);
        self.depth -= 1;
        inner
    }

    fn comparison(&mut self, name: &str) -> Result<Predicate> {
        let field = match name.to_ascii_lowercase().as_str() {
            "process" => Field::Process,
            "subsystem" => Field::Subsystem,
            "category" => Field::Category,
            "level" => Field::Level,
            "container" => Field::Container,
            "message" | "eventmessage" => Field::Message,
            _ => {
                let message = format!(
                    "'{}' is not process, subsystem, category, level, container or message",
                    escape(name)
                );
                return Err(ApiError::invalid(message));
            }
        };
        let (word, any_case) = match self.next() {
            Some(Token::Sign(sign @ ("==" | "!="))) => (sign.to_owned(), false),
            Some(Token::Word(word)) => {
                let lower = word.to_ascii_lowercase();
                match lower.strip_suffix("[c]") {
                    Some(plain) => (plain.to_owned(), true),
                    None => (lower, false),
                }
            }
            other => return Err(missing(other, "an operator")),
        };
        let operator = match word.as_str() {
            "==" => Operator::Equals,
            "!=" => Operator::Differs,
            "contains" => Operator::Contains,
            "beginswith" => Operator::BeginsWith,
            "endswith" => Operator::EndsWith,
            other => {
                let message =
                    format!("'{}' is not ==, !=, CONTAINS, BEGINSWITH or ENDSWITH", escape(other));
                return Err(ApiError::invalid(message));
            }
        };
        match self.next() {
            Some(Token::Text(value) | Token::Word(value)) => {
                Ok(Predicate::Is(Comparison { field, operator, any_case, value }))
            }
            other => Err(missing(other, "a value")),
        }
    }
}

fn missing(found: Option<Token>, expected: &str) -> ApiError {
    match found {
        Some(token) => unexpected(&token, expected),
        None => ApiError::invalid(format!("the predicate ends where {expected} was expected")),
    }
}

fn unexpected(token: &Token, expected: &str) -> ApiError {
    let shown = match token {
        Token::Open => "(".into(),
        Token::Close => ")".into(),
        Token::Word(text) | Token::Text(text) => escape(text).into_owned(),
        Token::Sign(sign) => (*sign).to_owned(),
    };
    ApiError::invalid(format!("'{shown}' stands where {expected} was expected in the predicate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(predicate: &str) -> bool {
        let field = |field| match field {
            Field::Process => "container-runtime-linux",
            Field::Subsystem => "container_runtime_linux",
            Field::Category => "boot",
            Field::Level => "WARN",
            Field::Container => "web",
            Field::Message => "the guest's \"kernel\" answers ms=12",
        };
        Predicate::parse(predicate).expect(predicate).holds(&field)
    }

    #[test]
    fn comparisons() {
        for (predicate, expected) in [
            ("process == \"container-runtime-linux\"", true),
            ("process == 'container-apiserver'", false),
            ("level == warn", true),
            ("level != 'ERROR' AND container BEGINSWITH we", true),
            ("message CONTAINS 'Guest'", false),
            ("message contains[c] 'Guest'", true),
            (r#"message CONTAINS "\"kernel\"""#, true),
            ("message ENDSWITH \"ms=12\"", true),
            ("NOT (category == boot OR container == db)", false),
            ("!(category == net) && subsystem BEGINSWITH 'container_'", true),
            ("container == db OR container == web AND level == info", false),
            ("(container == db OR container == web) AND level == warn", true),
        ] {
            assert_eq!(holds(predicate), expected, "{predicate}");
        }
    }

    #[test]
    fn what_is_no_predicate_says_where() {
        for (text, what) in [
            ("", "ends where a field"),
            ("level", "ends where an operator"),
            ("level ==", "ends where a value"),
            ("level == a b", "'b' stands where"),
            ("size == 3", "'size' is not process"),
            ("level LIKE 'x'", "'like' is not =="),
            ("(level == a", "')' was expected"),
            ("level == \"a", "no closing"),
            ("level & a", "not part of"),
        ] {
            let error = Predicate::parse(text).expect_err(text);
            assert!(error.message.contains(what), "{text}: {error}");
        }
        Predicate::parse(&"(".repeat(4000)).unwrap_err();
        Predicate::parse(&"!".repeat(4000)).unwrap_err();
        Predicate::parse(&"x".repeat(5000)).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_text_is_a_predicate_or_an_error(text: String) {
            let _ = Predicate::parse(&text).map(|predicate| predicate.holds(&|_| "x"));
        }

        #[test]
        fn any_value_can_be_quoted(value: String) {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            if quoted.len() < 4000 {
                let predicate = Predicate::parse(&format!("message == \"{quoted}\"")).unwrap();
                prop_assert!(predicate.holds(&|_| value.as_str()));
            }
        }
    }
}
