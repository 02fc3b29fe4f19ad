//! `stats`: what running containers use.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use container_api::apiserver::{ApiClient, QUICK, Request};
use container_api::types::ContainerStats;
use container_api::{ErrorCode, Result};
use nix::libc;

use crate::args::Format;
use crate::args::container::Stats;
use crate::attach::conversation::reconnect;
use crate::attach::signals::Signals;
use crate::failure::{Failure, Outcome, print};
use crate::render::{self, stats as table};
use crate::session::Session;

/// Between two looks, of which the share of a CPU is the difference.
const PERIOD: Duration = Duration::from_secs(1);

/// The other screen without a cursor, and back: what was on the terminal stays.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// To the first corner, and the rest of the screen empty.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// One moment, or one after another until a signal comes.
pub async fn stats(session: &Session, args: &Stats) -> Outcome {
    let mut signals = Signals::ending().map_err(|e| Failure::io("taking signals", e))?;
    let named = (!args.ids.is_empty()).then(|| args.ids.clone());
    let mut source = Source { session, client: session.connect()?, named };
    tokio::select! {
        outcome = show(&mut source, args) => outcome,
        // Leaving is how this ends.
        signal = signals.next() => match signal {
            libc::SIGINT | libc::SIGTERM => Ok(0),
            other => Err(Failure::interrupted(other)),
        },
    }
}

async fn show(source: &mut Source<'_>, args: &Stats) -> Outcome {
    let first = source.once().await?;
    if args.format != Format::Table {
        return print(&render::data(args.format, "stats", &first)?).map(|()| 0);
    }
    if !args.no_stream {
        return stream(source, first).await;
    }
    let mut now = first.clone();
    if !first.is_empty() {
        tokio::time::sleep(PERIOD).await;
        now = source.again().await?;
    }
    print(&table::table(&now, &by_id(first))).map(|()| 0)
}

/// Until all containers that were named have ended.
async fn stream(source: &mut Source<'_>, first: Vec<ContainerStats>) -> Outcome {
    let screen = Screen::enter()?;
    let mut before = by_id(first);
    screen.show(&table::table(&[], &before))?;
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = source.again().await?;
        screen.show(&table::table(&now, &before))?;
        if source.is_done() {
            return Ok(0);
        }
        before = by_id(now);
    }
}

fn by_id(stats: Vec<ContainerStats>) -> BTreeMap<String, ContainerStats> {
    stats.into_iter().map(|row| (row.id.clone(), row)).collect()
}

/// The service, across its restarts.
struct Source<'a> {
    session: &'a Session,
    client: ApiClient,
    /// `None`: all that run.
    named: Option<Vec<String>>,
}

impl Source<'_> {
    async fn once(&mut self) -> Result<Vec<ContainerStats>> {
        self.ask(self.named.clone().unwrap_or_default()).await
    }

    async fn ask(&mut self, ids: Vec<String>) -> Result<Vec<ContainerStats>> {
        self.client.call(&Request::Stats { ids }, &[], Some(QUICK)).await
    }

    /// A named container that has ended meanwhile is left out from then on.
    async fn again(&mut self) -> Result<Vec<ContainerStats>> {
        let error = match self.once().await {
            Err(error) => error,
            found => return found,
        };
        if matches!(error.code, ErrorCode::Disconnected | ErrorCode::Unavailable) {
            self.client = reconnect(self.session, tokio::time::Instant::now(), false).await?;
            return self.once().await;
        }
        let Some(named) = self.named.take() else { return Err(error) };
        let (mut rows, mut left) = (Vec::new(), Vec::new());
        for id in named {
            match self.ask(vec![id.clone()]).await {
                Ok(found) => {
                    rows.extend(found);
                    left.push(id);
                }
                Err(error) => self.session.debug(format_args!("{id}: {error}")),
            }
        }
        self.named = Some(left);
        Ok(rows)
    }

    fn is_done(&self) -> bool {
        self.named.as_ref().is_some_and(Vec::is_empty)
    }
}

/// A terminal is drawn anew each time, anything else is appended to.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn enter() -> Outcome<Screen> {
        let screen = Screen { terminal: io::stdout().is_terminal() };
        if screen.terminal {
            print(ENTER)?;
        }
        Ok(screen)
    }

    fn show(&self, table: &str) -> Outcome<()> {
        match self.terminal {
            true => print(&format!("{CLEAR}{table}")),
            false => print(table),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            let _ = print(LEAVE);
        }
    }
}
