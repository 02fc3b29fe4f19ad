//! What a layer may ask for.

/// Bounds on what the layers of one image may make the builder hold or write.
///
/// They count over all layers of the image together and never go down again when a later layer
/// deletes something, so no sequence of layers gets round them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file content (holes not counted).
    pub max_data_bytes: u64,
    /// Length of the finished image in bytes, holes included.
    pub max_image_bytes: u64,
    /// Bytes of one decompressed layer stream.
    pub max_layer_bytes: u64,
    /// Entries, and directories made because an entry's parent was missing.
    pub max_entries: u64,
    /// Bytes of one path component. Linux allows 255.
    pub max_name_bytes: usize,
    /// Bytes of a path or link target. Linux allows 4095.
    pub max_path_bytes: usize,
    /// Directories above an entry.
    pub max_depth: usize,
    /// Bytes of one pax header.
    pub max_pax_bytes: u64,
    /// Data segments of one sparse file.
    pub max_sparse_segments: usize,
    /// Apparent size of one file in bytes.
    pub max_file_bytes: u64,
    /// Bytes of the extended attributes of one inode, as stored.
    pub max_inode_xattr_bytes: usize,
    /// Bytes of names, link targets, extended attributes and block maps held in memory.
    pub max_metadata_bytes: u64,
    /// Bytes of file tails kept in memory to be packed beside their inodes; when they are used
    /// up, tails get blocks of their own.
    pub max_inline_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_data_bytes: 60 << 30,
            max_image_bytes: 64 << 30,
            max_layer_bytes: 64 << 30,
            max_entries: 2_000_000,
            max_name_bytes: 255,
            max_path_bytes: 4095,
            max_depth: 1024,
            max_pax_bytes: 1 << 20,
            max_sparse_segments: 1 << 18,
            max_file_bytes: 16 << 40,
            max_inode_xattr_bytes: 128 << 10,
            max_metadata_bytes: 256 << 20,
            max_inline_bytes: 64 << 20,
        }
    }
}
