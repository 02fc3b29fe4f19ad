//! Arguments, environment and working directory of a process.

use container_api::escape::escape_bytes;
use container_api::types::{ByteString, ProcessConfig};
use container_api::{ApiError, Result};

/// Longest single string that Linux executes a program with, its NUL included
/// (`MAX_ARG_STRLEN`: 32 pages).
const MAX_STRING: usize = 128 << 10;
/// Most bytes of all strings and the pointers to them: a quarter of the stack's 8 MiB
/// (`execve(2)`), less the program's name and what the kernel adds.
const MAX_TOTAL: usize = (2 << 20) - (8 << 10);
/// A pointer to each string.
const POINTER: usize = 8;

/// Checks that a process can be executed at all in a Linux guest.
pub fn check(process: &ProcessConfig) -> Result<()> {
    if process.executable.as_bytes().is_empty() {
        return Err(ApiError::invalid("the program's name is empty"));
    }
    let mut total = 0;
    let arguments = std::iter::once(&process.executable).chain(&process.arguments);
    for text in arguments.chain(&process.environment) {
        let bytes = text.as_bytes();
        let shown = || escape_bytes(&bytes[..bytes.len().min(40)]);
        if bytes.contains(&0) {
            return Err(ApiError::invalid(format!("a NUL byte in '{}'", shown())));
        }
        if bytes.len() >= MAX_STRING {
            return Err(ApiError::invalid(format!(
                "'{}…' has {} bytes; Linux takes at most {} in one argument or variable",
                shown(),
                bytes.len(),
                MAX_STRING - 1
            )));
        }
        total += bytes.len() + 1 + POINTER;
    }
    if total > MAX_TOTAL {
        return Err(ApiError::invalid(format!(
            "arguments and environment have {total} bytes; Linux takes at most {MAX_TOTAL}"
        )));
    }
    super::resources::check_rlimits(&process.rlimits)?;
    let user = match &process.user {
        container_api::types::User::Raw { user_string } => user_string.as_str(),
        container_api::types::User::Id { .. } => "",
    };
    if user.len() > 256 || user.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!("invalid user '{}'", escape_bytes(user.as_bytes()))));
    }
    super::mount::check_path("working directory", process.working_directory.as_bytes())
}

/// Checks variables as given: `NAME=value`.
pub fn check_environment(variables: &[ByteString]) -> Result<()> {
    for variable in variables {
        let bytes = variable.as_bytes();
        match bytes.iter().position(|b| *b == b'=') {
            Some(1..) => {}
            _ => {
                let shown = escape_bytes(&bytes[..bytes.len().min(40)]);
                return Err(ApiError::invalid(format!("'{shown}' is not NAME=value")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(environment: Vec<ByteString>) -> ProcessConfig {
        ProcessConfig {
            executable: "/bin/true".into(),
            working_directory: "/".into(),
            environment,
            ..ProcessConfig::default()
        }
    }

    #[test]
    fn what_linux_can_execute() {
        let many = (0..10_000).map(|i| format!("VARIABLE_{i}=some value\n").into()).collect();
        check(&process(many)).unwrap();
        let long = format!("A={}", "x".repeat(128 << 10)).into();
        assert!(check(&process(vec![long])).unwrap_err().message.contains("at most 131071"));
        let total = (0..20).map(|i| format!("A{i}={}", "x".repeat(120 << 10)).into()).collect();
        assert!(check(&process(total)).unwrap_err().message.contains("environment have"));
        check(&process(vec![ByteString(b"A=\xff\n".to_vec())])).unwrap();
        check(&process(vec!["A=\0".into()])).unwrap_err();
        let relative = ProcessConfig { working_directory: "x".into(), ..process(vec![]) };
        assert!(check(&relative).unwrap_err().message.contains("not an absolute path"));
    }

    #[test]
    fn variables_have_names() {
        check_environment(&["A=".into(), "A==b".into(), ByteString(b"\xff=1".to_vec())]).unwrap();
        for wrong in ["", "A", "=b"] {
            check_environment(&[wrong.into()]).unwrap_err();
        }
    }
}
