//! `inspect`.

use crate::args::container::Ids;
use crate::failure::{OURS, Outcome, complain, print};
use crate::render;
use crate::session::Session;

/// A JSON list of the containers that were found; each that was not is an error.
pub async fn inspect(session: &Session, args: &Ids) -> Outcome {
    let mut client = session.connect()?;
    let (mut found, mut code) = (Vec::new(), 0);
    for id in &args.ids {
        match client.inspect(id).await {
            Ok(container) => found.push(container),
            Err(error) => {
                complain(&error.message);
                code = OURS;
            }
        }
    }
    print(&render::pretty(&found)?)?;
    Ok(code)
}
