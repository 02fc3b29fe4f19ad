//! `list`.

use container_api::types::{ContainerSnapshot, Status};

use super::default_domain;
use crate::args::Format;
use crate::args::container::List;
use crate::failure::{Outcome, print, print_line};
use crate::render::{self, rows};
use crate::session::Session;

/// Running containers, with `--all` all of them.
pub async fn list(session: &Session, args: &List) -> Outcome {
    let mut containers = session.connect()?.list().await?;
    containers.retain(|c| args.all || is_shown(c));
    match args.format {
        _ if args.quiet => {
            for container in &containers {
                print_line(&container.configuration.id)?;
            }
        }
        Format::Table => print(&rows::containers(&containers, &default_domain(session)))?,
        format => print(&render::data(format, "containers", &containers)?)?,
    }
    Ok(0)
}

fn is_shown(container: &ContainerSnapshot) -> bool {
    matches!(container.status, Status::Starting | Status::Running | Status::Stopping)
}
