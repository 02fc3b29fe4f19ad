//! A spare's states. It is no container: nothing can be started in it, and it becomes one once.
//!
//! ```text
//! Restoring ──► Restored ──WarmUp──► Warming ──► Waiting
//!                  └──Adopt──► Taken ◄──Adopt──────┘     (a container from here on: crate::state)
//! any but Taken ── Abort, Stop, failure ──► Over
//! ```

use container_api::runtime::{Phase, Request};

use crate::state;

/// Where a spare is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its VM is restored.
    Restoring,
    /// It may be taken, or made warm.
    Restored,
    /// It is made warm.
    Warming,
    /// It is warm and may be taken.
    Waiting,
    /// It is a container's.
    Taken,
    /// It ends without having been taken.
    Over,
}

impl State {
    /// The state as other services see it.
    pub fn phase(self) -> Phase {
        match self {
            State::Restoring | State::Warming => Phase::Booting,
            State::Restored | State::Waiting => Phase::Ready,
            State::Taken | State::Over => Phase::Ended,
        }
    }

    fn words(self) -> &'static str {
        match self {
            State::Restoring => "being made",
            State::Restored => "waiting to be made warm or taken",
            State::Warming => "being made warm",
            State::Waiting => "waiting to be taken",
            State::Taken => "taken already",
            State::Over => "ending",
        }
    }
}

/// What an admitted request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// An answer from what is known.
    Tell,
    /// The VM is made warm.
    WarmUp,
    /// The VM is handed over.
    HandOver,
    /// The spare is given up, or is given up already.
    End,
}

/// A request that a spare does not carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the spare VM is {}: {request} is not possible", .state.words())]
pub struct Refused {
    /// The request's name.
    pub request: &'static str,
    /// The state it met.
    pub state: State,
}

/// The state machine.
#[derive(Debug)]
pub struct Machine(State);

impl Default for Machine {
    fn default() -> Self {
        Machine(State::Restoring)
    }
}

impl Machine {
    /// The state.
    pub fn state(&self) -> State {
        self.0
    }

    /// The door.
    ///
    /// # Errors
    /// [`Refused`]; the state is unchanged.
    pub fn admit(&mut self, request: &Request) -> Result<Admission, Refused> {
        use State::*;
        let (admission, next) = match (request, self.0) {
            (Request::State, state) => (Admission::Tell, state),
            (Request::Stats, state @ (Restored | Waiting)) => (Admission::Tell, state),
            (Request::WarmUp, Restored) => (Admission::WarmUp, Warming),
            (Request::Adopt { .. }, Restored | Waiting) => (Admission::HandOver, Taken),
            (
                Request::Abort | Request::Stop { .. },
                Restoring | Restored | Warming | Waiting | Over,
            ) => (Admission::End, Over),
            (request, state) => return Err(Refused { request: state::name(request), state }),
        };
        self.0 = next;
        Ok(admission)
    }

    /// What was under way, a restoration or a warm-up, is done.
    pub fn done(&mut self) {
        self.0 = match self.0 {
            State::Restoring => State::Restored,
            State::Warming => State::Waiting,
            state => state,
        };
    }

    /// The VM is of no use, unless it is a container's by now. Returns whether this ends the spare.
    pub fn failed(&mut self) -> bool {
        let ends = self.0 != State::Taken;
        if ends {
            self.0 = State::Over;
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::types::Stdio;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Ask(Box<Request>),
        Done,
        Failed,
    }

    fn op() -> impl Strategy<Value = Op> {
        let ask = |request| Op::Ask(Box::new(request));
        let start = Request::Start { stdio: Stdio::default(), size: None, trace: false };
        prop::sample::select(vec![
            ask(Request::State),
            ask(Request::Stats),
            ask(Request::WarmUp),
            ask(Request::Adopt { directory: "/x".into(), taps: 0 }),
            ask(Request::Abort),
            ask(Request::Stop { signal: 15, timeout_ms: 1 }),
            ask(start),
            ask(Request::Wait { process_id: "x".into() }),
            Op::Done,
            Op::Done,
            Op::Failed,
        ])
    }

    proptest! {
        #[test]
        fn a_spare_is_taken_once_and_never_started(ops in proptest::collection::vec(op(), 0..20)) {
            let mut machine = Machine::default();
            let (mut taken, mut warmed) = (0, 0);
            for op in ops {
                let before = machine.state();
                match op {
                    Op::Ask(request) => match (&*request, machine.admit(&request)) {
                        (Request::Start { .. } | Request::Wait { .. }, outcome) => {
                            prop_assert!(outcome.is_err());
                        }
                        (Request::Adopt { .. }, Ok(_)) => {
                            prop_assert!(matches!(before, State::Restored | State::Waiting));
                            taken += 1;
                        }
                        (Request::WarmUp, Ok(_)) => {
                            prop_assert_eq!(before, State::Restored);
                            warmed += 1;
                        }
                        (Request::State, outcome) => prop_assert!(outcome.is_ok()),
                        (_, Err(_)) => prop_assert_eq!(machine.state(), before),
                        _ => {}
                    },
                    Op::Done => machine.done(),
                    Op::Failed => prop_assert_eq!(machine.failed(), before != State::Taken),
                }
                if matches!(before, State::Taken | State::Over) {
                    prop_assert_eq!(machine.state(), before, "nothing leads back");
                }
                prop_assert!(taken <= 1 && warmed <= 1);
                prop_assert_eq!(taken == 1, machine.state() == State::Taken);
            }
        }
    }
}
