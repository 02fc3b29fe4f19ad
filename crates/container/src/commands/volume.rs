//! `volume …`.

use container_api::apiserver::{ApiClient, QUICK, Request, SLOW};
use container_api::mounts::{PrunedVolumes, Volume};
use container_api::{ApiError, Result};

use crate::args::Format;
use crate::args::volume::{Command, Delete, List};
use crate::failure::{OURS, Outcome, complain, print, print_line};
use crate::render::{self, rows};
use crate::session::Session;

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Command) -> Outcome {
    if let Command::Create(args) = command {
        // Wrong words are said before a service is started.
        let request = Request::CreateVolume(args.request()?);
        let mut client = session.connect_or_start().await?;
        let made: Volume = client.call(&request, &[], Some(SLOW)).await?;
        return print_line(&made.name).map(|()| 0);
    }
    let mut client = session.connect_or_start().await?;
    match command {
        Command::Create(_) => {}
        Command::Delete(args) => return delete(&mut client, args).await,
        Command::Prune => prune(&mut client).await?,
        Command::List(args) => list(&mut client, args).await?,
        Command::Inspect(args) => {
            let all = volumes(&mut client).await?;
            let find = |name: &String| {
                let found = all.iter().find(|volume| volume.name == *name).cloned();
                found.ok_or_else(|| {
                    let name = container_api::escape::escape(name).into_owned();
                    ApiError::not_found(format!("no volume '{name}'"))
                })
            };
            let found = args.names.iter().map(find).collect::<Result<Vec<_>>>()?;
            print(&render::pretty(&found)?)?;
        }
    }
    Ok(0)
}

async fn volumes(client: &mut ApiClient) -> Result<Vec<Volume>> {
    client.call(&Request::ListVolumes, &[], Some(QUICK)).await
}

async fn prune(client: &mut ApiClient) -> Outcome<()> {
    let pruned: PrunedVolumes = client.call(&Request::PruneVolumes, &[], Some(SLOW)).await?;
    pruned.names.iter().try_for_each(|name| print_line(name))?;
    print_line(&format!("Reclaimed {} in disk space", render::size(pruned.reclaimed)))
}

/// One after the other; what fails is said, and the rest is done.
async fn delete(client: &mut ApiClient, args: &Delete) -> Outcome {
    let names = match (args.names.is_empty(), args.all) {
        (true, false) => {
            return Err(ApiError::invalid("no volumes specified and --all not supplied").into());
        }
        (false, true) => {
            return Err(ApiError::invalid("volumes specified together with --all").into());
        }
        (false, false) => args.names.clone(),
        (true, true) => {
            let unused = volumes(client).await?.into_iter().filter(|v| v.used_by.is_empty());
            unused.map(|volume| volume.name).collect()
        }
    };
    let mut code = 0;
    for name in names {
        let request = Request::DeleteVolume { name: name.clone() };
        match client.call::<()>(&request, &[], Some(SLOW)).await {
            Ok(()) => print_line(&name)?,
            Err(error) => {
                complain(&error.message);
                code = OURS;
            }
        }
    }
    Ok(code)
}

async fn list(client: &mut ApiClient, args: &List) -> Outcome<()> {
    let found = volumes(client).await?;
    if args.quiet {
        return found.iter().try_for_each(|volume| print_line(&volume.name));
    }
    match args.format {
        Format::Table => print(&rows::volumes(&found)),
        format => print(&render::data(format, "volumes", &found)?),
    }
}
