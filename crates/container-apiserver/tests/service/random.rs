//! Random sequences of operations and deaths, against a model of what must come out.

use std::collections::BTreeMap;

use container_api::ErrorCode;
use container_api::types::Status;
use proptest::prelude::*;
use rustix::process::Signal;

use crate::installation::{Installation, kill};

#[derive(Clone, Copy, Debug)]
enum Step {
    Create(usize),
    Start(usize),
    Stop(usize),
    Delete(usize, bool),
    KillHelper(usize),
    KillService,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..2usize;
    prop_oneof![
        4 => which.clone().prop_map(Step::Create),
        4 => which.clone().prop_map(Step::Start),
        2 => which.clone().prop_map(Step::Stop),
        2 => (which.clone(), any::<bool>()).prop_map(|(i, force)| Step::Delete(i, force)),
        1 => which.prop_map(Step::KillHelper),
        1 => Just(Step::KillService),
    ]
}

/// What the model says a step must answer.
fn predict(model: &mut BTreeMap<String, Status>, step: Step) -> Result<(), ErrorCode> {
    use ErrorCode as E;
    use Status as S;
    let id = |i: usize| format!("c{i}");
    match step {
        Step::Create(i) if model.contains_key(&id(i)) => Err(E::AlreadyExists),
        Step::Create(i) => {
            model.insert(id(i), S::Created);
            Ok(())
        }
        Step::KillService => Ok(()),
        Step::Start(i) | Step::Stop(i) | Step::Delete(i, _) | Step::KillHelper(i) => {
            let Some(status) = model.get(&id(i)).copied() else { return Err(E::NotFound) };
            match (step, status) {
                (Step::Start(_), S::Running) => Err(E::InvalidState),
                (Step::Start(_), _) => {
                    model.insert(id(i), S::Running);
                    Ok(())
                }
                (Step::Stop(_) | Step::KillHelper(_), S::Running) => {
                    model.insert(id(i), S::Stopped);
                    Ok(())
                }
                (Step::Delete(_, false), S::Running) => Err(E::InvalidState),
                (Step::Delete(..), _) => {
                    model.remove(&id(i));
                    Ok(())
                }
                _ => Ok(()),
            }
        }
    }
}

async fn perform(it: &Installation, step: Step) -> Result<(), ErrorCode> {
    let id = |i: usize| format!("c{i}");
    let done = match step {
        Step::Create(i) => it.create(&id(i), "sleep").await.map(drop),
        Step::Start(i) => it.start(&id(i)).await,
        Step::Stop(i) => it.stop(&id(i)).await,
        Step::Delete(i, force) => it.delete(&id(i), force).await,
        Step::KillHelper(i) => match it.inspect(&id(i)).await {
            Ok(snapshot) => match snapshot.runtime_pid {
                Some(pid) => {
                    kill(pid, Signal::KILL);
                    it.wait(&id(i)).await.map(drop)
                }
                None => Ok(()),
            },
            Err(error) => Err(error),
        },
        Step::KillService => {
            it.kill_service();
            it.start_service();
            Ok(())
        }
    };
    done.map_err(|error| error.code)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_service_does_what_the_model_says(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let it = Installation::started();
            let mut model = BTreeMap::new();
            for (n, step) in steps.iter().enumerate() {
                let expected = predict(&mut model, *step);
                let got = perform(&it, *step).await;
                prop_assert_eq!(got, expected, "step {} of {:?}", n, steps);
                prop_assert_eq!(it.status().await, model.clone(), "after step {} of {:?}", n, steps);
            }
            Ok(())
        })?;
    }
}
