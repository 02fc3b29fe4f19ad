//! The container's states, and the one function that admits a request or refuses it.
//!
//! ```text
//!  Booting ──Booted──► Ready ──Start──► Starting ──Started──► Running ──Stop──► Stopping
//!   │   └─Start─► Booting, asked ─Booted─┘  │                   │                  │
//!   └───────┬──────────┬─────────┬──────────┴─────────┬─────────┴──────────────────┘
//!           └──────────┴─ Abort, Stop, failure ───────┴─ first process ends, VM dies
//!                              ▼
//!                            Ending ──Off──► Ended
//! ```
//! `Ending` begins when the exit record exists: output is delivered and the VM goes. Nothing leads
//! back, and only `Ended` follows.

use container_api::runtime::{Phase, Request};

/// Where the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The VM boots; `asked` once somebody waits to start the program.
    Booting {
        /// A start waits.
        asked: bool,
    },
    /// The guest takes requests: its root is mounted, or will be before it gets to them.
    Ready,
    /// The guest has been asked to start the program.
    Starting,
    /// The program runs.
    Running,
    /// The program runs and has been asked to end.
    Stopping,
    /// How it ended is known; the VM goes.
    Ending,
    /// The VM is gone.
    Ended,
}

impl State {
    /// The state as other services see it.
    pub fn phase(self) -> Phase {
        match self {
            State::Booting { .. } => Phase::Booting,
            State::Ready | State::Starting => Phase::Ready,
            State::Running => Phase::Running,
            State::Stopping | State::Ending => Phase::Stopping,
            State::Ended => Phase::Ended,
        }
    }

    /// The state in a sentence's words.
    fn words(self) -> &'static str {
        match self {
            State::Booting { asked: false } => "booting",
            State::Booting { asked: true } | State::Starting => "starting",
            State::Ready => "not started",
            State::Running => "running",
            State::Stopping | State::Ending => "stopping",
            State::Ended => "stopped",
        }
    }
}

/// What happens to the container by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest takes requests.
    Booted,
    /// The program was executed.
    Started,
    /// An exit record exists: the program ended or can't be started, the VM died or never came up.
    Concluded,
    /// The VM is gone and the output is delivered.
    Off,
}

/// How an admitted request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As it says.
    Proceed,
    /// The program never ran: the VM is ended without a signal.
    EndNow,
    /// The container ends already, or has ended: the answer is that.
    AwaitEnd,
}

/// A request that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the container is {}: {request} is not possible", .state.words())]
pub struct Refused {
    /// The request's name.
    pub request: &'static str,
    /// The state it met.
    pub state: State,
}

/// The state machine.
#[derive(Debug)]
pub struct Machine {
    state: State,
    /// Somebody wanted the program started, or the container ended.
    asked: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { state: State::Booting { asked: false }, asked: false }
    }
}

impl Machine {
    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The door: every request of another process passes here and nowhere else.
    ///
    /// # Errors
    /// [`Refused`]; the state is unchanged.
    pub fn admit(&mut self, request: &Request) -> Result<Admission, Refused> {
        use State::*;
        let (admission, next) = match (request, self.state) {
            (Request::State | Request::Wait { .. }, state) => (Admission::Proceed, state),
            (Request::Start { .. }, Booting { asked: false }) => {
                (Admission::Proceed, Booting { asked: true })
            }
            (Request::Start { .. }, Ready) => (Admission::Proceed, Starting),
            // The VM was faster to die than the caller to ask: the answer is why.
            (Request::Start { .. }, state @ (Ending | Ended)) if !self.asked => {
                (Admission::AwaitEnd, state)
            }
            (Request::Archive { .. }, state @ (Booting { asked: false } | Ready | Running)) => {
                (Admission::Proceed, state)
            }
            (Request::Exec { .. } | Request::Update { .. } | Request::Reclaim, Running) => {
                (Admission::Proceed, Running)
            }
            (
                Request::Attach { .. } | Request::Signal { .. } | Request::Resize { .. },
                state @ (Running | Stopping),
            ) => (Admission::Proceed, state),
            (Request::Stats, state @ (Ready | Starting | Running | Stopping)) => {
                (Admission::Proceed, state)
            }
            (Request::Stop { .. }, Running | Stopping) => (Admission::Proceed, Stopping),
            (Request::Stop { .. }, state @ (Ending | Ended)) => (Admission::AwaitEnd, state),
            (
                Request::Stop { .. } | Request::Abort,
                state @ (Booting { .. } | Ready | Starting),
            ) => (Admission::EndNow, state),
            (request, state) => return Err(Refused { request: name(request), state }),
        };
        self.state = next;
        self.asked |=
            matches!(request, Request::Start { .. } | Request::Stop { .. } | Request::Abort);
        Ok(admission)
    }

    /// Whether a start or the end was asked for.
    pub fn asked(&self) -> bool {
        self.asked
    }

    /// Takes note of an event; one that comes too late changes nothing.
    pub fn happened(&mut self, event: Event) {
        use State::*;
        self.state = match (event, self.state) {
            (Event::Booted, Booting { asked: false }) => Ready,
            (Event::Booted, Booting { asked: true }) => Starting,
            (Event::Started, Starting) => Running,
            (Event::Concluded, state) if state != Ended => Ending,
            (Event::Off, Ending) => Ended,
            (_, state) => state,
        };
    }
}

/// A request's name for messages.
pub fn name(request: &Request) -> &'static str {
    match request {
        Request::State => "state",
        Request::Start { .. } => "start",
        Request::Adopt { .. } => "adopt",
        Request::Update { .. } => "update",
        Request::Reclaim => "reclaim",
        Request::WarmUp => "warm up",
        Request::Attach { .. } => "attach",
        Request::Exec { .. } => "exec",
        Request::Archive { .. } => "archive",
        Request::Wait { .. } => "wait",
        Request::Signal { .. } => "signal",
        Request::Resize { .. } => "resize",
        Request::Stop { .. } => "stop",
        Request::Stats => "stats",
        Request::Abort => "abort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::archive::ArchiveWork;
    use container_api::types::{Resources, Stdio, TerminalSize};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Ask(Box<Request>),
        Happen(Event),
    }

    fn op() -> impl Strategy<Value = Op> {
        let stdio = Stdio::default();
        let id = || "x".to_owned();
        let ask = |request| Op::Ask(Box::new(request));
        prop::sample::select(vec![
            ask(Request::State),
            ask(Request::Start { stdio, size: None, trace: false }),
            ask(Request::Attach { stdio }),
            ask(Request::Exec { process_id: id(), process: Default::default(), stdio, size: None }),
            ask(Request::Archive { process_id: id(), work: ArchiveWork::Export, stdio }),
            ask(Request::Wait { process_id: id() }),
            ask(Request::Signal { process_id: id(), signal: 15 }),
            ask(Request::Resize { process_id: id(), size: TerminalSize { rows: 1, columns: 1 } }),
            ask(Request::Stop { signal: 15, timeout_ms: 1 }),
            ask(Request::Stats),
            ask(Request::Abort),
            ask(Request::Adopt { directory: "/x".into(), taps: 0 }),
            ask(Request::Update { resources: Resources { cpus: 1, memory_in_bytes: 1 << 30 } }),
            ask(Request::Reclaim),
            Op::Happen(Event::Booted),
            Op::Happen(Event::Started),
            Op::Happen(Event::Concluded),
            Op::Happen(Event::Off),
        ])
    }

    proptest! {
        #[test]
        fn promises_hold_in_any_order(ops in proptest::collection::vec(op(), 0..60)) {
            let mut machine = Machine::default();
            let (mut starts, mut over) = (0, false);
            for op in ops {
                let before = machine.state();
                match op {
                    Op::Ask(request) => {
                        let outcome = machine.admit(&request);
                        if outcome.is_err() {
                            prop_assert_eq!(machine.state(), before, "a refusal changes nothing");
                        }
                        match *request {
                            Request::State | Request::Wait { .. } | Request::Stop { .. } => {
                                prop_assert!(outcome.is_ok());
                            }
                            Request::Start { .. } if outcome == Ok(Admission::Proceed) => {
                                starts += 1;
                            }
                            Request::Adopt { .. } => {
                                prop_assert!(outcome.is_err(), "a container is no spare");
                            }
                            Request::Exec { .. } | Request::Update { .. } | Request::Reclaim => {
                                prop_assert_eq!(outcome.is_ok(), before == State::Running);
                            }
                            Request::Archive { .. } => {
                                prop_assert_eq!(before, machine.state());
                                let ended = matches!(before, State::Ending | State::Ended);
                                prop_assert!(outcome.is_err() || !ended);
                            }
                            Request::Abort => prop_assert!(outcome != Ok(Admission::Proceed)),
                            _ => {}
                        }
                    }
                    Op::Happen(event) => machine.happened(event),
                }
                over |= machine.state() == State::Ending;
                if over {
                    prop_assert!(matches!(machine.state(), State::Ending | State::Ended));
                }
                prop_assert!(starts <= 1, "the program starts once");
                if machine.state() == State::Running {
                    prop_assert_eq!(starts, 1);
                }
            }
        }
    }

    #[test]
    fn a_start_during_the_boot_is_carried_out_after_it() {
        let mut machine = Machine::default();
        let start = Request::Start { stdio: Stdio::default(), size: None, trace: false };
        assert_eq!(machine.admit(&start), Ok(Admission::Proceed));
        let refused = machine.admit(&start).unwrap_err();
        assert_eq!(refused.to_string(), "the container is starting: start is not possible");
        machine.happened(Event::Booted);
        assert_eq!(machine.state(), State::Starting);
        machine.happened(Event::Started);
        assert_eq!(machine.state().phase(), Phase::Running);
    }
}
