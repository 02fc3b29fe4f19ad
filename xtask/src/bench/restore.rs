//! From the start of QEMU to the guest agent's first answer, of a VM restored from a template.

use anyhow::{Context, Result};
use e2e::Installation;

use super::figure::{Figure, Promise};
use super::{Bench, ready, trace};

/// The helper's phases: QEMU is there and has its state; the agent has answered.
const FIRST: &str = "VM made";
const LAST: &str = "guest answers";

/// From the helper's own spans, so that nothing else is in it.
pub fn restore(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_config("runtime.spare = 0\n");
    ready::template(&it, "busybox")?;
    let mut took = Vec::new();
    for _ in 0..=bench.rounds * 3 {
        ready::rest(&it, false)?;
        let spans = trace::of_a_start(&it, "busybox")?;
        let find = |name: &str| {
            let found = spans.iter().find(|span| span.name == name);
            found.with_context(|| format!("no span {name:?} in {spans:#?}"))
        };
        took.push(find(LAST)?.end - find(FIRST)?.begin);
    }
    // The first fills caches.
    took.remove(0);
    let name = "restore from a template to the agent's answer";
    Ok(vec![Figure::new(name, "ms", took, Promise::AtMost(120.0))])
}
