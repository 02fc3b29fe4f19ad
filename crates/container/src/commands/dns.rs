//! `system dns …`.

use container_api::network::{DnsDomain, DnsRequest, Request};

use super::network::call;
use crate::args::Format;
use crate::args::system::Dns;
use crate::failure::{Outcome, print, print_line, warn};
use crate::render::{self, rows};
use crate::session::Session;

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Dns) -> Outcome {
    let mut client = session.connect_or_start().await?;
    match command {
        Dns::Create(args) => {
            let domain = args.domain()?;
            let request = DnsRequest::Create { domain, localhost: args.localhost };
            let made: DnsDomain = call(&mut client, Request::Dns(request)).await?;
            print_line(&made.domain)?;
            // What is left to do is no output for scripts.
            if let Some(advice) = &made.advice {
                warn(advice);
            }
        }
        Dns::Delete(args) => {
            let request = DnsRequest::Delete { domain: args.domain()? };
            call::<()>(&mut client, Request::Dns(request)).await?;
            print_line(&args.domain()?)?;
        }
        Dns::List(args) => {
            let found: Vec<DnsDomain> = call(&mut client, Request::Dns(DnsRequest::List)).await?;
            match args.format {
                _ if args.quiet => {
                    found.iter().try_for_each(|domain| print_line(&domain.domain))?;
                }
                Format::Table => print(&rows::domains(&found))?,
                format => print(&render::data(format, "domains", &found)?)?,
            }
        }
    }
    Ok(0)
}
