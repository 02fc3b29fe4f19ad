//! Making and ending spares in the background.

use std::sync::Arc;
use std::time::Duration;

use container_api::{ApiError, Result};
use tokio::time::{sleep, timeout};

use super::pool::{Kind, Order};
use super::vm::Spare;
use crate::directory::remove_tree;
use crate::engine::Engine;
use crate::helper::Helper;
use crate::pressure;
use crate::process::Identity;

/// How long no start must have been under way, unless one has found no warm spare: what is made
/// beside a start costs it time.
const QUIET: Duration = Duration::from_millis(150);
/// From the kill to the end of one that a former service has left.
const LEFT_OVER: Duration = Duration::from_secs(2);

/// Keeps the spares; never ends.
pub async fn run(engine: Arc<Engine>) {
    if engine.spares.kept() > 0
        && let Err(error) = keep_default(&engine).await
    {
        tracing::warn!(%error, "no spares are kept ahead");
    }
    loop {
        if tidy(&engine).await && work(&engine).await {
            continue;
        }
        tokio::select! {
            () = engine.spares.wake.notified() => {}
            () = sleep(engine.spares.look_later()) => {}
        }
    }
}

/// Restores a spare or makes one warm; false when nothing is to be done now.
async fn work(engine: &Arc<Engine>) -> bool {
    let spares = &engine.spares;
    let missing = spares.missing(|key| engine.templates.is_ready(key));
    if missing.is_none() && !spares.any_cold() {
        return false;
    }
    let hurried = missing.as_ref().is_some_and(|(_, hurried)| *hurried);
    if !hurried {
        tokio::select! {
            () = engine.quiet(QUIET) => {}
            // Perhaps another one.
            () = spares.hurry.notified() => return true,
        }
    }
    let (kind, made) = match missing {
        Some((order, _)) => {
            spares.restoring(&order);
            (order.kind(), restore(engine, &order, hurried).await)
        }
        None => {
            let Some(spare) = spares.warming() else { return true };
            (spare.kind(), spare.warm_up(engine).await)
        }
    };
    done(engine, kind, made).await
}

/// `[runtime] spare = N`: the default shape is in use from the start on.
async fn keep_default(engine: &Arc<Engine>) -> Result<()> {
    let report = engine.probe.usable().await?;
    let kernel = engine.kernel(None)?;
    let resources = crate::merge::default_resources(&engine.config.container)?;
    let Some(shape) = engine.shape(&kernel, &report, resources, false) else {
        return Err(ApiError::internal("VMs are not restored from templates here"));
    };
    engine.templates.want(&shape, &kernel);
    engine.spares.used(Order { shape, kernel, mappable: false }, engine.spares.kept());
    Ok(())
}

/// Ends what is not worth its memory any more; false when nothing should be made now.
async fn tidy(engine: &Arc<Engine>) -> bool {
    let short = pressure::short_of_memory();
    if let Ok(report) = engine.probe.report(Duration::ZERO).await {
        engine.templates.drop_stale(&report.template_identity);
    }
    engine.spares.forget_idle();
    let ready = |key: &str| engine.templates.is_ready(key);
    for (spare, why) in engine.spares.useless(short.as_deref(), ready) {
        tracing::info!(template = spare.shape.key, why, "a spare is given up");
        spare.end().await;
    }
    short.is_none()
}

/// Puts a spare where starts find it; false when no other should be tried now.
async fn done(engine: &Arc<Engine>, kind: Kind, made: Result<Spare>) -> bool {
    let (template, mappable) = (&kind.key, kind.mappable);
    match made {
        Ok(spare) => {
            let (pid, warm) = (spare.handle().identity().pid, spare.is_warm());
            tracing::info!(template, mappable, pid, warm, "a spare is ready");
            let (watched, handle) = (engine.clone(), spare.handle().clone());
            match engine.spares.made(spare) {
                Some(unwanted) => unwanted.end().await,
                None => {
                    _ = tokio::spawn(async move {
                        handle.ended().await;
                        watched.spares.look();
                    })
                }
            }
            true
        }
        Err(error) => {
            tracing::warn!(template, %error, "a spare was not made");
            engine.spares.failed(kind);
            false
        }
    }
}

async fn restore(engine: &Arc<Engine>, order: &Order, hurried: bool) -> Result<Spare> {
    let template = engine.templates.acquire(&order.shape).await;
    let template = template.filter(|template| template.key == order.shape.key);
    let template = template.ok_or_else(|| ApiError::internal("its template is gone"))?;
    let launched = |handle| engine.spares.launched(handle);
    Spare::restore(engine, order, &template, hurried, launched).await
}

/// Ends all spares: `close` for good.
pub async fn end_all(engine: &Arc<Engine>, close: bool) -> u64 {
    let mut tasks = tokio::task::JoinSet::new();
    for spare in engine.spares.take_all(close) {
        tasks.spawn(spare.end());
    }
    tasks.join_all().await.len() as u64
}

/// Ends the spares whose taps the network service does not know any more; others follow.
pub async fn end_parked(engine: &Engine) {
    end_tapped(engine, true).await;
}

/// Ends the spares without a tap: containers have networks from now on.
pub async fn end_tapless(engine: &Engine) {
    end_tapped(engine, false).await;
}

async fn end_tapped(engine: &Engine, tapped: bool) {
    for spare in engine.spares.take_tapped(tapped) {
        spare.end().await;
    }
    engine.spares.look();
}

/// Ends spares that a former service has left, but not those that are containers' by now.
pub async fn clear(engine: &Arc<Engine>) -> Result<()> {
    let adopted: Vec<Identity> = engine
        .containers()
        .iter()
        .filter_map(|container| Some(container.live().machine?.helper.handle.identity()))
        .collect();
    for entry in std::fs::read_dir(engine.root.spares())? {
        let directory = entry?.path();
        if let Ok(Some(spare)) = Helper::find_in(&directory)
            && !adopted.contains(&spare.handle.identity())
        {
            tracing::info!(pid = spare.handle.identity().pid, "a former service's spare is ended");
            spare.handle.kill();
            let _ = timeout(LEFT_OVER, spare.handle.ended()).await;
        }
        if let Err(error) = remove_tree(&directory) {
            tracing::warn!(path = %directory.display(), %error, "files of a spare stay");
        }
    }
    Ok(())
}
