//! The Debian images that `cargo xtask` makes: one with python, for tests that need a C library's
//! process or python's view of the kernel, and one with programs that keep data.

use std::path::PathBuf;

use crate::installation::{Installation, target};

/// The name that the one with python loads under.
pub const NAME: &str = "debian-python";
/// The name that the one with git and PostgreSQL loads under.
pub const PROGRAMS: &str = "debian-programs";

impl Installation {
    /// Loads the image with python.
    ///
    /// # Panics
    /// When it was not made: `cargo xtask image` does.
    #[track_caller]
    pub fn load_debian(&self) {
        self.load_made("CONTAINER_TEST_DEBIAN", "debian.oci.tar");
    }

    /// Loads the image with git and PostgreSQL.
    ///
    /// # Panics
    /// As [`Installation::load_debian`].
    #[track_caller]
    pub fn load_programs(&self) {
        self.load_made("CONTAINER_TEST_PROGRAMS", "programs.oci.tar");
    }

    #[track_caller]
    fn load_made(&self, variable: &str, name: &str) {
        let archive = std::env::var_os(variable).map(PathBuf::from);
        let made = || target().expect("the target directory").join("demo").join(name);
        let archive = archive.unwrap_or_else(made);
        assert!(archive.exists(), "no {}: 'cargo xtask image' makes it", archive.display());
        self.load_archive(&archive);
    }
}
