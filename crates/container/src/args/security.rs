//! `--security-opt`, as Docker spells it.

use std::fs::File;
use std::io::Read;

use container_api::escape::escape;
use container_api::seccomp::{MAX_FILE, Profile, Seccomp, Security};
use container_api::{ApiError, Result};

/// All that were given; of one kind the last counts. Reads the file of a profile.
pub fn options(given: &[String]) -> Result<Security> {
    let mut security = Security::default();
    for option in given {
        let (name, value) = match option.find(['=', ':']) {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (&option[..], None),
        };
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => security.no_new_privileges = Some(true),
            ("no-new-privileges", Some("false")) => security.no_new_privileges = Some(false),
            ("seccomp", Some("unconfined")) => security.seccomp = Seccomp::Unconfined,
            ("seccomp", Some(file)) if !file.is_empty() => security.seccomp = profile(file)?,
            _ => {
                return Err(ApiError::invalid(format!(
                    "--security-opt '{}' is not known here: seccomp=FILE, seccomp=unconfined and \
                     no-new-privileges[=true|false] are",
                    escape(option)
                )));
            }
        }
    }
    Ok(security)
}

fn profile(file: &str) -> Result<Seccomp> {
    let what = || format!("--security-opt seccomp={}", escape(file));
    let mut text = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE as u64 + 1).read_to_end(&mut text))
        .map_err(|e| ApiError::from(e).context(what()))?;
    let profile = Profile::parse(&text).map_err(|e| e.context(what()))?;
    Ok(Seccomp::Profile { profile: Box::new(profile) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &[&str]) -> Result<Security> {
        options(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_docker_takes() {
        assert_eq!(parsed(&[]).unwrap(), Security::default());
        for (text, value) in [
            ("no-new-privileges", true),
            ("no-new-privileges=true", true),
            ("no-new-privileges:false", false),
        ] {
            assert_eq!(parsed(&[text]).unwrap().no_new_privileges, Some(value));
        }
        for text in ["seccomp=unconfined", "seccomp:unconfined"] {
            assert_eq!(parsed(&[text]).unwrap().seccomp, Seccomp::Unconfined);
        }
        for text in ["", "seccomp", "seccomp=", "apparmor=x", "label=disable", "systempaths="] {
            let error = parsed(&[text]).unwrap_err();
            assert!(error.to_string().contains("--security-opt"), "{error}");
        }
    }

    #[test]
    fn profiles_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profile.json");
        let option = format!("seccomp={}", file.display());
        assert!(parsed(&[&option]).is_err());
        std::fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(matches!(parsed(&[&option]).unwrap().seccomp, Seccomp::Profile { .. }));
        std::fs::write(&file, vec![b' '; MAX_FILE + 1]).unwrap();
        let error = parsed(&[&option]).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}
