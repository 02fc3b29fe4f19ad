//! A round trip through the forwarder of published ports against a direct one, on loopback: the
//! crate's own measurement, which has the forwarder between two namespaces and no VM.

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::bench::figure::{Figure, Promise};
use crate::workspace::output;

/// The test, which prints `direct N ns, forwarded N ns` for each pair of a thousand round trips.
const TEST: &str = "load::a_round_trip_takes_little_longer";

/// The median of each thousand, and what is added by pairs.
pub fn trip(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut command = bench.workspace.cargo();
    command.args(["test", "--release", "-q", "-p", "container-network", "--test", "forward"]);
    command.args(["--", "--exact", TEST, "--nocapture"]);
    let text = output(&mut command).context("measure round trips")?;
    let (direct, forwarded): (Vec<f64>, Vec<f64>) = text.lines().filter_map(pair).unzip();
    ensure!(direct.len() >= 10, "no figures came: {text}");
    let added = direct.iter().zip(&forwarded).map(|(direct, forwarded)| forwarded - direct);
    let added = added.collect();
    Ok(vec![
        Figure::new("round trip through a published port", "µs", forwarded, Promise::Stated)
            .against("direct, loopback", direct),
        Figure::new(
            "round trip: what forwarding adds, by pairs",
            "µs",
            added,
            Promise::AtMost(60.0),
        ),
    ])
}

/// Microseconds of a line.
fn pair(line: &str) -> Option<(f64, f64)> {
    let (direct, forwarded) = line.strip_prefix("direct ")?.split_once(", forwarded ")?;
    let number = |text: &str| Some(text.strip_suffix(" ns")?.parse::<f64>().ok()? / 1e3);
    Some((number(direct)?, number(forwarded)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_test_prints_is_read() {
        assert_eq!(pair("direct 9500 ns, forwarded 26000 ns"), Some((9.5, 26.0)));
        assert_eq!(pair("added: 17µs"), None);
    }
}
