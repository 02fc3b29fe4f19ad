//! Layers to images, checked by reading them back and by `fsck.erofs`.

mod formats;
mod hostile;
mod large;
mod round_trip;
mod semantics;
mod support;
