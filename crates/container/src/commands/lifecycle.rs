//! `stop`, `kill`, `delete`, `update`, `prune` and `wait`.

use std::time::Duration;

use container_api::apiserver::{PrunedContainers, QUICK, Request, SLOW};
use container_api::types::{Status, Stdio};
use container_api::{ApiError, Result};
use tokio::task::JoinSet;

use super::{beyond, for_each, ssh_agent};
use crate::args::container::{Delete, Ids, Kill, Restart, Stop, Update};
use crate::attach::conversation::wait_for_end;
use crate::failure::{OURS, Outcome, complain, print, print_line};
use crate::render;
use crate::session::Session;

/// `stop`.
pub async fn stop(session: &Session, args: &Stop) -> Outcome {
    let ids = chosen(session, &args.ids, args.all, is_alive).await?;
    let (signal, time) = (args.signal.clone(), Duration::from_secs(args.time.into()));
    for_each(session, ids, move |mut client, id| {
        let signal = signal.clone();
        async move {
            let timeout_ms = time.as_millis() as u64;
            let request = Request::Stop { id: id.clone(), signal, timeout_ms };
            client.call::<()>(&request, &[], beyond(time)).await.map(|()| id)
        }
    })
    .await
}

/// `restart`: one that does not run is started.
pub async fn restart(session: &Session, args: &Restart) -> Outcome {
    let ids = chosen(session, &args.ids, false, is_alive).await?;
    let (signal, time) = (args.signal.clone(), Duration::from_secs(args.time.into()));
    for_each(session, ids, move |mut client, id| {
        let signal = signal.clone();
        async move {
            let timeout_ms = time.as_millis() as u64;
            let stop = Request::Stop { id: id.clone(), signal, timeout_ms };
            client.call::<()>(&stop, &[], beyond(time)).await?;
            let start = Request::Start {
                id: id.clone(),
                stdio: Stdio::default(),
                size: None,
                trace: false,
                ssh_agent: ssh_agent(),
            };
            client.call::<()>(&start, &[], Some(SLOW)).await.map(|()| id)
        }
    })
    .await
}

/// `kill`.
pub async fn kill(session: &Session, args: &Kill) -> Outcome {
    let ids = chosen(session, &args.ids, args.all, is_alive).await?;
    let signal = args.signal.clone();
    for_each(session, ids, move |mut client, id| {
        let signal = signal.clone();
        async move {
            let request = Request::Signal { id: id.clone(), process_id: None, signal };
            client.call::<()>(&request, &[], Some(QUICK)).await.map(|()| id)
        }
    })
    .await
}

/// `delete`.
pub async fn delete(session: &Session, args: &Delete) -> Outcome {
    let ids = chosen(session, &args.ids, args.all, |_| true).await?;
    let force = args.force;
    for_each(session, ids, move |mut client, id| async move {
        let request = Request::Delete { id: id.clone(), force };
        client.call::<()>(&request, &[], Some(SLOW)).await.map(|()| id)
    })
    .await
}

/// `update`.
pub async fn update(session: &Session, args: &Update) -> Outcome {
    let (cpus, memory_in_bytes) = args.limits()?;
    for_each(session, args.ids.clone(), move |mut client, id| async move {
        let request = Request::Update { id: id.clone(), cpus, memory_in_bytes };
        client.call::<()>(&request, &[], Some(QUICK)).await.map(|()| id)
    })
    .await
}

fn is_alive(status: Status) -> bool {
    matches!(status, Status::Starting | Status::Running | Status::Stopping)
}

/// The containers named, or all that are `wanted`.
async fn chosen(
    session: &Session,
    named: &[String],
    all: bool,
    wanted: fn(Status) -> bool,
) -> Result<Vec<String>> {
    match (named, all) {
        ([], false) => Err(ApiError::invalid("no containers specified and --all not supplied")),
        ([], true) => {
            let containers = session.connect()?.list().await?;
            let chosen = containers.into_iter().filter(|c| wanted(c.status));
            Ok(chosen.map(|c| c.configuration.id).collect())
        }
        (_, true) => Err(ApiError::invalid("containers specified together with --all")),
        (named, false) => {
            let mut ids = named.to_vec();
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(id.clone()));
            Ok(ids)
        }
    }
}

/// `prune`.
pub async fn prune(session: &Session) -> Outcome {
    let mut client = session.connect()?;
    let pruned: PrunedContainers = client.call(&Request::Prune, &[], Some(SLOW)).await?;
    for id in &pruned.ids {
        print_line(id)?;
    }
    print(&format!("Reclaimed {} in disk space\n", render::size(pruned.reclaimed)))?;
    Ok(0)
}

/// `wait`: prints the exit codes in the order of the containers.
pub async fn wait(session: &Session, args: &Ids) -> Outcome {
    let mut waits = JoinSet::new();
    for (index, id) in args.ids.iter().cloned().enumerate() {
        let session = session.clone();
        waits.spawn(async move { (index, wait_for_end(&session, &id, None, false).await) });
    }
    let mut records: Vec<_> = args.ids.iter().map(|_| None).collect();
    let (mut next, mut code) = (0, 0);
    while let Some(done) = waits.join_next().await {
        let (index, record) = done.map_err(|e| ApiError::internal(e.to_string()))?;
        records[index] = Some(record);
        while let Some(record) = records.get_mut(next).and_then(Option::take) {
            next += 1;
            match record {
                Ok(record) => print_line(&record.exit_code.to_string())?,
                Err(error) => {
                    complain(&error.message);
                    code = OURS;
                }
            }
        }
    }
    Ok(code)
}
