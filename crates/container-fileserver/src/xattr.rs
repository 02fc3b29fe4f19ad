//! Extended attributes: those of users, and no other.
//!
//! What a guest makes of the kernel's own (`security.*`, `trusted.*`, `system.*`) is not
//! supported, which programs that copy attributes pass over in silence; the host's are not seen
//! either. A read-only share refuses by its mount.

use virtiofsd::passthrough::xattrmap::XattrMap;

use crate::{Result, at};

/// The first rule that fits a name counts; hidden is what the last one refuses.
const RULES: &str = ":ok:all:user.:user.: :unsupported:all:::";

/// What the file system lets through.
pub fn map() -> Result<XattrMap> {
    XattrMap::try_from(RULES).map_err(at("the rules of extended attributes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtiofsd::passthrough::xattrmap::AppliedRule;

    #[test]
    fn users_attributes_pass_and_no_other() {
        let map = map().unwrap();
        assert_eq!(map.map_client_xattr(c"user.a").unwrap(), AppliedRule::Pass(c"user.a".into()));
        for name in [
            c"security.capability",
            c"trusted.overlay.opaque",
            c"system.posix_acl_access",
            c"user",
            c"",
        ] {
            assert_eq!(map.map_client_xattr(name).unwrap(), AppliedRule::Unsupported, "{name:?}");
        }
        let listed = b"security.selinux\0user.a\0trusted.b\0user.c\0system.posix_acl_default\0";
        assert_eq!(map.map_server_xattrlist(listed.to_vec()).unwrap(), b"user.a\0user.c\0");
    }
}
