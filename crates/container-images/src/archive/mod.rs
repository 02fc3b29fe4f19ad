//! Archives of images: OCI layouts and what `docker save` writes, in and out.

mod docker;
mod load;
mod save;
mod stream;

pub use load::load;
pub use save::save;
pub(crate) use stream::archive_error;
pub use stream::{CallerReader, CallerWriter};
