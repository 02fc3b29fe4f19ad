//! Messages of the services' sockets, what the audit trail makes of them, and the trail's own
//! records.

#![no_main]

use container_api::audit::{MAX_LINE, Record, observed};
use container_api::{apiserver, images, network, runtime};
use container_apiserver::audit::describe::describe;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is read must be written so that it reads as the same.
fn again<T: DeserializeOwned + Serialize>(data: &[u8]) -> Option<T> {
    let request: T = serde_json::from_slice(data).ok()?;
    let text = serde_json::to_vec(&request).expect("it can be written");
    let second: T = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&second).expect("it can be written"), text);
    Some(request)
}

fuzz_target!(|data: &[u8]| {
    if let Some(request) = again::<apiserver::Request>(data) {
        let described = describe(&request);
        let text = serde_json::to_vec(&described.arguments).expect("it can be written");
        let subject = described.subject.unwrap_or_default().len();
        assert!(text.len() + subject < MAX_LINE / 2, "a record of {} bytes", text.len());
    }
    again::<images::Request>(data);
    again::<network::Request>(data);
    again::<runtime::Request>(data);
    again::<Record>(data);
    if let Some(observation) = observed::parse(data) {
        assert!(observation.details.len() <= observed::MAX_DETAILS);
    }
});
