//! What the command line asks about networks themselves.

use std::collections::BTreeSet;

use container_api::apiserver::CreateOptions;
use container_api::network::Request;
use container_api::varlink::Reply;
use container_api::{ApiError, ErrorCode, Result};
use serde_json::Value;

use crate::engine::{Engine, Reservation};
use crate::validate;

impl Engine {
    /// Checks what a new container asks of networks. They stay while the reservation does.
    pub async fn check_network(
        &self,
        options: &CreateOptions,
        reservation: &Reservation,
    ) -> Result<()> {
        let network = validate::network::resolve(options)?;
        if network.networks.is_empty() {
            return Ok(());
        }
        let _no_removal = self.networks_in_use.lock().await;
        let names = network.networks.iter().map(|choice| choice.network.clone());
        reservation.joins(names.collect());
        self.networks.check(&network).await
    }

    /// Relays a request to the network service, with what only this one knows. A network that a
    /// container is configured with can't be removed, whether that runs or not.
    pub async fn network_request(&self, mut request: Request) -> Result<Reply> {
        let mut removal = None;
        match &mut request {
            Request::Delete { names, in_use } => {
                removal = Some(self.networks_in_use.lock().await);
                let users = self.network_users();
                if let Some((network, user)) = users.iter().find(|(n, _)| names.contains(n)) {
                    let message = format!(
                        "network '{network}' is used by container '{user}': delete that first"
                    );
                    return Err(ApiError::new(ErrorCode::InUse, message));
                }
                *in_use = networks_of(&users);
            }
            Request::Prune { in_use } => {
                removal = Some(self.networks_in_use.lock().await);
                *in_use = networks_of(&self.network_users());
            }
            Request::Create(_) | Request::List { .. } | Request::Dns(_) => {}
            _ => {
                let message = "that is asked of the network service by this one alone";
                return Err(ApiError::new(ErrorCode::PermissionDenied, message));
            }
        }
        let answer: Value = self.networks.call(&request).await?;
        drop(removal);
        Reply::new(&answer)
    }
}

fn networks_of(users: &[(String, String)]) -> Vec<String> {
    let names: BTreeSet<&String> = users.iter().map(|(network, _)| network).collect();
    names.into_iter().cloned().collect()
}
