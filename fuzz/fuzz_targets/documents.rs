//! References, and the documents of images.

#![no_main]

use container_images::oci;
use container_images::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = Reference::parse(&text, "docker.io") {
        let again = Reference::parse(&reference.to_string(), "other.example");
        assert_eq!(again.ok(), Some(reference));
    }
    let _ = oci::check_document(data);
    let _ = oci::check_config(data);
});
