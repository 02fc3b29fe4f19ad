//! The life of a container, as a pure state machine.
//!
//! ```text
//!            launch           started           stop
//! created ──────────► starting ──────► running ──────► stopping
//!    ▲                 │  │  └───────── stop ─────────────┘ │
//!    │    abandoned    │  │ ended          │ ended          │ ended
//!    └─────────────────┘  └──────────────► stopped ◄────────┘
//!                                            │  ▲
//!                             launch ────────┘  └── abandoned (it had run before)
//!                             (starting again)
//! ```
//! `launch`: a helper was started. `started`: the first process runs. `ended`: there is an exit
//! record. `abandoned`: the helper went before a first process was asked of it (the caller gave
//! up, this service died), so nothing has happened to the container.

use container_api::types::{ExitRecord, Status, Timestamp};

/// What the state machine keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Where the container is.
    pub status: Status,
    /// When its first process last started.
    pub started: Option<Timestamp>,
    /// How it last ended.
    pub exit: Option<ExitRecord>,
}

/// What can happen to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A helper was started for it.
    Launch,
    /// Its first process runs.
    Started(Timestamp),
    /// It has been asked to end.
    StopAsked,
    /// It has ended.
    Ended(ExitRecord),
    /// Its helper went without having been asked to start anything.
    Abandoned,
}

impl Life {
    /// A container that was never started.
    pub fn new() -> Life {
        Life { status: Status::Created, started: None, exit: None }
    }

    /// Whether a VM exists, or is about to.
    pub fn is_active(&self) -> bool {
        matches!(self.status, Status::Starting | Status::Running | Status::Stopping)
    }

    /// Whether it can be started or removed.
    pub fn is_idle(&self) -> bool {
        !self.is_active()
    }

    /// Applies `event`; false when it means nothing in this state (a late answer, say), and then
    /// nothing has changed.
    pub fn apply(&mut self, event: Event) -> bool {
        use Status as S;
        self.status = match (self.status, event) {
            (S::Created | S::Stopped, Event::Launch) => {
                self.started = None;
                S::Starting
            }
            (S::Starting, Event::Started(at)) => {
                self.started = Some(at);
                self.exit = None;
                S::Running
            }
            (S::Stopping, Event::Started(at)) if self.started.is_none() => {
                self.started = Some(at);
                S::Stopping
            }
            (S::Starting | S::Running, Event::StopAsked) => S::Stopping,
            (S::Starting | S::Running | S::Stopping, Event::Ended(exit)) => {
                self.exit = Some(exit);
                S::Stopped
            }
            (S::Starting | S::Stopping, Event::Abandoned) if self.started.is_none() => {
                if self.exit.is_some() { S::Stopped } else { S::Created }
            }
            _ => return false,
        };
        true
    }
}

impl Default for Life {
    fn default() -> Self {
        Life::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(code: u8) -> ExitRecord {
        ExitRecord {
            exit_code: code,
            signal: None,
            out_of_memory: false,
            stop_requested: false,
            out_of_memory_kills: Vec::new(),
            reason: "exited".into(),
            exited_date: Timestamp::now(),
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Launch),
            Just(Event::Started(Timestamp::now())),
            Just(Event::StopAsked),
            any::<u8>().prop_map(|code| Event::Ended(exit(code))),
            Just(Event::Abandoned),
        ]
    }

    proptest! {
        #[test]
        fn every_sequence_keeps_the_promises(events in prop::collection::vec(event(), 0..40)) {
            let mut life = Life::new();
            for event in events {
                let before = life.clone();
                let taken = life.apply(event.clone());
                if !taken {
                    prop_assert_eq!(&life, &before);
                    continue;
                }
                // Only a launch leaves rest, only an end or a withdrawal comes to it.
                if before.is_idle() {
                    prop_assert_eq!(&event, &Event::Launch);
                    prop_assert_eq!(life.status, Status::Starting);
                }
                match life.status {
                    Status::Created => prop_assert!(life.exit.is_none() && life.started.is_none()),
                    Status::Stopped => prop_assert!(life.exit.is_some()),
                    Status::Running => prop_assert!(life.started.is_some() && life.exit.is_none()),
                    Status::Starting => prop_assert!(life.started.is_none()),
                    Status::Stopping => {}
                }
                // Whatever happens, an active container can end.
                if life.is_active() {
                    prop_assert!(life.clone().apply(Event::Ended(exit(1))));
                }
            }
        }
    }

    #[test]
    fn a_late_start_answer_does_not_revive() {
        let mut life = Life::new();
        assert!(life.apply(Event::Launch));
        assert!(life.apply(Event::Ended(exit(0))));
        assert!(!life.apply(Event::Started(Timestamp::now())));
        assert_eq!(life.status, Status::Stopped);
        assert!(!life.apply(Event::StopAsked));
    }

    #[test]
    fn an_abandoned_start_changes_nothing() {
        let mut life = Life::new();
        life.apply(Event::Launch);
        life.apply(Event::Abandoned);
        assert_eq!(life, Life::new());
        life.apply(Event::Launch);
        life.apply(Event::Started(Timestamp::now()));
        assert!(!life.apply(Event::Abandoned));
    }
}
