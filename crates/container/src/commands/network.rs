//! `network …`.

use container_api::apiserver::{ApiClient, Request, SLOW};
use container_api::network::{self, DEFAULT_NETWORK, Network};
use container_api::{ApiError, Result};
use serde::de::DeserializeOwned;

use crate::args::Format;
use crate::args::network::{Command, Delete, List};
use crate::failure::{Outcome, print, print_line};
use crate::render::{self, rows};
use crate::session::Session;

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Command) -> Outcome {
    if let Command::Create(args) = command {
        // Wrong words are said before a service is started.
        let request = network::Request::Create(args.request()?);
        let mut client = session.connect_or_start().await?;
        let made: Network = call(&mut client, request).await?;
        return print_line(&made.id).map(|()| 0);
    }
    let mut client = session.connect_or_start().await?;
    match command {
        Command::Create(_) => {}
        Command::Delete(args) => delete(&mut client, args).await?,
        Command::Prune => {
            let request = network::Request::Prune { in_use: Vec::new() };
            lines(call(&mut client, request).await?)?;
        }
        Command::List(args) => list(&mut client, args).await?,
        Command::Inspect(args) => {
            let found = networks(&mut client, args.names.clone()).await?;
            print(&render::pretty(&found)?)?;
        }
    }
    Ok(0)
}

/// One request about networks.
pub async fn call<R: DeserializeOwned>(
    client: &mut ApiClient,
    request: network::Request,
) -> Result<R> {
    client.call(&Request::Networks(request), &[], Some(SLOW)).await
}

async fn networks(client: &mut ApiClient, names: Vec<String>) -> Result<Vec<Network>> {
    call(client, network::Request::List { names }).await
}

fn lines(names: Vec<String>) -> Outcome<()> {
    names.iter().try_for_each(|name| print_line(name))
}

async fn delete(client: &mut ApiClient, args: &Delete) -> Outcome<()> {
    let names = match (args.names.is_empty(), args.all) {
        (true, false) => {
            return Err(ApiError::invalid("no networks specified and --all not supplied").into());
        }
        (false, true) => {
            return Err(ApiError::invalid("networks specified together with --all").into());
        }
        (false, false) => args.names.clone(),
        (true, true) => {
            let all = networks(client, Vec::new()).await?.into_iter().map(|network| network.id);
            all.filter(|name| name != DEFAULT_NETWORK).collect()
        }
    };
    if names.is_empty() {
        return Ok(());
    }
    let request = network::Request::Delete { names, in_use: Vec::new() };
    lines(call(client, request).await?)
}

async fn list(client: &mut ApiClient, args: &List) -> Outcome<()> {
    let found = networks(client, Vec::new()).await?;
    if args.quiet {
        return lines(found.into_iter().map(|network| network.id).collect());
    }
    match args.format {
        Format::Table => print(&rows::networks(&found)),
        format => print(&render::data(format, "networks", &found)?),
    }
}
