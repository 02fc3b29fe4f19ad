//! `container-images serve`: from start to end of the service's process.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use container_api::config::Config;
use container_api::images::SOCKET;
use container_api::paths::AppRoot;
use container_api::{ApiError, Result, serve, socket};
use tokio::sync::Notify;

use crate::kernel;
use crate::sandbox;
use crate::service::Images;
use crate::store::Store;

/// Threads for reading and writing. Each pull uses a few, each load and unpack one; a load may wait
/// for its caller.
const BLOCKING_THREADS: usize = 128;
/// How long operations may take to end when the service does.
const GRACE: Duration = Duration::from_secs(2);

/// Serves the app root until SIGTERM or a shutdown request. `allow_missing` adds to the
/// configuration's.
pub fn serve(root: &AppRoot, config: &Config, allow_missing: &[String]) -> Result<()> {
    let (images, kernels) = (root.images(), root.kernels());
    for directory in [&images, &kernels] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| ApiError::from(e).context(format!("creating {}", directory.display())))?;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _lock = serve::lock(&images, "images.lock", "container-images")?;
    let mut allowed = config.security.allow_missing.clone();
    allowed.extend_from_slice(allow_missing);
    sandbox::enter(&[&images, &kernels], &sandbox::program_directories()?, &allowed)?;
    let store = Arc::new(Store::open(&images)?);
    kernel::remove_unfinished(&kernels)
        .map_err(|e| ApiError::from(e).context(format!("cleaning {}", kernels.display())))?;
    // Last: whoever can connect finds a store without remains.
    let listener = socket::bind(&images, SOCKET)
        .map_err(|e| ApiError::from(e).context(format!("binding {SOCKET}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    let shutdown = Arc::new(Notify::new());
    let service = Images::new(store, config.registry.clone(), kernels, shutdown.clone());
    let result = runtime.block_on(serve::until_told(listener, Arc::new(service), &shutdown));
    runtime.shutdown_timeout(GRACE);
    result
}
