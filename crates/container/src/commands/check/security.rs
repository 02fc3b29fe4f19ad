//! `system check --security`: attacks on the running installation.

use container_api::{ApiError, ErrorCode, audit};

use super::Row;
use crate::args::Format;
use crate::failure::Outcome;
use crate::session::Session;

/// All rows, in the order in which they were run.
pub async fn rows(session: &Session) -> Outcome<Vec<Row>> {
    Ok(vec![trail(session)])
}

/// What keeps one container in, in words.
pub async fn explain(_session: &Session, id: &str, _format: Format) -> Outcome {
    let message = format!("{id}: system check of one container is not supported yet");
    Err(ApiError::new(ErrorCode::Unsupported, message).into())
}

fn trail(session: &Session) -> Row {
    let folder = session.root().audit();
    if !folder.exists() {
        return Row::not_run("audit", "the trail is whole", "nothing has been recorded yet".into());
    }
    let outcome = match audit::verify(&folder, &[]) {
        Ok(verified) => {
            Ok(format!("records {} to {} are a chain", verified.first, verified.head.sequence))
        }
        Err(error) => Err(error.message),
    };
    Row::of("audit", "the trail is whole", outcome)
}
