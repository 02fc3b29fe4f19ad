//! A process's environment.

use std::collections::BTreeMap;

/// Where programs are looked for when the container doesn't say.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The given variables, the last of each name at the place of its first, and
/// what every process has.
pub fn build(given: &[Vec<u8>], home: &[u8], hostname: &str, terminal: bool) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = Vec::with_capacity(given.len() + 4);
    let mut places: BTreeMap<&[u8], usize> = BTreeMap::new();
    for variable in given {
        match places.get(name(variable)) {
            Some(place) => env[*place].clone_from(variable),
            None => {
                places.insert(name(variable), env.len());
                env.push(variable.clone());
            }
        }
    }
    let mut defaults = vec![
        (&b"PATH"[..], DEFAULT_PATH),
        (&b"HOSTNAME"[..], hostname.as_bytes()),
        (&b"HOME"[..], home),
    ];
    if terminal {
        defaults.push((b"TERM", b"xterm"));
    }
    for (name, value) in defaults {
        if !places.contains_key(name) {
            env.push([name, b"=", value].concat());
        }
    }
    env
}

/// The value of a variable.
pub fn value<'a>(env: &'a [Vec<u8>], wanted: &[u8]) -> Option<&'a [u8]> {
    env.iter().find(|v| name(v) == wanted).and_then(|v| v.get(wanted.len() + 1..))
}

fn name(variable: &[u8]) -> &[u8] {
    variable.split(|b| *b == b'=').next().unwrap_or(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_wins_and_defaults_fill() {
        let given = [b"A=1".to_vec(), b"PATH=/x".to_vec(), b"A=2=3".to_vec()];
        let env = build(&given, b"/root", "box", true);
        assert_eq!(env[0], b"A=2=3");
        assert_eq!(value(&env, b"PATH"), Some(&b"/x"[..]));
        assert_eq!(value(&env, b"HOME"), Some(&b"/root"[..]));
        assert_eq!(value(&env, b"HOSTNAME"), Some(&b"box"[..]));
        assert_eq!(value(&env, b"TERM"), Some(&b"xterm"[..]));
        assert_eq!(env.len(), 5);
    }

    #[test]
    fn without_a_terminal_no_term() {
        assert_eq!(value(&build(&[], b"/", "h", false), b"TERM"), None);
    }
}
