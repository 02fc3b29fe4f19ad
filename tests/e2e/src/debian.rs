//! The Debian image with python, which `cargo xtask` makes: for tests that need a C library's
//! process, or python's view of the kernel.

use std::path::PathBuf;

use crate::installation::{Installation, target};

/// The name that it loads under.
pub const NAME: &str = "debian-python";

impl Installation {
    /// Loads the image.
    ///
    /// # Panics
    /// When it was not made: `cargo xtask image` does.
    #[track_caller]
    pub fn load_debian(&self) {
        let archive = std::env::var_os("CONTAINER_TEST_DEBIAN").map(PathBuf::from);
        let archive = archive
            .unwrap_or_else(|| target().expect("the target directory").join("demo/debian.oci.tar"));
        assert!(archive.exists(), "no {}: 'cargo xtask image' makes it", archive.display());
        self.load_archive(&archive);
    }
}
