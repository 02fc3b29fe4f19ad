//! `system check --state`.

use container_api::{ApiError, ErrorCode};

use super::Row;
use crate::failure::Outcome;
use crate::session::Session;

/// One row for each thing that is compared.
pub async fn rows(_session: &Session) -> Outcome<Vec<Row>> {
    let message = "system check --state is not supported yet: leave --state out";
    Err(ApiError::new(ErrorCode::Unsupported, message).into())
}
